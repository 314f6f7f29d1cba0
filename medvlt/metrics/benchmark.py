# SPDX-License-Identifier: Apache-2.0
"""Everything that is counted about the completions of one benchmark."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric

from medvlt.metrics.lengths import MeanLength
from medvlt.metrics.rates import FormatRate, MultipleChoiceAccuracy, TruncationRate


class BenchmarkMetrics(nn.Module):
    """Accuracy with its counts, format rate, truncation rate and mean length; each reduces over ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict(
            {
                "accuracy": MultipleChoiceAccuracy(),
                "correct": SumMetric(),
                "count": SumMetric(),
                "questions": SumMetric(),
                "format_rate": FormatRate(),
                "truncation_rate": TruncationRate(),
                "mean_tokens": MeanLength(),
            }
        )

    def update(self, *, questions: int, correct: Tensor, format_ok: Tensor, truncated: Tensor, tokens: Tensor) -> None:
        """Counts completions, each once.

        Args:
            questions: How many questions they answer.
            correct: Whether each was graded right, (N,), bool.
            format_ok: Whether it has the asked format, (N,), bool.
            truncated: Whether it was cut at the token limit, (N,), bool.
            tokens: Its length, (N,), integer.
        """
        given = {
            "accuracy": correct,
            "correct": correct.sum(),
            "count": torch.tensor(len(correct)),
            "questions": torch.tensor(questions),
            "format_rate": format_ok,
            "truncation_rate": truncated,
            "mean_tokens": tokens,
        }
        for name, metric in self.metrics.items():
            cast(Metric, metric).update(given[name])

    def compute(self) -> dict[str, Tensor]:
        """Returns each number over all ranks; shares and means of nothing are 0."""
        return {name: cast(Metric, metric).compute() for name, metric in self.metrics.items()}
