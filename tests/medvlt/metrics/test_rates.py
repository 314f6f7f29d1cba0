# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from medvlt.metrics.rates import FormatRate, MultipleChoiceAccuracy, Rate, TruncationRate

RATES: list[type[Rate]] = [Rate, MultipleChoiceAccuracy, FormatRate, TruncationRate]


def batches(seed: int) -> list[Tensor]:
    generator = np.random.default_rng(seed)
    return [torch.from_numpy(generator.random(size) < 0.3) for size in (5, 1, 0, 12)]


@pytest.mark.parametrize("kind", RATES)
def test_rate_equals_the_mean(kind: type[Rate]) -> None:
    rate = kind()
    for batch in batches(0):
        rate.update(batch)
    assert rate.compute().item() == pytest.approx(torch.cat(batches(0)).numpy().mean())
    rate.reset()
    assert (rate.hits.item(), rate.total.item(), rate.compute().item()) == (0, 0, 0.0)


def test_two_ranks_merge_into_one() -> None:
    ranks = [MultipleChoiceAccuracy(), MultipleChoiceAccuracy()]
    for seed, rank in enumerate(ranks):
        for batch in batches(seed):
            rank.update(batch)
    merged = MultipleChoiceAccuracy()
    for name in ("hits", "total"):
        assert merged._reductions[name] is not None
        # what torchmetrics does with gathered states
        setattr(merged, name, merged._reductions[name](torch.stack([getattr(rank, name) for rank in ranks])))
    merged.update(torch.tensor([True]))
    everything = torch.cat([*batches(0), *batches(1), torch.tensor([True])]).numpy()
    assert merged.compute().item() == pytest.approx(everything.mean())
    assert (merged.correct.item(), merged.total.item()) == (everything.sum(), everything.size)


def test_unequal_ranks_are_not_averaged() -> None:
    left, right = MultipleChoiceAccuracy(), MultipleChoiceAccuracy()
    left.update(torch.tensor([True]))
    right.update(torch.tensor([False, False, False]))
    left.merge_state(right)
    assert left.compute().item() == 0.25


@pytest.mark.parametrize("kind", RATES)
def test_pickling_and_cloning_keep_the_counts(kind: type[Rate]) -> None:
    rate = kind()
    rate.update(torch.tensor([[True, False], [True, True]]))
    for copy in (pickle.loads(pickle.dumps(rate)), rate.clone()):
        copy.update(torch.tensor([True]))
        assert copy.compute().item() == pytest.approx(0.8)
    assert rate.compute().item() == 0.75


def test_scores_are_refused() -> None:
    with pytest.raises(TypeError, match=r"torch.bool, got torch.float32"):
        MultipleChoiceAccuracy().update(torch.tensor([0.5]))


def test_what_is_better() -> None:
    assert [kind.higher_is_better for kind in RATES] == [None, True, True, False]
