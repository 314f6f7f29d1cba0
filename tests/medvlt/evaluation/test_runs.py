# SPDX-License-Identifier: Apache-2.0
"""Runs as they are stored, whole and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_runs import toy_record, toy_run

from medvlt.data.samples import uids_fingerprint
from medvlt.errors import DataError
from medvlt.evaluation.runs import EvaluationRun, read_run, shown_questions, write_run

RIGHT = [[True, False], [True, True], [False, False]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return toy_run(
        tmp_path / "run", "mine", {"b": 3, "c": 2}, n=2, correct={"b": RIGHT}, failed={("b", 2, 1)}, thumbnails=True
    )


def test_what_was_written_is_read(folder: Path) -> None:
    run = read_run(folder)
    assert run.label == "mine"
    assert list(run.benchmarks) == ["b", "c"]
    answers = run.benchmarks["b"]
    assert (answers.questions, answers.n, answers.uids) == (3, 2, ("b/0", "b/1", "b/2"))
    assert answers.correct.tolist() == RIGHT
    assert answers.scores.tolist() == [0.5, 1, 0]
    assert answers.failed.tolist() == [[False, False], [False, False], [False, True]]
    assert answers.errors == (("b/2", 1, "HTTP 500: no answer"),)
    assert answers.labels[0][0] == answers.answer_labels[0]
    assert answers.tokens.dtype == np.int64
    some = answers.select(["b/2", "b/0"])
    assert (some.uids, some.correct.tolist()) == (("b/2", "b/0"), [RIGHT[2], RIGHT[0]])
    assert some.errors == answers.errors
    assert answers.select(["b/1"]).errors == ()
    assert [(record["uid"], record["sample"]) for record in run.records({"b": ["b/1"]})] == [("b/1", 0), ("b/1", 1)]


def test_a_label_falls_back(tmp_path: Path) -> None:
    assert EvaluationRun(tmp_path / "folder", {"label": "", "model": "m"}, {}).label == "m"
    assert EvaluationRun(tmp_path / "folder", {}, {}).label == "folder"


def _quota(path: Path) -> None:
    raise OSError(122, "Disk quota exceeded")


def test_a_run_is_replaced_when_the_new_one_is_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_run(folder)
    about = dict(before.about)

    def failing() -> Any:
        yield toy_record("b", 0, 0, right=True)
        raise DataError("no more")

    with pytest.raises(DataError, match="has an evaluation already"):
        write_run(folder, about, [])
    with pytest.raises(DataError, match="no more"):
        write_run(folder, about, failing(), overwrite=True)
    assert read_run(folder).benchmarks["b"].scores.tolist() == [0.5, 1, 0]
    thumbnails = tmp_path / "thumbnails"
    thumbnails.mkdir()
    (thumbnails / "0123456789abcdef.jpg").touch()
    with monkeypatch.context() as full:
        full.setattr("medvlt.evaluation.runs.flush_names", _quota)  # the bytes reach the disk only now
        with pytest.raises(DataError, match="Disk quota exceeded"):
            write_run(folder, about, [], overwrite=True, pictures=thumbnails)
    assert read_run(folder).benchmarks["b"].scores.tolist() == [0.5, 1, 0]
    uids = uids_fingerprint(["b/0"])
    about |= {"sampling": {"n": 1}, "benchmarks": {"b": {"questions": 1, "uids": uids}}}
    write_run(folder, about, [toy_record("b", 0, 0, right=True)], overwrite=True, pictures=thumbnails)
    assert read_run(folder).benchmarks["b"].scores.tolist() == [1]
    assert sorted(path.name for path in folder.rglob("*")) == [
        "0123456789abcdef.jpg", "completions.jsonl", "pictures", "run.json"
    ]  # fmt: skip
    with pytest.raises(DataError, match="cannot write"):
        write_run(folder, about, [], overwrite=True, pictures=thumbnails)  # moved already
    assert not (folder / "run.json").exists()  # what it said held no longer


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("control", "blind"), ("control", {"colour": 1}), ("grader", ["robust"]), ("versions", 1), ("sampling", [1]),
        ("regraded_from", "elsewhere"), ("regraded_from", {"grader": "robust"}),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_refused_before_a_report_meets_them(folder: Path, name: str, value: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(DataError, match=rf"run\.json expects other kinds of values, got {name}"):
        read_run(folder)


def test_odd_texts_survive(tmp_path: Path) -> None:
    """Halves of surrogate pairs, line ends of all kinds and quotes."""
    text = 'a\n\r\x0b\x85\u2028"\\ \ud83d \U0001f600'
    record = toy_record("b", 0, 0, right=True) | {"completion": text, "uid": "b/\ud83d"}
    about = {"sampling": {"n": 1}, "benchmarks": {"b": {"questions": 1, "uids": uids_fingerprint(["b/\ud83d"])}}}
    write_run(tmp_path, about | {"label": "\ud83d"}, [record])
    run = read_run(tmp_path)
    assert run.about["completions"]["lines"] == 1
    assert [found["completion"] for found in run.records({"b": ["b/\ud83d"]})] == [text]


def test_shown_questions_do_not_depend_on_the_order() -> None:
    uids = [*(f"q{number}" for number in range(20)), "\ud83d"]
    chosen = shown_questions(uids, 5)
    assert chosen == shown_questions(reversed(uids), 5)
    assert len(set(chosen)) == 5
    assert shown_questions(uids, 99) == shown_questions(uids, 21)
    assert uids_fingerprint(uids) == uids_fingerprint(uids[::-1]) != uids_fingerprint(uids[1:])


def changed(column: str, value: Any) -> Callable[[list[bytes]], list[bytes]]:
    """The second line with another value."""
    return lambda lines: [lines[0], json.dumps(json.loads(lines[1]) | {column: value}).encode() + b"\n", *lines[2:]]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda lines: [b"{\n", b"\xff\xff\n", b"[1]\n", b"\n", *lines[4:]],
         r"4 lines are no stored completions, such as line 1 \(.*; line 2 \(.*; line 3 \(no JSON object\); run"),
        (lambda lines: [*lines[:-1], lines[-1][:50]], r"1 lines are no stored completions, such as line 10"),
        (changed("tokens", "many"), r"1 lines are no stored completions, such as line 2 \(tokens is 'many'\)"),
        (changed("picture_ids", None), r"line 2 \(picture_ids is None\)"),
        (lambda lines: [b'{"benchmark": "b"}\n', *lines[1:]], r"line 1 \(without uid, sample, question, options"),
        (lambda lines: lines[:2] + lines[4:], "b was asked 3 questions, and completions of 2 are stored; run"),
        (lambda lines: [lines[0], *lines[2:]], r"1 questions of b have not completions 0 to 1 in order, such as b/0"),
        (lambda lines: [lines[0], lines[0], *lines[1:]], "1 questions of b have not completions 0 to 1 in order"),
        (lambda lines: [*lines, *lines], "3 questions of b have not completions 0 to 1 in order, such as b/0, b/1"),
        (lambda lines: [*lines[:4], *(line.replace(b"b/2", b"b/7") for line in lines[4:])],
         "b was asked 3 questions, and completions of 3 are stored, of others"),
        (lambda lines: [*lines, *(line.replace(b'"c/', b'"d/').replace(b'"c"', b'"d"') for line in lines[6:])],
         r"has benchmarks that run\.json does not name: d"),
        (changed("correct", True), "was changed after the evaluation"),
    ],
)  # fmt: skip
def test_damaged_completions_are_counted(
    damage: Callable[[list[bytes]], list[bytes]], named: str, folder: Path
) -> None:
    path = folder / "completions.jsonl"
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(DataError, match=named):
        read_run(folder)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "is not the folder of an evaluation"),
        ("{", "is not the folder of an evaluation"),
        ("[]", "is not the folder of an evaluation"),
        ("{}", "is not the folder of an evaluation"),
        ('{"format": 2}', "has format 2, this release reads 1"),
        ('{"format": 1}', "is not the folder of an evaluation"),
        ('{"format": 1, "benchmarks": {"b": 3}, "sampling": {"n": 1}}', "is not the folder of an evaluation"),
    ],
)
def test_not_a_run(content: str | None, named: str, folder: Path) -> None:
    (folder / "run.json").unlink()
    if content is not None:
        (folder / "run.json").write_text(content)
    with pytest.raises(DataError, match=named):
        read_run(folder)


def test_without_its_completions(folder: Path) -> None:
    (folder / "completions.jsonl").unlink()
    with pytest.raises(DataError, match=r"cannot read .*completions\.jsonl: No such file"):
        read_run(folder)
    with pytest.raises(DataError, match="cannot write"):
        write_run(folder / "run.json" / "below", {}, [])
