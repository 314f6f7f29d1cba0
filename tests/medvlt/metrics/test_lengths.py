# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from medvlt.metrics.lengths import MeanLength


def test_mean_length_equals_the_mean() -> None:
    generator = np.random.default_rng(0)
    batches = [generator.integers(1, 4096, size) for size in (3, 0, 17)]
    length = MeanLength()
    for batch in batches:
        length.update(torch.from_numpy(batch))
    assert length.compute().item() == pytest.approx(np.concatenate(batches).mean())
    length.reset()
    assert length.compute().item() == 0.0


def test_unequal_ranks_are_not_averaged() -> None:
    left, right = MeanLength(), MeanLength()
    left.update(torch.tensor([10]))
    right.update(torch.tensor([20, 30, 40]))
    copy = pickle.loads(pickle.dumps(right))
    copy.merge_state(left)
    assert copy.compute().item() == 25.0
    assert right.compute().item() == 30.0


def test_many_tokens_are_counted_exactly() -> None:
    length = MeanLength()
    length.update(torch.tensor([2**40]))
    length.update(torch.tensor([1]))
    assert length.tokens.item() == 2**40 + 1


@pytest.mark.parametrize("lengths", [torch.tensor([1.0]), torch.tensor([True])])
def test_only_whole_numbers_are_lengths(lengths: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="integer type"):
        MeanLength().update(lengths)
