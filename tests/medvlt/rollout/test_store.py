# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlt.errors import DataError
from medvlt.rollout.store import CompletionStore, _gaps
from medvlt.types import Completion, RolloutGroup, RolloutKey, Sample, SamplingParams

IDENTITY = {"engine": {"weights": "abc"}, "sampling": {"temperature": 1.0}}


def questions(count: int) -> list[Sample]:
    return [Sample(f"q:{number}", "Which?", {"A": "yes", "B": "no"}, "A", "yes") for number in range(count)]


class Engine:
    """Answers with a function of the key alone; fails where told, and notes every completion it is asked for."""

    def __init__(self, fails: Sequence[tuple[str, int]] = (), salt: str = "") -> None:
        self.fails = set(fails)
        self.salt = salt
        self.asked: Counter[tuple[str, int]] = Counter()
        self.calls: list[int] = []

    def __call__(
        self, samples: Sequence[Sample], params: SamplingParams, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        self.calls.append(params.n)
        groups = []
        for sample, key in zip(samples, keys, strict=True):
            numbers = range(key.first, key.first + params.n)
            self.asked.update((sample.uid, number) for number in numbers)
            completions = tuple(self.completion(sample.uid, key.sample_seed(i), n) for i, n in enumerate(numbers))
            failed = all(c.finish_reason == "error" for c in completions)
            groups.append(RolloutGroup(sample, () if failed else (7, len(sample.uid)), completions))
        return groups

    def completion(self, uid: str, seed: int, number: int) -> Completion:
        if (uid, number) in self.fails:
            return Completion((), "", (), "error", 3, error="HTTP 500")
        ids = tuple(seed >> shift & 0xFFFF for shift in (0, 16, 32))
        return Completion(ids, f"{uid}{self.salt} \N{GREEK SMALL LETTER ALPHA} {seed}", (-1.0,) * 3, "stop", 3)


def opened(folder: Path, identity: dict[str, Any] = IDENTITY) -> CompletionStore:
    store = CompletionStore(folder)
    store.open(identity)
    return store


def complete(
    store: CompletionStore, engine: Engine, samples: Sequence[Sample], n: int = 4, digest: str = "d", name: str = "b"
) -> list[RolloutGroup]:
    keys = [RolloutKey(1, -1, sample.uid) for sample in samples]
    return store.complete(name, samples, [digest] * len(samples), SamplingParams(n=n), keys, engine)


def kept(groups: Sequence[RolloutGroup]) -> list[Any]:
    """All that a store promises to keep."""
    return [
        (g.sample.uid, g.prompt_token_ids, [(c.token_ids, c.text, c.finish_reason, c.version) for c in g.completions])
        for g in groups
    ]


def whole(samples: Sequence[Sample], n: int = 4) -> list[Any]:
    """What an engine gives without a store."""
    return kept(Engine()(samples, SamplingParams(n=n), [RolloutKey(1, -1, sample.uid) for sample in samples]))


def test_what_is_stored_is_not_asked_again(tmp_path: Path) -> None:
    samples, first, second = questions(5), Engine(), Engine()
    assert kept(complete(opened(tmp_path), first, samples)) == whole(samples)
    store = opened(tmp_path)
    assert store.questions == 5
    assert kept(complete(store, second, samples)) == whole(samples)
    assert set(first.asked.values()) == {1}
    assert not second.asked
    assert store.counts == (20, 0, 0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(1, 6), st.integers(1, 5)), max_size=6), st.integers(1, 6))
def test_any_history_of_interrupted_runs_gives_the_whole_groups(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[int, int, int]], n: int
) -> None:
    """Earlier runs that asked for some of the questions, in other batches and with other numbers of completions."""
    folder, everything, engine = tmp_path_factory.mktemp("store"), questions(12), Engine()
    for start, past_n, size in history:
        complete(opened(folder), engine, everything[start : start + size], past_n)
    store = opened(folder)
    groups = [group for start in range(0, 12, 5) for group in complete(store, engine, everything[start : start + 5], n)]
    assert kept(groups) == whole(everything, n)
    assert set(engine.asked.values()) == {1}


