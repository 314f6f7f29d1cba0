# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvlt.data.drops import DropReason
from medvlt.data.mixture import Mixture, Subset, WithoutPictures
from medvlt.data.phantom import Phantom
from medvlt.data.samples import SampleSet, Source
from medvlt.errors import ConfigurationError, DataError
from medvlt.types import Sample


@dataclass(frozen=True)
class Toy(Source):
    """Samples name:0, name:1, ...; every other one has reasoning."""

    name: str
    size: int
    backwards: bool = False

    def load(self) -> SampleSet:
        numbers = range(self.size)[:: -1 if self.backwards else 1]
        return SampleSet([sample(self.name, i) for i in numbers])


def sample(name: str, index: int) -> Sample:
    return Sample(
        uid=f"{name}:{index}",
        question="q",
        options={"A": "x", "B": "y"},
        answer_label="A",
        answer="x",
        reasoning="r" if index % 2 else None,
        dataset_name=name,
        dataset_index=index,
    )


def uids(source: Source) -> list[str]:
    samples = source.load()
    assert [one.uid for one in samples] == list(samples.uids) == [samples.light(i).uid for i in range(len(samples))]
    assert samples.report.kept == len(samples)
    return list(samples.uids)


def test_without_weights_one_after_the_other() -> None:
    assert uids(Mixture([Toy("a", 2), Toy("b", 3)])) == ["a:0", "a:1", "b:0", "b:1", "b:2"]


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    data=st.data(),
    seed=st.integers(0, 5),
    size=st.integers(1, 300),
)
def test_weights_are_shares_of_the_result(sizes: list[int], data: st.DataObject, seed: int, size: int) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.3, 1, 2, 7]), min_size=len(sizes), max_size=len(sizes)))
    if not any(weights):
        weights[0] = 1.0
    sources: list[Source] = [Toy("abcd"[i], number) for i, number in enumerate(sizes)]
    mixed = uids(Mixture(sources, weights, size=size, seed=seed, repeat=True))
    assert len(mixed) == len(set(mixed)) == size
    for i, number in enumerate(sizes):
        mine = [uid for uid in mixed if uid[0] == "abcd"[i]]
        assert abs(len(mine) - size * weights[i] / sum(weights)) < 1
        times = Counter(uid.partition("#")[0] for uid in mine)
        low, high = divmod(len(mine), number)[0], -(-len(mine) // number)
        assert all(low <= times[f"{'abcd'[i]}:{j}"] <= high for j in range(number))


@pytest.mark.parametrize(
    ("sizes", "weights", "expected"),
    [
        ((30, 70), (3, 7), (30, 70)),
        ((10, 100), (1, 1), (10, 10)),
        ((3, 100), (0.3, 0.7), (3, 7)),
        ((5, 9), (0, 1), (0, 9)),
    ],
)
def test_largest_mixture_without_repeats(
    sizes: tuple[int, int], weights: tuple[float, float], expected: tuple[int, int]
) -> None:
    mixed = uids(Mixture([Toy("a", sizes[0]), Toy("b", sizes[1])], list(weights)))
    assert (sum(uid[0] == "a" for uid in mixed), sum(uid[0] == "b" for uid in mixed)) == expected
    assert not any("#" in uid for uid in mixed)


def test_choice_and_order_follow_from_seed_and_uids() -> None:
    def mixed(seed: int, backwards: bool = False) -> list[str]:
        return uids(Mixture([Toy("a", 50, backwards), Toy("b", 50)], [1, 1], size=40, seed=seed))

    assert mixed(0) == mixed(0) == mixed(0, backwards=True)
    assert mixed(0) != mixed(1)
    assert set(mixed(0)) != set(mixed(1))
    whole = [uids(Mixture([Toy("a", 20), Toy("b", 20)], [1, 1], seed=seed)) for seed in (0, 1)]
    assert whole[0] != whole[1]
    assert set(whole[0]) == set(whole[1])
    changes = sum(one[0] != two[0] for one, two in pairwise(mixed(0)))
    assert changes > 10  # the sources are interleaved


def test_repeats_only_when_asked() -> None:
    with pytest.raises(DataError, match=r"takes 15 samples of memory, which has 10.*20 or less.*repeat=true"):
        Mixture([Toy("a", 10), Toy("b", 100)], [1, 1], size=30).load()


def test_what_two_sources_share_comes_once() -> None:
    mixture = Mixture([Toy("a", 3), Toy("a", 5), Toy("b", 1)])
    assert uids(mixture) == ["a:0", "a:1", "a:2", "a:3", "a:4", "b:0"]
    report = mixture.load().report
    assert report.drops == {DropReason.DUPLICATE: 3}
    assert (report.read, report.kept, [part.kept for part in report.parts]) == (9, 6, [3, 2, 1])


def test_a_source_without_weight_takes_nothing_from_the_others() -> None:
    mixture = Mixture([Toy("a", 3), Toy("a", 5)], [0, 1])
    assert sorted(uids(mixture)) == ["a:0", "a:1", "a:2", "a:3", "a:4"]
    assert not mixture.load().report.drops


@pytest.mark.parametrize(
    ("weights", "size", "message"),
    [
        ([1.0], None, "one weight per source"),
        ([1.0, -1.0], None, "finite"),
        ([0.0, 0.0], None, "finite"),
        ([1.0, float("nan")], None, "finite"),
        ([1.0, 1.0], 0, "size"),
        (None, 5, "needs weights"),
    ],
)
def test_settings_are_checked(weights: list[float] | None, size: int | None, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Mixture([Toy("a", 1), Toy("b", 1)], weights, size)


def test_empty_mixtures() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        Mixture([])
    with pytest.raises(DataError, match="no samples of its own"):
        Mixture([Toy("a", 3), Toy("a", 3)], [1, 1]).load()


def test_subset_by_name() -> None:
    both = Mixture([Toy("a", 3), Toy("b", 2), Toy("c", 1)])
    assert uids(Subset(both, dataset_name="b")) == ["b:0", "b:1"]
    assert uids(Subset(both, dataset_name=["c", "a"])) == ["a:0", "a:1", "a:2", "c:0"]
    with pytest.raises(DataError, match=r"no sample of d; its data sets: a \(3\), b \(2\), c \(1\)"):
        Subset(both, dataset_name=["a", "d"]).load()


def test_subset_with_reasoning() -> None:
    assert uids(Subset(Toy("a", 5), with_reasoning=True)) == ["a:1", "a:3"]
    with pytest.raises(DataError, match="with_reasoning=false"):
        Subset(Toy("a", 1), with_reasoning=True).load()


def test_subset_shuffles_before_it_cuts() -> None:
    first = uids(Subset(Toy("a", 100), shuffle_seed=3, limit=10))
    assert first == uids(Subset(Toy("a", 100, backwards=True), shuffle_seed=3, limit=10))
    assert first == uids(Subset(Toy("a", 100), shuffle_seed=3))[:10]
    assert max(int(uid[2:]) for uid in first) > 10
    assert uids(Subset(Toy("a", 100), limit=2)) == ["a:0", "a:1"]
    assert uids(Subset(Toy("a", 2), limit=5)) == ["a:0", "a:1"]
    with pytest.raises(ConfigurationError, match="limit"):
        Subset(Toy("a", 1), limit=0)


class Watched(list[Sample]):
    """Counts how often a whole sample is asked for, pictures and all."""

    whole = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override] # noqa: ANN001, ANN204
        self.whole += 1
        return super().__getitem__(index)

    def light(self, index: int) -> Sample:
        return super().__getitem__(index)


def test_without_pictures_is_the_same_but_for_the_pictures() -> None:
    seen = Mixture([Phantom("test", 4, modality="picture"), Phantom("test", 3, modality="text")])
    blind = WithoutPictures(seen).load()
    assert uids(WithoutPictures(seen)) == uids(seen)
    assert list(blind) == [replace(one, images=()) for one in seen.load()]
    assert sum(bool(one.images) for one in seen.load()) == 4
    assert blind.report == seen.load().report
    assert list(WithoutPictures(Subset(seen, limit=2)).load()) == list(blind[:2])


def test_without_pictures_reads_none() -> None:
    watched = Watched(replace(sample("a", i), images=(b"picture",)) for i in range(3))

    @dataclass(frozen=True)
    class Given(Source):
        def load(self) -> SampleSet:
            return SampleSet(watched)

    blind = WithoutPictures(Given()).load()
    assert [one.images for one in blind] == [blind.light(i).images for i in range(3)] == [(), (), ()]
    assert list(blind.uids) == ["a:0", "a:1", "a:2"]
    assert watched.whole == 0
