# SPDX-License-Identifier: Apache-2.0
"""What a selection takes, against a loop over dictionaries, and against the numbers of the reference."""

from __future__ import annotations

import logging
import pickle
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlt.curation.ledger import Ledger, Probe
from medvlt.curation.selection import Selected, Selection, SelectionReport
from medvlt.data.samples import SampleSet, Source, shuffle_key, uids_fingerprint
from medvlt.errors import ConfigurationError, DataError
from medvlt.rewards.grade import GRADER_VERSION
from medvlt.types import Sample

PROBE = Probe("tiny", "model", "plain", {"n": 16}, 42, grader_version=GRADER_VERSION)

HISTOGRAM_7B = [8123, 4604, 3012, 2174, 1593, 1109, 811, 616, 455, 333, 218, 160, 109, 80, 39, 17, 3]
"""Published: m23k, Qwen2.5-VL-7B, questions with 0 to 16 right answers of 16."""


def sample(number: int) -> Sample:
    return Sample(f"set:{number}:x", f"Question {number}?", {"A": "yes", "B": "no"}, "A", "yes", dataset_name="set")


def row(strict: int, robust: int | None = None, errors: int = 0) -> dict[str, Any]:
    counts = {"strict": strict, "robust": strict if robust is None else robust, "format": 0, "truncated": 0}
    return {"n": 16 - errors, "errors": errors, "mean_tokens": 1.0, **counts}