def test_more_completions_ask_for_the_missing_ones_and_fewer_for_none(tmp_path: Path) -> None:
    samples, engine = questions(3), Engine()
    complete(opened(tmp_path), engine, samples, 2)
    assert kept(complete(opened(tmp_path), engine, samples, 5)) == whole(samples, 5)
    assert engine.calls == [2, 3]
    store = opened(tmp_path)
    assert kept(complete(store, engine, samples, 1)) == whole(samples, 1)
    assert set(engine.asked.values()) == {1}
    assert store.counts == (3, 0, 0)


def test_what_failed_is_asked_again_and_nothing_else(tmp_path: Path) -> None:
    samples = questions(3)
    failing = [("q:0", 1), ("q:1", 0), ("q:1", 1), ("q:1", 2), ("q:1", 3), ("q:2", 2), ("q:2", 3)]
    first = complete(opened(tmp_path), Engine(failing), samples)
    assert [c.error for c in first[0].completions] == ["", "HTTP 500", "", ""]
    second = Engine([("q:1", 3)])
    store = opened(tmp_path)
    groups = complete(store, second, samples)
    assert set(second.asked) == set(failing)
    assert second.calls == [4, 2, 1]
    assert store.counts == (5, 7, 1)
    assert kept(groups)[::2] == whole(samples)[::2]
    assert groups[1].completions[3].finish_reason == "error"
    third = Engine()
    assert kept(complete(opened(tmp_path), third, samples)) == whole(samples)
    assert set(third.asked) == {("q:1", 3)}


def test_a_failure_never_takes_the_place_of_a_success(tmp_path: Path) -> None:
    """Two jobs at once: one got an answer, the other an error, to the same question."""
    one, two = opened(tmp_path), opened(tmp_path)
    complete(one, Engine(), questions(1))
    complete(two, Engine([("q:0", number) for number in range(4)]), questions(1))
    third = Engine()
    assert kept(complete(opened(tmp_path), third, questions(1))) == whole(questions(1))
    assert not third.asked


def test_two_jobs_that_agree_count_once(tmp_path: Path) -> None:
    one, two = opened(tmp_path), opened(tmp_path)
    complete(one, Engine(), questions(4))
    complete(two, Engine(), questions(4)[::-1])
    assert len(list(tmp_path.glob("*.parquet"))) == 1
    complete(two, Engine(), questions(5), 5)
    third = Engine()
    assert kept(complete(opened(tmp_path), third, questions(5), 5)) == whole(questions(5), 5)
    assert not third.asked


def test_two_jobs_that_contradict_one_another_are_an_error(tmp_path: Path) -> None:
    one, two = opened(tmp_path), opened(tmp_path)
    complete(one, Engine(), questions(2))
    complete(two, Engine(salt="!"), questions(3))
    with pytest.raises(DataError, match=r"question q:0 of b: completion 0 differs between \S+parquet and \S+parquet"):
        complete(opened(tmp_path), Engine(), questions(2))


def test_the_same_question_in_two_benchmarks_is_two(tmp_path: Path) -> None:
    engine = Engine()
    for name in ("b", "c"):
        assert kept(complete(opened(tmp_path), engine, questions(2), digest=name, name=name)) == whole(questions(2))
    assert set(engine.asked.values()) == {2}
    assert opened(tmp_path).questions == 4


def test_the_same_question_twice_in_a_batch(tmp_path: Path) -> None:
    samples = [*questions(2), *questions(1)]
    for _ in range(2):
        assert kept(complete(opened(tmp_path), Engine(), samples)) == whole(samples)


def test_another_prompt_is_an_error_unless_all_of_it_failed(tmp_path: Path) -> None:
    complete(opened(tmp_path), Engine([("q:1", number) for number in range(4)]), questions(2))
    with pytest.raises(DataError, match=r"question q:0 of b has other words, options or pictures"):
        complete(opened(tmp_path), Engine(), questions(2), digest="other")
    complete(opened(tmp_path), Engine(), questions(2)[1:], digest="other")


