# SPDX-License-Identifier: Apache-2.0
"""How long completions are."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLength(Metric):
    """Mean number of tokens of a completion, end token included.

    States: `tokens` and `total`, whole numbers, summed over ranks; exact up to 2**63 tokens.

    Example:
        >>> length = MeanLength()
        >>> length.update(torch.tensor([10, 20, 60]))
        >>> length.compute().item()
        30.0
    """

    is_differentiable = False
    full_state_update = False

    tokens: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, lengths: Tensor) -> None:
        """Counts completions.

        Args:
            lengths: Tokens of each completion, any shape, an integer type, at least 0.

        Raises:
            TypeError: If `lengths` is not of an integer type.
        """
        if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype is torch.bool:
            raise TypeError(f"expected lengths of an integer type, got {lengths.dtype}; pass numbers of tokens")
        self.tokens += lengths.sum()
        self.total += lengths.numel()

    def compute(self) -> Tensor:
        """Returns the mean length in tokens, a scalar; 0, not NaN, if nothing was counted."""
        return self.tokens / self.total.clamp(min=1)
