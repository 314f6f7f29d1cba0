# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

import pytest

from medvlt.data.phantom.streams import SPLITS, Split, split_of, stream


def test_a_stream_is_the_same_on_every_machine() -> None:
    # Literals: a stream seeded by the built-in hash would differ from one process to the next.
    assert stream(0, "train", 0, "values").random() == pytest.approx(0.5312924057227922, abs=1e-15)


def test_streams_differ_in_every_part_of_their_name() -> None:
    names: list[tuple[int, Split, int, str]] = [
        (0, "train", 0, "a"),
        (1, "train", 0, "a"),
        (0, "test", 0, "a"),
        (0, "train", 1, "a"),
        (0, "train", 0, "b"),
    ]
    assert len({stream(*name).random() for name in names}) == len(names)


def test_splits_get_their_shares() -> None:
    counts = Counter(split_of("family", str(number)) for number in range(20_000))
    assert set(counts) == set(SPLITS)
    for split, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        assert counts[split] / 20_000 == pytest.approx(share, abs=0.01)


def test_of_five_neighbours_each_split_gets_its_part() -> None:
    orders = set()
    for block in range(30):
        splits = [split_of("family", "", (1, 5 * block + rank)) for rank in range(5)]
        assert Counter(splits) == {"train": 3, "validation": 1, "test": 1}
        orders.add(tuple(splits))
    assert len(orders) > 5  # no pattern to be learned


def test_the_place_of_a_value_outweighs_its_key() -> None:
    assert len({split_of("family", str(key), (0, 7)) for key in range(50)}) == 1
