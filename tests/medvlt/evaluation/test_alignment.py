# SPDX-License-Identifier: Apache-2.0
"""Runs side by side: the same questions, distinct names, and what differs said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy_runs import toy_record, toy_run

from medvlt.data.samples import uids_fingerprint
from medvlt.errors import DataError
from medvlt.evaluation.alignment import align, sampling_text
from medvlt.evaluation.runs import EvaluationRun, read_run, write_run


def run(folder: Path, label: str = "A", *, benchmarks: dict[str, int] | None = None, **settings: Any) -> EvaluationRun:
    return read_run(toy_run(folder, label, benchmarks or {"x": 10}, **settings))


def edited(folder: Path, **fields: Any) -> EvaluationRun:
    """A run of two questions, some fields of the second changed."""
    records = [toy_record("x", number, 0, right=True) for number in range(2)]
    records[1] |= fields
    about = json.loads((toy_run(folder, "A", {"x": 2}) / "run.json").read_text())
    about["benchmarks"]["x"]["uids"] = uids_fingerprint([record["uid"] for record in records])
    write_run(folder, {**about, "label": folder.name}, records, overwrite=True)
    return read_run(folder)


def test_runs_over_different_questions_are_refused_and_each_loss_is_counted(tmp_path: Path) -> None:
    a = run(tmp_path / "a", "A", left_out={("x", 3), ("x", 4)})
    b = run(tmp_path / "b", "B", left_out={("x", 4), ("x", 7), ("x", 9)})
    with pytest.raises(DataError, match=r"A lacks 1 of 9 \(x/3\); B lacks 2 of 9 \(x/7, x/9\).*intersect=true"):
        align([a, b])
    with pytest.raises(DataError, match="different questions of x"):
        align([a], baseline=b)


def test_the_intersection_keeps_the_shared_questions_in_one_order_and_says_so(tmp_path: Path) -> None:
    right = [number % 3 == 0 for number in range(10)]
    a = run(tmp_path / "a", "A", left_out={("x", 3)}, correct={"x": right})
    b = run(tmp_path / "b", "B", left_out={("x", 9)}, correct={"x": right})
    aligned = align([a, b], intersect=True)
    kept = tuple(f"x/{number}" for number in (0, 1, 2, 4, 5, 6, 7, 8))
    for one in aligned.runs:
        assert one.benchmarks["x"].uids == kept
        assert one.benchmarks["x"].correct[:, 0].tolist() == [right[int(uid[2:])] for uid in kept]
    assert any("x is compared on 8 of 10 questions" in note for note in aligned.notes)


def test_a_run_in_another_order_is_brought_into_the_first_ones(tmp_path: Path) -> None:
    a = run(tmp_path / "a", "A", correct={"x": [True] + [False] * 9})
    turned = a.benchmarks["x"].select(reversed(a.benchmarks["x"].uids))
    b = EvaluationRun(tmp_path / "b", a.about, {"x": turned})
    aligned = align([a, b])
    assert aligned.runs[1].benchmarks["x"].correct[:, 0].tolist() == [True] + [False] * 9
    assert not aligned.notes


def test_runs_that_share_nothing_and_no_run_at_all_are_refused(tmp_path: Path) -> None:
    low = {("x", number) for number in range(5)}
    a = run(tmp_path / "a", "A", left_out=low)
    b = run(tmp_path / "b", "B", left_out={("x", number) for number in range(5, 10)})
    with pytest.raises(DataError, match="share no question of x"):
        align([a, b], intersect=True)
    with pytest.raises(DataError, match="at least one evaluation"):
        align([])


@pytest.mark.parametrize(
    "fields",
    [{"answer_label": "A"}, {"options": {"A": "a", "B": "b", "C": "c", "D": "d"}}],
    ids=["other answer", "other options"],
)
def test_the_same_uid_with_another_question_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"one and two have other options or another right answer for 1 questions of x"):
        align([edited(tmp_path / "one"), edited(tmp_path / "two", **fields)])


def test_outputs_without_options_or_answers_pass_and_other_pictures_are_noted(tmp_path: Path) -> None:
    bare = edited(tmp_path / "two", options={}, answer_label=None)
    assert not align([edited(tmp_path / "one"), bare]).notes
    other = edited(tmp_path / "five", answer_label="A")
    with pytest.raises(DataError, match="one and five have other options or another right answer for 1 questions"):
        align([bare, read_run(tmp_path / "one"), other])  # the first has nothing to compare with
    first, second = (edited(tmp_path / name, picture_ids=[name]) for name in ("three", "four"))
    assert any("different pictures (by their bytes) in 1 of 2" in note for note in align([first, second]).notes)


def test_rotated_options_are_the_same_question_only_under_a_control(tmp_path: Path) -> None:
    plain, rotated = run(tmp_path / "a", "A"), run(tmp_path / "b", "A", rotate=1, control={"name": "rotated"})
    assert align([plain, rotated]).labels == ("A", "A [rotated]")
    with pytest.raises(DataError, match="other options"):
        align([plain, run(tmp_path / "c", "C", rotate=1)])


def test_the_baseline_comes_last_and_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", "A"), run(tmp_path / "b", "B")
    assert align([a, b, a], baseline=a).labels == ("B", "A")
    alone = align([], baseline=b)
    assert alone.labels == ("B",)
    assert alone.baseline


def test_equal_labels_get_as_much_of_their_folder_as_tells_them_apart(tmp_path: Path) -> None:
    folders = [tmp_path / "one" / "run", tmp_path / "two" / "run", tmp_path / "other"]
    runs = [run(folder, "A" if folder.name == "run" else "B") for folder in folders]
    assert align(runs).labels == ("A (one/run)", "A (two/run)", "B")


def test_what_differs_in_the_protocol_is_said(tmp_path: Path) -> None:
    a = run(tmp_path / "a", "A")
    b = run(
        tmp_path / "b", "B", n=2,
        about={"grader": {"policy": "reference_eval", "version": "1"}, "prompt": "plain", "limited_to": 4},
    )  # fmt: skip
    c = run(tmp_path / "c", "C")
    c = EvaluationRun(
        c.folder, {**c.about, "benchmarks": {"x": {**c.about["benchmarks"]["x"], "expected": 1996}}}, c.benchmarks
    )
    notes = "\n".join(align([a, b, c]).notes)
    assert "Warning: the runs were graded by different rules: robust, version 1 (A, C); reference_eval, ver" in notes
    assert "different prompts: medvlthinker (A, C); plain (B)" in notes
    assert "sampled differently: n=1, greedy (A, C); n=2, temperature 1.0 (B)" in notes
    assert "Warning: B was limited to 4" in notes
    assert "Warning: C was asked 10 of 1,996 questions of x" in notes
    assert not align([a]).notes


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        ({"n": 3, "temperature": 0.0, "top_p": 0.9, "top_k": 5}, "n=3, greedy"),
        ({"n": 8, "temperature": 0.5, "top_p": 0.95, "top_k": 0}, "n=8, temperature 0.5, top_p 0.95"),
        ({"n": 1, "temperature": None, "top_p": None, "top_k": None}, "n=1, temperature not stored"),
    ],
)
def test_sampling_in_words(tmp_path: Path, sampling: dict[str, Any], text: str) -> None:
    assert sampling_text(EvaluationRun(tmp_path, {"sampling": sampling}, {})) == text
