# SPDX-License-Identifier: Apache-2.0
"""Several completions of a question taken together."""

from __future__ import annotations

from math import fsum

import torch
from torch import Tensor
from torchmetrics import Metric

from medvlt.evaluation.statistics.passes import pass_at_k
from medvlt.metrics.rates import Rate


class PassAtK(Metric):
    """Mean over questions of the unbiased estimate of pass@k, in [0, 1].

    States: `passed`, the sum of the estimates, and `questions`, summed over ranks; exact where k is the number of
    completions.

    Args:
        k: How many completions are taken; None for all of a question, which asks whether any is right.

    Example:
        >>> passes = PassAtK(2)
        >>> passes.update(torch.tensor([0, 1, 4]), torch.tensor([4, 4, 4]))
        >>> passes.compute().item()
        0.5
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    passed: Tensor
    questions: Tensor

    def __init__(self, k: int | None = None) -> None:
        super().__init__()
        self.k = k
        self.add_state("passed", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("questions", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, correct: Tensor, total: Tensor) -> None:
        """Counts questions.

        Args:
            correct: Right completions of each question, (Q,), integer.
            total: Completions of each, (Q,), integer.

        Raises:
            DataError: If a question has fewer than k completions, or more right ones than completions.
        """
        pairs = zip(correct.tolist(), total.tolist(), strict=True)
        self.passed += fsum(pass_at_k(n, right, n if self.k is None else self.k) for right, n in pairs)
        self.questions += len(total)

    def compute(self) -> Tensor:
        """Returns the mean, a scalar; 0, not NaN, if nothing was counted."""
        return self.passed / self.questions.clamp(min=1)


class MajorityAccuracy(Rate):
    """Share of questions whose most frequent answer is right; update it with `majority_correct` of each question."""

    higher_is_better = True
