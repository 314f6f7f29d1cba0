# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medvlt.data.packing import EncodedPrompt, Group, Segment, balance, pack


def prompt(length: int, *, shift: int = 0) -> EncodedPrompt:
    """Positions that run ahead of the token count by `shift`, as after a picture they lag behind."""
    return EncodedPrompt(torch.arange(length), torch.arange(length).expand(3, -1) + shift)


def test_layout_by_hand() -> None:
    groups = [
        Group(prompt(3), [torch.tensor([10, 11]), torch.tensor([12])], [0.5, 0.25], "a"),
        Group(prompt(2, shift=5), [torch.tensor([20, 21, 22])], [1.0], "b"),
    ]
    batch = pack(groups)
    assert batch.input_ids.tolist() == [[0, 1, 2, 10, 11, 12, 0, 1, 20, 21, 22]]
    assert batch.position_ids[0, 0].tolist() == [0, 1, 2, 3, 4, 3, 5, 6, 7, 8, 9]
    assert batch.segments == (Segment(0, 3), Segment(3, 5, 0), Segment(5, 6, 0), Segment(6, 11))
    assert batch.sources.tolist() == [2, 3, 2, 7, 8, 9]
    assert batch.targets.tolist() == [10, 11, 12, 20, 21, 22]
    assert batch.weights.tolist() == [0.5, 0.5, 0.25, 1, 1, 1]
    assert batch.completion_lengths.tolist() == [2, 1, 3]
    assert batch.uids == ("a", "a", "b")
    assert batch.pixel_values is None
    assert groups[0].tokens == 6


def test_segments_cover_the_row() -> None:
    batch = pack([Group(prompt(4), [torch.ones(n, dtype=torch.long) for n in (1, 5, 2)], [1, 1, 1])] * 3)
    edges = [segment[:2] for segment in batch.segments]
    assert edges[0][0] == 0
    assert edges[-1][1] == batch.input_ids.shape[1]
    assert all(left[1] == right[0] for left, right in itertools.pairwise(edges))


def test_move_keeps_everything() -> None:
    batch = pack([Group(prompt(2), [torch.tensor([5])], [1.0], "u")])
    moved = batch.to("meta")
    assert moved.input_ids.device.type == moved.weights.device.type == "meta"
    assert moved.uids == batch.uids
    assert moved.segments == batch.segments


@pytest.mark.parametrize("groups", [[], [Group(prompt(2), [], [])], [Group(prompt(2), [torch.tensor([])], [1.0])]])
def test_nothing_to_learn_is_refused(groups: list[Group]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        pack(groups)


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=60), st.data())
def test_balance(sizes: list[int], data: st.DataObject) -> None:
    bins = data.draw(st.integers(1, len(sizes)))
    filled = balance(sizes, bins)
    assert sorted(itertools.chain(*filled)) == list(range(len(sizes)))
    assert len(filled) == bins
    assert all(filled)
    # list scheduling: the item that ends last was put into the emptiest bin, which held at most the mean of the others
    heaviest = max(sum(sizes[i] for i in members) for members in filled)
    assert heaviest <= sum(sizes) / bins + (1 - 1 / bins) * max(sizes) + 1e-9


def test_balance_refuses_empty_bins() -> None:
    with pytest.raises(ValueError, match="3 bins"):
        balance([5, 5], 3)
