# SPDX-License-Identifier: Apache-2.0
"""Shares of completions: right, well formed, truncated."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Rate(Metric):
    """Share of completions for which something holds: hits / total, in [0, 1].

    States: `hits` and `total`, whole numbers, summed over ranks.
    """

    is_differentiable = False
    full_state_update = False

    hits: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, flags: Tensor) -> None:
        """Counts completions.

        Args:
            flags: True where it holds, any shape, bool; an empty tensor counts nothing.

        Raises:
            TypeError: If `flags` is not boolean, since a score would be truncated without a word.
        """
        if flags.dtype is not torch.bool:
            raise TypeError(
                f"expected flags of type torch.bool, got {flags.dtype}; compare the scores with a threshold"
            )
        self.hits += flags.sum()
        self.total += flags.numel()

    def compute(self) -> Tensor:
        """Returns hits / total, a scalar; 0, not NaN, if nothing was counted."""
        return self.hits / self.total.clamp(min=1)


class MultipleChoiceAccuracy(Rate):
    """Share of completions that choose the right option; update it with `Verdict.correct`.

    Example:
        >>> accuracy = MultipleChoiceAccuracy()
        >>> accuracy.update(torch.tensor([True, False, True, True]))
        >>> accuracy.compute().item(), accuracy.correct.item(), accuracy.total.item()
        (0.75, 3, 4)
    """

    higher_is_better = True

    @property
    def correct(self) -> Tensor:
        """Number of right completions, for intervals: with `total`, what `wilson_interval` takes."""
        return self.hits


class FormatRate(Rate):
    """Share of completions in the right format, whatever they answer; update it with `Verdict.format_ok`."""

    higher_is_better = True


class TruncationRate(Rate):
    """Share of completions that ended at their token limit; update it with `finish_reason == "length"`."""

    higher_is_better = False
