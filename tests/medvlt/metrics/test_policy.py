# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from medvlt.losses.policy import TokenLosses
from medvlt.metrics.policy import PolicyStatistics

NOTHING = {
    "clip_ratio/low_mean": 0.0,
    "clip_ratio/high_mean": 0.0,
    "clip_ratio/region_mean": 0.0,
    "sampling/sampling_logp_difference/mean": 0.0,
    "sampling/sampling_logp_difference/max": 0.0,
    "sampling/importance_sampling_ratio/min": 1.0,
    "sampling/importance_sampling_ratio/mean": 1.0,
    "sampling/importance_sampling_ratio/max": 1.0,
    "kl": 0.0,
}


@dataclass
class Tokens:
    """A micro-batch."""

    low: Tensor
    high: Tensor
    old: Tensor
    sampler: Tensor
    kl: Tensor | None
    weights: Tensor

    def count(self, statistics: PolicyStatistics) -> None:
        losses = TokenLosses(torch.zeros(len(self.low)), self.low, self.high)
        statistics.update(losses, self.old, self.sampler, self.kl, self.weights)


def tokens(seed: int, count: int) -> Tokens:
    """A third of the tokens has no weight; their numbers are such that none may get in."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(7, count, generator=generator)
    clipped = draw[1] < 0.3
    made = Tokens(clipped & (draw[0] < 0.4), clipped & (draw[0] >= 0.7), -3 * draw[2], -3 * draw[3], draw[4], draw[5])
    out = draw[6] < 1 / 3
    made.weights[out] = 0.0
    made.low[out] = True
    made.high[out] = True
    for column in (made.old, made.sampler, made.kl):
        assert column is not None
        column[out] = torch.nan
    return made


def by_hand(batches: list[Tokens]) -> dict[str, float]:
    low = high = region = count = 0
    gaps, kl = [], []
    for batch in batches:
        for i in range(len(batch.weights)):
            if batch.weights[i] > 0:
                count += 1
                low += bool(batch.low[i])
                high += bool(batch.high[i])
                region += bool(batch.low[i]) or bool(batch.high[i])
                gaps.append(float(batch.old[i]) - float(batch.sampler[i]))
                kl.append(0.0 if batch.kl is None else float(batch.kl[i]))
    return {
        "clip_ratio/low_mean": low / count,
        "clip_ratio/high_mean": high / count,
        "clip_ratio/region_mean": region / count,
        "sampling/sampling_logp_difference/mean": sum(map(abs, gaps)) / count,
        "sampling/sampling_logp_difference/max": max(map(abs, gaps)),
        "sampling/importance_sampling_ratio/min": math.exp(min(gaps)),
        "sampling/importance_sampling_ratio/mean": sum(map(math.exp, gaps)) / count,
        "sampling/importance_sampling_ratio/max": math.exp(max(gaps)),
        "kl": sum(kl) / count,
    }


def computed(statistics: PolicyStatistics) -> dict[str, float]:
    return {name: float(value) for name, value in statistics.compute().items()}


def test_statistics_of_a_step_equal_a_loop() -> None:
    statistics = PolicyStatistics()
    batches = [tokens(0, 40), tokens(1, 7), tokens(2, 1)]
    for batch in batches:
        batch.count(statistics)
    expected = by_hand(batches)
    assert 0 < expected["clip_ratio/low_mean"] < expected["clip_ratio/region_mean"]  # else nothing is told apart
    assert computed(statistics) == pytest.approx(expected, rel=1e-5)
    statistics.reset()
    without = tokens(3, 20)
    without.kl = None
    without.count(statistics)
    assert computed(statistics) == pytest.approx(by_hand([without]), rel=1e-5)
    assert computed(statistics)["kl"] == 0.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extremes_where_all_ratios_lie_on_one_side(sign: float) -> None:
    statistics = PolicyStatistics()
    none = torch.zeros(2, dtype=torch.bool)
    batch = Tokens(none, none, sign * torch.tensor([0.5, 0.2]), torch.zeros(2), None, torch.ones(2))
    batch.count(statistics)
    values = computed(statistics)
    ratios = sorted([math.exp(0.5 * sign), math.exp(0.2 * sign)])
    assert values["sampling/importance_sampling_ratio/min"] == pytest.approx(ratios[0], rel=1e-6)
    assert values["sampling/importance_sampling_ratio/max"] == pytest.approx(ratios[1], rel=1e-6)
    assert values["sampling/sampling_logp_difference/max"] == pytest.approx(0.5)


def test_nothing_counted() -> None:
    """A micro-batch that only stands in has no token of weight; a rank may have none but such."""
    batch = tokens(0, 12)
    batch.weights.zero_()
    statistics = PolicyStatistics()
    batch.count(statistics)
    assert computed(statistics) == NOTHING


@pytest.mark.parametrize("sizes", [(30, 3), (30, 0), (0, 30)])
def test_ranks_merge_into_one(sizes: tuple[int, int]) -> None:
    """Unequal ranks are not averaged, and a rank without tokens changes nothing."""
    batches = [tokens(seed, 30) for seed in range(2)]
    ranks = [PolicyStatistics(), PolicyStatistics()]
    for batch, rank, size in zip(batches, ranks, sizes, strict=True):
        batch.weights[size:] = 0.0
        batch.count(rank)
    merged = PolicyStatistics()
    for name, reduce in merged._reductions.items():
        assert callable(reduce)
        setattr(merged, name, reduce(torch.stack([getattr(rank, name) for rank in ranks])))  # as torchmetrics does
    merged._update_count = 1
    assert computed(merged) == pytest.approx(by_hand(batches), rel=1e-5)
