# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stored_outputs import COUNT, benchmark, generated, made, stored, write

from medvlt.errors import DataError
from medvlt.evaluation.runs import read_run
from medvlt.evaluation.third_party.importing import import_outputs
from medvlt.types import Sample


def test_against_the_benchmark_nothing_leaves_the_denominator(tmp_path: Path) -> None:
    """Rows lost at the end, which no number tells, are found; with `repair` they count as failed."""
    source = benchmark(tmp_path / "films.jsonl", generated())
    lines = made("reference")
    for line in lines:
        line["prompts"] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "nulled"}]}]
    path = write(tmp_path / "eval_results.jsonl", lines[:-4])
    with pytest.raises(DataError, match="no options are stored with it; give the benchmark itself"):
        import_outputs(str(path), str(tmp_path / "run"), "reference")
    with pytest.raises(DataError, match=r"4 questions or outputs are not there, such as films:44:"):
        import_outputs(str(path), str(tmp_path / "run"), "reference", benchmarks=source)
    import_outputs(str(path), str(tmp_path / "run"), "reference", benchmarks=source, repair=True)
    answers = read_run(tmp_path / "run").benchmarks["films"]
    assert (answers.questions, int(answers.failed.sum())) == (COUNT, 4)
    assert answers.uids == source.load().uids
    right = [letter == sample.answer_label for sample, _, letter in generated()[:-4]]
    assert answers.scores.sum() == sum(right)

    more = [*lines, {**lines[0], "dataset_index": COUNT}]
    with pytest.raises(DataError, match=f"1 questions are not those of the benchmark, such as films {COUNT}"):
        import_outputs(str(write(path, more)), str(tmp_path / "more"), "reference", benchmarks=source)
    lines[1]["parsed_outputs"][0]["pred_letter"] = "A"
    other = {**lines[0], "answer_label": "C"}
    assert lines[0]["answer_label"] != "C"
    with pytest.raises(DataError, match="right is C there"):
        import_outputs(str(write(path, [other, *lines[1:]])), str(tmp_path / "more"), "reference", benchmarks=source)
    import_outputs(str(path), str(tmp_path / "more"), "reference", benchmarks=source, repair=True)
    records = stored(tmp_path / "more")
    assert [record["stated_label"] for record in records[:3]] == [None, "A", generated()[2][2]]
    assert (records[0]["error"][:20], records[0]["correct"]) == ("of another question:", False)


@pytest.mark.parametrize("nulled", [True, False])
def test_outputs_of_other_questions_are_not_taken(nulled: bool, tmp_path: Path) -> None:
    """A benchmark moved on by one row is refused even with `repair`: by its right letters alone, or by its wording."""
    lines, rows = made("reference"), generated()
    path = tmp_path / "eval_results.jsonl"
    moved = benchmark(tmp_path / "moved.jsonl", rows[1:] + rows[:1])
    count = len(rows)
    if nulled:
        lines = [{**line, "prompts": None} for line in lines]
        count = sum(rows[number][0].answer_label != rows[number - 47][0].answer_label for number in range(48))
        assert count == 39
    write(path, lines)
    for repair in (False, True):
        with pytest.raises(DataError, match=f"{count} questions are not those of .*give the benchmark as it was asked"):
            import_outputs(str(path), str(tmp_path / "run"), "reference", benchmarks=moved, repair=repair)
    elsewhere = [{**line, "dataset_name": "x"} for line in lines]
    with pytest.raises(DataError, match="give the benchmark as it was asked"):
        import_outputs(str(write(path, elsewhere)), str(tmp_path / "run"), "reference", benchmarks=moved, repair=True)
    assert not (tmp_path / "run").exists()


def test_options_and_question_are_those_of_the_benchmark(tmp_path: Path) -> None:
    rows, path = generated(), write(tmp_path / "eval_results.jsonl", made("reference"))
    run = str(tmp_path / "run")
    spaced = replace(rows[0][0], question="<image> what does  FILM 0\nshow?", options=rows[0][0].options)
    import_outputs(
        str(path), run, "reference", benchmarks=benchmark(tmp_path / "x.jsonl", [(spaced, "", ""), *rows[1:]])
    )
    turned = dict(zip("ABCD", list(rows[1][0].options.values())[::-1], strict=True))
    other = [rows[0], (replace(rows[1][0], options=turned, answer=turned[rows[1][0].answer_label or ""]), "", "")]
    asks = (replace(rows[2][0], question="Which film?"), "", "")
    source = benchmark(tmp_path / "x.jsonl", [*other, asks, *rows[3:]])
    with pytest.raises(
        DataError, match=r"2 questions are not .*\(other options\); .*\(there it asks 'What does film 2 show"
    ):
        import_outputs(str(path), run, "reference", benchmarks=source, overwrite=True)


def test_right_letters_in_other_shapes(tmp_path: Path) -> None:
    """Letters of either case, with their text, and options that carry their letter; positions from 1 are refused."""
    lines, rows = made("lm_eval"), generated()
    for number, (line, (sample, *_)) in enumerate(zip(lines, rows, strict=True)):
        right = sample.answer_label or ""
        line["doc"] = {"question": "?", "options": [f"({name}) {text}" for name, text in sample.options.items()]}
        line["target"] = (right.lower(), f"{right}. {sample.answer}", "ABCD".index(right))[number % 3]
    path = write(tmp_path / "samples_films.jsonl", lines)
    import_outputs(str(path), str(tmp_path / "run"), "lm_eval")
    records = stored(tmp_path / "run")
    assert [(r["options"], r["answer_label"]) for r in records] == [(dict(s.options), s.answer_label) for s, *_ in rows]
    for line, (sample, *_) in zip(lines, rows, strict=True):
        line["target"] = 1 + "ABCD".index(sample.answer_label or "")
    with pytest.raises(DataError, match=r"films as positions from 0, found one beyond .* \(4 options\).*count from 1"):
        import_outputs(str(write(path, lines)), str(tmp_path / "one"), "lm_eval", repair=True)


def test_yes_or_no_of_lmms_eval(tmp_path: Path) -> None:
    """MME and its like: no options, a target of yes or no, and a score."""
    lines: list[dict[str, Any]] = [
        {"doc_id": number, "target": target, "filtered_resps": reply, "input": "Is it?", "x": {"score": score}}
        for number, (target, reply, score) in enumerate((("Yes", "Yes", 1.0), ("No", "yes", 0.0), ("No", "No.", 1.0)))
    ]
    import_outputs(str(write(tmp_path / "1_samples_mme.jsonl", lines)), str(tmp_path / "run"), "lmms_eval")
    records = stored(tmp_path / "run")
    assert [record["correct"] for record in records] == [record["stated_correct"] for record in records]
    assert [record["correct"] for record in records] == [True, False, True]
    assert [*read_run(tmp_path / "run").benchmarks] == ["mme"]
    turned = {"A": "No", "B": "Yes"}  # the letters of our own "yes" and "no" are not compared with the benchmark's
    rows = [(Sample("", "Is it?", turned, label, turned[label]), "", "") for label in ("B", "A", "A")]
    path = write(tmp_path / "samples_films.jsonl", lines)
    source = benchmark(tmp_path / "films.jsonl", rows)
    import_outputs(str(path), str(tmp_path / "asked"), "lmms_eval", benchmarks=source)
    records = stored(tmp_path / "asked")
    assert [(record["label"], record["correct"]) for record in records] == [("B", True), ("B", False), ("A", True)]