@pytest.mark.parametrize(
    ("now", "named"),
    [
        (IDENTITY | {"engine": {"weights": "def"}}, 'engine.weights: "abc" in the store, "def" now.'),
        (IDENTITY | {"sampling": {"temperature": 0.5}}, "sampling.temperature: 1.0 in the store, 0.5 now."),
        (IDENTITY | {"seed": None}, "seed: nothing in the store, null now."),
    ],
)
def test_another_identity_is_refused_and_named(now: dict[str, Any], named: str, tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(DataError) as caught:
        opened(tmp_path, now)
    assert f"sampled with other settings: {named}" in str(caught.value)
    assert "delete the folder" in str(caught.value)
    opened(tmp_path)


def test_an_unreadable_shard_is_named(tmp_path: Path) -> None:
    engine = Engine()
    complete(opened(tmp_path), engine, questions(40))
    (shard,) = tmp_path.glob("*.parquet")
    content = shard.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"<html>", flipped(content, 300), flipped(content, -300)):
        shard.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{shard.name} cannot be read .*delete it"):
            complete(opened(tmp_path), Engine(), questions(40))
    pq.write_table(pa.table({"uid": ["q:0"], "benchmark": ["b"]}), shard)
    with pytest.raises(DataError, match="other columns"):
        opened(tmp_path)
    shard.unlink()
    again = Engine()
    assert kept(complete(opened(tmp_path), again, questions(40))) == whole(questions(40))
    assert again.asked == engine.asked


def test_a_byte_that_changed_is_never_taken_for_a_completion(tmp_path: Path) -> None:
    complete(opened(tmp_path), Engine(), questions(5))
    (shard,) = tmp_path.glob("*.parquet")
    content, refused = shard.read_bytes(), 0
    for position in range(0, len(content), 31):
        shard.write_bytes(flipped(content, position))
        try:
            engine = Engine()
            assert kept(complete(opened(tmp_path), engine, questions(5))) == whole(questions(5))
            assert not engine.asked
        except DataError:
            refused += 1
    assert refused > len(content) / 31 / 2


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


def test_a_folder_without_an_identity_is_no_store(tmp_path: Path) -> None:
    complete(opened(tmp_path), Engine(), questions(1))
    (tmp_path / "store.json").unlink()
    with pytest.raises(DataError, match=r"no store\.json"):
        opened(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"format": 99, "identity": IDENTITY})])
def test_a_damaged_or_later_identity_is_refused(content: str, tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(DataError, match=r"store\.json (cannot be read|has format 99)"):
        opened(tmp_path)


def test_leftovers_of_a_killed_writer_do_no_harm(tmp_path: Path) -> None:
    complete(opened(tmp_path), Engine(), questions(1))
    (tmp_path / ".0123456789abcdef.parquet.77.tmp").write_bytes(b"half")
    second = Engine()
    complete(opened(tmp_path), second, questions(1))
    assert not second.asked


def test_a_call_that_fails_leaves_what_was_written_before(tmp_path: Path) -> None:
    """Whole groups are sampled and written before the runs that are missing inside others."""
    complete(opened(tmp_path), Engine([("q:0", 1)]), questions(1))
    engine = Engine()

    def broken(*args: Any) -> list[RolloutGroup]:
        if engine.calls:
            raise RuntimeError("out of memory")
        return engine(*args)

    with pytest.raises(RuntimeError):
        complete(opened(tmp_path), broken, questions(3))  # type: ignore[arg-type]
    again = Engine()
    assert kept(complete(opened(tmp_path), again, questions(3))) == whole(questions(3))
    assert set(again.asked) == {("q:0", 1)}


def test_texts_that_utf8_cannot_hold(tmp_path: Path) -> None:
    def odd(samples: Sequence[Sample], *_: Any) -> list[RolloutGroup]:
        completion = Completion((), "half \ud83d a pair", (), "stop", reported_tokens=5)
        return [RolloutGroup(sample, (), (completion,)) for sample in samples]

    fresh = complete(opened(tmp_path), odd, questions(1), 1)  # type: ignore[arg-type]
    stored = complete(opened(tmp_path), Engine(), questions(1), 1)
    assert fresh[0].completions[0].text == stored[0].completions[0].text == "half ? a pair"
    assert stored[0].completions[0].length == 5


@given(st.sets(st.integers(0, 9)), st.integers(0, 3), st.integers(1, 8))
def test_gaps_are_the_numbers_that_are_missing(present: set[int], start: int, n: int) -> None:
    asked = range(start, start + n)
    gaps = list(_gaps(dict.fromkeys(present), asked))  # type: ignore[arg-type]
    numbers = [first + i for first, length in gaps for i in range(length)]
    assert numbers == [number for number in asked if number not in present]
    assert all(after[0] > before[0] + before[1] for before, after in pairwise(gaps))
