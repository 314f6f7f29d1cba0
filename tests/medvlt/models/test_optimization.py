# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medvlt.errors import ConfigurationError
from medvlt.models.optimization import Optimization, build_optimizer, decay_groups


def rates(settings: Optimization, steps: int) -> list[float]:
    optimizer, scheduler = build_optimizer([nn.Parameter(torch.zeros(2, 2))], settings, total_steps=steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_only_matrices_decay_and_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    model[0].weight.requires_grad_(False)
    model.append(nn.Linear(4, 2, bias=False))
    groups = decay_groups(model.parameters(), 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [parameter.shape for parameter in groups[0]["params"]] == [(2, 4)]
    assert len(groups[1]["params"]) == 3


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedule_by_its_formula(schedule: str) -> None:
    steps, warmup, peak = 40, 4, 2e-3
    settings = Optimization(learning_rate=peak, schedule=schedule, warmup_ratio=0.1)
    for step, rate in enumerate(rates(settings, steps)):
        progress = (step - warmup) / (steps - warmup)
        after = {"cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress, "constant": 1.0}[schedule]
        assert rate == pytest.approx(peak * (step / warmup if step < warmup else after), abs=1e-9)


def test_schedule_can_be_longer_than_the_run() -> None:
    """The reference schedules five epochs and releases the third."""
    settings = Optimization(schedule="cosine", total_steps=100)
    assert rates(settings, 60)[-1] == pytest.approx(rates(Optimization(schedule="cosine"), 100)[59])


def test_bad_values_are_named() -> None:
    with pytest.raises(ConfigurationError, match="warmup_ratio in"):
        Optimization(warmup_ratio=1.0)
