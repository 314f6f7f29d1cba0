# SPDX-License-Identifier: Apache-2.0
"""Prompts on their way through a loop: a callback attaches completions, a module scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medvlt.types import RolloutGroup, Sample, Verdict


@dataclass
class PromptBatch:
    """Questions of one benchmark and, once a callback has sampled them, their completions.

    Attributes:
        benchmark: Name under which the results are reported.
        samples: The questions.
        groups: One group of completions per question, in the same order; None before they are sampled.
        verdicts: One verdict per completion, by question; None before they are graded.
    """

    benchmark: str
    samples: Sequence[Sample]
    groups: list[RolloutGroup] | None = None
    verdicts: list[list[Verdict]] | None = None

    def to(self, device: torch.device, **kwargs: object) -> PromptBatch:
        """Returns itself: it holds no tensors. Lightning calls this."""
        return self
