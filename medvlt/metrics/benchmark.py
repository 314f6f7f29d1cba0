# SPDX-License-Identifier: Apache-2.0
"""Everything that is counted about the completions of one benchmark."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class BenchmarkMetrics(Metric):
    """Sums over completions, reduced over ranks; each completion counts once."""

    correct: Tensor
    count: Tensor
    format_ok: Tensor
    truncated: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("correct", "count", "format_ok", "truncated", "tokens"):
            self.add_state(name, torch.tensor(0, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, *, correct: bool, format_ok: bool, truncated: bool, tokens: int) -> None:
        """Counts one completion.

        Args:
            correct: Whether it was graded right.
            format_ok: Whether it has the asked format.
            truncated: Whether it was cut at the token limit.
            tokens: Its length, at least 1.
        """
        self.correct += correct
        self.count += 1
        self.format_ok += format_ok
        self.truncated += truncated
        self.tokens += tokens

    def compute(self) -> dict[str, Tensor]:
        """Returns `accuracy`, `format_rate` and `truncation_rate` in [0, 1], `mean_tokens`, `correct` and `count`.

        Shares of nothing are 0.
        """
        count = self.count.clamp_min(1)
        return {
            "accuracy": self.correct / count,
            "format_rate": self.format_ok / count,
            "truncation_rate": self.truncated / count,
            "mean_tokens": self.tokens / count,
            "correct": self.correct.float(),
            "count": self.count.float(),
        }
