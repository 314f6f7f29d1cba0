# SPDX-License-Identifier: Apache-2.0
"""AdamW with decay groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from medvlt.errors import ConfigurationError


@dataclass(frozen=True)
class Optimization:
    """AdamW and its schedule. The defaults are the reference's SFT.

    Attributes:
        learning_rate: Peak rate, above 0.
        schedule: Shape after the warm-up: "cosine" or "linear" to zero at the last step, or "constant".
        warmup_ratio: Share of all steps in which the rate rises from 0, in [0, 1).
        betas: Decay of the moments.
        weight_decay: On matrices; vectors (norms, biases) are not decayed.
        eps: Added to the root of the second moment.
        total_steps: Length of the schedule in optimizer steps. None takes it from the Trainer (`max_steps`, or
            `max_epochs` times the steps of an epoch).
    """

    learning_rate: float = 1e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    eps: float = 1e-8
    total_steps: int | None = None

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or not 0 <= self.warmup_ratio < 1 or self.weight_decay < 0:
            raise ConfigurationError(
                "optimization needs learning_rate > 0, warmup_ratio in [0, 1) and weight_decay >= 0; got "
                f"{self.learning_rate}, {self.warmup_ratio} and {self.weight_decay}"
            )


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Splits trainable parameters into matrices, which are decayed, and vectors, which are not."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if len(whole_shape(p)) >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if len(whole_shape(p)) < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Returns the shape of the whole weight, of which a rank may hold a flat part (ZeRO-3, FSDP1)."""
    shape: torch.Size = getattr(parameter, "whole_shape", parameter.shape)
    return getattr(parameter, "ds_shape", shape)


def build_optimizer(
    parameters: Iterable[nn.Parameter], settings: Optimization, *, total_steps: int
) -> tuple[AdamW, LambdaLR]:
    """Returns AdamW and its per-step schedule.

    Args:
        parameters: Those of the policy; frozen ones are left out.
        settings: Rates and shapes.
        total_steps: Optimizer steps of the run, at least 1; `settings.total_steps` goes first.
    """
    optimizer = AdamW(
        decay_groups(parameters, settings.weight_decay),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
    )
    steps = settings.total_steps or total_steps
    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    warmup = math.ceil(settings.warmup_ratio * steps)
    return optimizer, get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