def write(path: Path, rows: dict[int, dict[str, Any]], probe: Probe = PROBE) -> Path:
    Ledger().with_probe(probe, {f"set:{number}:x": counts for number, counts in rows.items()}).write(path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Questions 0 to 8 with strict counts 0 to 8, robust ones twice that, question 9 half failed, 10 and 11 unknown."""
    return write(tmp_path / "l", {i: row(i, 2 * i) for i in range(9)} | {9: row(3, errors=8)})


SAMPLES = SampleSet([sample(number) for number in range(12)])


def chosen(ledger: Path, probe: str | None = None, **changes: Any) -> Selection:
    """A selection that takes what little is measured."""
    return Selection(ledger, probe, **{"min_measured": 0.0, **changes})


def numbers(samples: SampleSet) -> list[int]:
    return [int(uid.split(":")[1]) for uid in samples.uids]


def test_the_published_histogram_gives_the_published_selection(tmp_path: Path) -> None:
    counts = [count for count, number in enumerate(HISTOGRAM_7B) for _ in range(number)]
    random.Random(0).shuffle(counts)
    assert (len(counts), sum(counts)) == (23_456, 52_019)
    path = write(tmp_path / "ledger", {number: row(count) for number, count in enumerate(counts)})
    samples = SampleSet([sample(number) for number in range(23_465)])  # nine were never measured
    selected = Selection(path).apply(samples)
    assert len(selected) == 13_919
    assert isinstance(selected.report, SelectionReport)
    assert selected.report.left_out == {"below the band": 8123, "above the band": 1414, "not measured": 9}
    assert (selected.report.read, selected.report.kept) == (23_465, 13_919)


def test_the_band_takes_both_ends_and_counts_go_into_the_samples(path: Path) -> None:
    selected = chosen(path, low=2, high=4).apply(SAMPLES)
    assert numbers(selected) == [2, 3, 4]
    assert [s.pass_count for s in selected] == [selected.light(i).pass_count for i in range(3)] == [2, 3, 4]
    assert [s.question for s in selected[1:]] == ["Question 3?", "Question 4?"]
    assert [s.pass_count for s in pickle.loads(pickle.dumps(selected))] == [2, 3, 4]  # workers of a loader get a copy


def test_the_robust_count_can_be_used_instead(path: Path) -> None:
    selected = chosen(path, count="robust", low=2, high=8).apply(SAMPLES)
    assert numbers(selected) == [1, 2, 3, 4]
    assert [s.pass_count for s in selected] == [2, 4, 6, 8]


def test_unmeasured_questions_are_dropped_kept_or_refused(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert numbers(chosen(path).apply(SAMPLES)) == [1, 2, 3, 4, 5, 6, 7]
    assert "2 not measured" in caplog.text
    assert "1 completions failed" in caplog.text
    kept = chosen(path, unmeasured="keep").apply(SAMPLES)
    assert numbers(kept) == [1, 2, 3, 4, 5, 6, 7, 9, 10, 11]
    assert [s.pass_count for s in kept][-3:] == [-1, -1, -1]
    with pytest.raises(DataError, match=r"3 of 12 questions have no pass count .* such as set:9:x, set:10:x"):
        chosen(path, unmeasured="refuse").apply(SAMPLES)
    measured = SampleSet([sample(number) for number in range(9)])
    assert len(chosen(path, unmeasured="refuse").apply(measured)) == 7


def test_by_difficulty_the_unmeasured_come_last(path: Path) -> None:
    for order, first in (("easy_to_hard", [3, 2, 1]), ("hard_to_easy", [1, 2, 3])):
        selected = chosen(path, high=3, unmeasured="keep", order=order).apply(SAMPLES)
        assert numbers(selected)[:3] == first
        assert set(numbers(selected)[3:]) == {9, 10, 11}


def test_the_order_does_not_depend_on_how_a_set_is_stored(tmp_path: Path) -> None:
    path = write(tmp_path / "l", {number: row(number % 3) for number in range(40)})
    one = SampleSet([sample(number) for number in range(40)])
    other = SampleSet([sample(number) for number in reversed(range(40))])
    for order in ("shuffled", "easy_to_hard", "hard_to_easy"):
        selection = chosen(path, order=order)
        assert selection.apply(one).uids == selection.apply(other).uids
        assert selection.apply(one).uids != replace(selection, seed=1).apply(one).uids
    assert chosen(path).apply(one).uids == tuple(reversed(chosen(path).apply(other).uids))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_equals_a_plain_loop(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    known = data.draw(st.dictionaries(st.integers(0, 9), st.tuples(st.integers(0, 16), st.booleans()), min_size=5))
    marks = data.draw(st.dictionaries(st.integers(0, 9), st.booleans()))
    low = data.draw(st.integers(0, 16))
    high = data.draw(st.integers(low, 16))
    unmeasured = data.draw(st.sampled_from(["drop", "keep"]))
    order = data.draw(st.sampled_from(["source", "shuffled", "easy_to_hard", "hard_to_easy"]))
    path = tmp_path_factory.mktemp("p") / "ledger"
    rows = {f"set:{i}:x": row(0, errors=16) if failed else row(count) for i, (count, failed) in known.items()}
    Ledger().with_probe(PROBE, rows).with_marks({"m": {f"set:{i}:x": v for i, v in marks.items()}}).write(path)
    samples = SampleSet([sample(number) for number in range(10)])

    expected: list[tuple[int, int]] = []
    for number in range(10):
        if marks.get(number):
            continue
        count, failed = known.get(number, (0, True))
        if failed and unmeasured == "drop":
            continue
        if not failed and (count < low or count > high):
            continue
        expected.append((number, -1 if failed else count))
    random_order = lambda pair: shuffle_key(42, f"set:{pair[0]}:x")  # noqa: E731
    if order != "source":
        expected.sort(key=random_order)
    if order in ("easy_to_hard", "hard_to_easy"):
        measured = [pair for pair in expected if pair[1] >= 0]
        measured.sort(key=lambda pair: pair[1], reverse=order == "easy_to_hard")  # sorting is stable
        expected = measured + [pair for pair in expected if pair[1] < 0]

    selection = chosen(path, None, low=low, high=high, unmeasured=unmeasured, order=order, without_marks=["m"])
    if not expected:
        with pytest.raises(DataError, match="leaves none of 10"):
            selection.apply(samples)
        return
    selected = selection.apply(samples)
    assert [(int(s.uid.split(":")[1]), s.pass_count) for s in selected] == expected
    decision = selection.decide(samples)
    assert decision.left_out.total() == 10 - len(expected)
    assert Counter(decision.reasons.values())[None] == len(expected)
    assert decision.unexamined == {"m": 10 - len(marks)}


def test_a_set_of_which_too_little_is_measured_is_refused(path: Path) -> None:
    """Questions 0 to 8 are measured, 9 failed, the others were never asked."""
    probe = Ledger.read(path).probes["tiny"]
    with pytest.raises(DataError, match=r"measured 9 of the 12 questions .*75.0%.* asks for 95.0%") as caught:
        Selection(path).apply(SAMPLES)
    message = str(caught.value)
    assert "asked 10 questions" in message
    assert "10 of these 12 among them, of which 1 have completions that failed" in message
    assert probe.fingerprint in message
    assert uids_fingerprint(SAMPLES.uids) in message
    assert numbers(Selection(path, min_measured=0.75).apply(SAMPLES)) == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(DataError, match="measured 9 of the 12"):
        Selection(path, min_measured=0.76, unmeasured="keep").apply(SAMPLES)


def test_the_exact_share_is_enough(tmp_path: Path) -> None:
    hundred = SampleSet([sample(number) for number in range(100)])
    path = write(tmp_path / "l", {number: row(1) for number in range(7)})
    assert len(Selection(path, min_measured=0.07).apply(hundred)) == 7


def test_a_probe_that_mostly_failed_is_no_probe(tmp_path: Path) -> None:
    """All questions were asked, and the ledger is of this set; yet hardly one has a count."""
    rows = {number: row(1, errors=1) for number in range(12)} | {0: row(1)}
    with pytest.raises(DataError, match=r"measured 1 of the 12 .*12 of these 12 among them, of which 11 have"):
        Selection(write(tmp_path / "l", rows)).apply(SAMPLES)


def test_counts_of_another_grader_are_refused_unless_accepted(tmp_path: Path) -> None:
    path = write(tmp_path / "l", {i: row(i) for i in range(9)}, replace(PROBE, grader_version="0"))
    with pytest.raises(DataError, match=r"9 pass counts .* version '0' of the grader.*accept_grader_version=0"):
        chosen(path).apply(SAMPLES)
    assert len(chosen(path, accept_grader_version="0").apply(SAMPLES)) == 7


def test_only_the_grader_of_the_questions_at_hand_matters(tmp_path: Path) -> None:
    old, new = {"set:50:x": row(1)}, {f"set:{i}:x": row(i) for i in range(9)}
    ledger = Ledger().with_probe(replace(PROBE, grader_version="0"), old).with_probe(PROBE, new)
    ledger.write(tmp_path / "l")
    assert len(chosen(tmp_path / "l").apply(SAMPLES)) == 7


def test_the_probe_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    rows = {f"set:{i}:x": row(i) for i in range(9)}
    other = replace(PROBE, name="other", sampling={"n": 16, "top_p": 0.5})
    Ledger().with_probe(PROBE, rows).with_probe(other, {uid: row(16) for uid in rows}).write(tmp_path / "l")
    for probe in (None, "third"):
        with pytest.raises(DataError, match="set probe to one of: tiny, other"):
            chosen(tmp_path / "l", probe).apply(SAMPLES)
    assert numbers(chosen(tmp_path / "l", "other", high=16).apply(SAMPLES)) == list(range(9))


def test_a_mark_must_be_there_and_what_was_never_examined_stays(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match="no mark 'blind'; it has: none"):
        chosen(path, without_marks=["blind"]).apply(SAMPLES)
    Ledger.read(path).with_marks({"blind": {"set:1:x": True, "set:2:x": False}}).write(path)
    with caplog.at_level(logging.WARNING):
        selected = chosen(path, without_marks=["blind"]).apply(SAMPLES)
    assert numbers(selected) == [2, 3, 4, 5, 6, 7]
    assert "10 never examined for mark blind (kept)" in caplog.text
    assert selected.report.left_out["marked blind"] == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 5, "high": 4},
        {"low": -1},
        {"count": "lenient"},
        {"unmeasured": "guess"},
        {"order": "random"},
        {"min_measured": 1.01},
        {"min_measured": -0.1},
    ],
)
def test_settings_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="selection: "):
        Selection("l", **wrong)


def test_a_band_beyond_the_completions_is_refused(path: Path) -> None:
    with pytest.raises(DataError, match="band 1 to 17 is not within 0 to 16"):
        chosen(path, high=17).apply(SAMPLES)


def test_an_empty_selection_says_why(path: Path) -> None:
    with pytest.raises(DataError, match=r"leaves none of 12 questions .*below the band 9.*data histogram"):
        chosen(path, low=12, high=16).apply(SAMPLES)


def test_a_selected_source_is_a_source(path: Path) -> None:
    class Twelve(Source):
        def load(self) -> SampleSet:
            return SAMPLES

    source = Selected(Twelve(), chosen(path, low=2, high=3))
    assert [s.pass_count for s in source.load()] == [2, 3]
    assert source.load().uids == source.load().uids
