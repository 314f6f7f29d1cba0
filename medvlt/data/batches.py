# SPDX-License-Identifier: Apache-2.0
"""What travels through a loop: prompts that wait for completions, and micro-batches of a policy update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from medvlt.data.packing import PackedBatch
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


@dataclass(frozen=True)
class RolloutBatch:
    """One micro-batch of a policy update: packed groups and what was known of their tokens before the update.

    Attributes:
        packed: The groups.
        advantages: Advantage of each target token, (N,), float32.
        sampler_logprobs: Log-probability under the engine's distribution, (N,), float32.
        old_logprobs: Log-probability under the weights that sampled, (N,), or None if those are the present weights.
        ref_logprobs: Log-probability under the reference policy, (N,), or None without one.
    """

    packed: PackedBatch
    advantages: Tensor
    sampler_logprobs: Tensor
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None

    def to(self, device: torch.device | str, **kwargs: Any) -> RolloutBatch:
        """Returns the batch with every tensor on `device`; Lightning calls this."""
        return self._mapped(lambda part: part.to(device, **kwargs))

    def pin_memory(self) -> RolloutBatch:
        """Returns the batch with every tensor in page-locked memory; the DataLoader calls this."""
        return self._mapped(lambda part: part.pin_memory())

    def _mapped(self, function: Callable[[Any], Any]) -> RolloutBatch:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        mapped: dict[str, Any] = {name: None if part is None else function(part) for name, part in values.items()}
        return RolloutBatch(**mapped)
