# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import pytest

from medvlt.data.drops import ReadReport
from medvlt.data.samples import Chain, SampleSet, Source, View, copy_uid, shuffle_key
from medvlt.types import Sample


def sample(number: int) -> Sample:
    return Sample(uid=f"u{number}", question="q", options={"A": "x", "B": "y"}, answer_label="A", answer="x")


class Counting(Sequence[Sample]):
    """Builds samples on demand and remembers which."""

    def __init__(self) -> None:
        self.built: list[int] = []

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        self.built.append(index)
        return sample(index)

    def light(self, index: int) -> Sample:
        return sample(index)


def uids(samples: Sequence[Sample]) -> list[str]:
    return [samples[index].uid for index in range(len(samples))]


def test_a_set_builds_nothing_ahead() -> None:
    lazy = Counting()
    samples = SampleSet(lazy)
    assert (len(samples), samples.uids) == (5, ("u0", "u1", "u2", "u3", "u4"))
    part = samples.select([3, 1])
    assert part.uids == ("u3", "u1")
    assert lazy.built == []
    assert part[1].uid == "u1"
    assert lazy.built == [1]


def test_positions_are_those_of_a_list() -> None:
    samples, expected = SampleSet(Counting()), [f"u{i}" for i in range(5)]
    assert uids(samples) == expected
    assert samples[-1].uid == "u4"
    assert uids(samples[3:0:-1]) == expected[3:0:-1]
    assert uids(samples[1:][1:3]) == expected[1:][1:3]
    assert [one.uid for one in samples] == expected
    for index in (5, -6):
        with pytest.raises(IndexError):
            samples[index]


def test_reports() -> None:
    samples = SampleSet(Counting(), ReadReport("toy", 9, 5))
    assert SampleSet([sample(0)]).report == ReadReport("memory", 1, 1)
    assert samples.select([0, 1]).report == ReadReport("toy", 9, 2)


def test_chain() -> None:
    chain = Chain([SampleSet([sample(0), sample(1)]), SampleSet([]), SampleSet([sample(2)])])
    assert uids(chain) == ["u0", "u1", "u2"]
    assert [one.uid for one in chain[1:]] == ["u1", "u2"]
    assert (chain[-1].uid, chain.light(1).uid) == ("u2", "u1")
    with pytest.raises(IndexError):
        chain[3]


def test_copies_get_names_of_their_own() -> None:
    view = View(SampleSet([sample(0), sample(1)]), [0, 1, 0], [0, 0, 2])
    assert uids(view) == ["u0", "u1", "u0#3"]
    assert [view.light(i).uid for i in range(3)] == uids(view)
    assert uids(view[1:]) == ["u1", "u0#3"]
    assert copy_uid("u", 0) == "u"


def test_shuffle_key_depends_on_both() -> None:
    keys = {shuffle_key(seed, uid) for seed in range(3) for uid in ("1", "2", "11")}
    assert len(keys) == 9
    assert shuffle_key(1, "u") == shuffle_key(1, "u")


def test_source_is_told_by_its_method() -> None:
    class Mine:
        def load(self) -> SampleSet:
            return SampleSet([])

    assert isinstance(Mine(), Source)
    assert not isinstance(object(), Source)
