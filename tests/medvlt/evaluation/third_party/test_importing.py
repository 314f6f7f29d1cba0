# SPDX-License-Identifier: Apache-2.0
"""Outputs are generated: replies in many wordings whose letter is known, stored in the forms of four harnesses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medvlt.data.prompts import PromptTemplate
from medvlt.data.sources import JSONLines
from medvlt.errors import ConfigurationError, DataError
from medvlt.evaluation.runs import read_run
from medvlt.evaluation.third_party.importing import import_outputs
from medvlt.evaluation.third_party.reading import OutputForm
from medvlt.types import Sample

TEXTS = ("pneumothorax", "pleural effusion", "cardiomegaly", "rib fracture")
REPLIES = (
    "{letter}",
    "({letter})",
    "{letter}. {text}",
    "{text}",
    "**{letter}**",
    "<think>It may be (A) or (B).</think>\n<answer> {letter} </answer>",
    "<think>{text} fits.</think><answer>{text}</answer>",
    "Looking at the film, the lung is bright. The answer is ({letter}) {text}.",
    "Step by step.\n\nAnswer: {letter}",
    "So we find that\n$\\boxed{{{letter}}}$",
    "The correct answer is **{letter}. {text}**, because of the sharp line.",
    "I considered A, then D.\nFinal answer: {letter}",
)
"""Wordings of a letter and its text."""

COUNT = 4 * len(REPLIES)

Row = tuple[Sample, str, str]
"""Question, reply, and the letter that the reply was made of."""


def generated(count: int = COUNT) -> list[Row]:
    """Every wording with every letter; the replied letter is right in two of five."""
    rows = []
    for number in range(count):
        shift = number % 4
        options = dict(zip("ABCD", (*TEXTS[shift:], *TEXTS[:shift]), strict=True))
        letter = "ABCD"[(number // len(REPLIES) + number) % 4]
        right = letter if number % 5 < 2 else "ABCD"["ABCD".index(letter) - 1]
        reply = REPLIES[number % len(REPLIES)].format(letter=letter, text=options[letter])
        question = f"What does film {number} show?"
        sample = Sample(f"x:{number}", question, options, right, options[right], dataset_name="films")
        rows.append((sample, reply, letter))
    return rows


def reference_line(number: int, row: Row) -> dict[str, Any]:
    sample, reply, letter = row
    output = {"output_text": reply, "pred_letter": letter, "is_correct": letter == sample.answer_label}
    return {
        "dp_index": 0, "dataset_name": "films", "dataset_index": number, "answer_label": sample.answer_label,
        "prompts": f"<|im_start|>user\n{PromptTemplate().prompt_text(sample)}<|im_end|>\n<|im_start|>assistant\n",
        "answer": sample.answer, "parsed_outputs": [output], "num_rollouts": 1,
        "num_correct": int(output["is_correct"]),
    }  # fmt: skip


def lm_eval_line(number: int, row: Row) -> dict[str, Any]:
    sample, reply, letter = row
    doc = {"question": sample.question, "options": [*sample.options.values()], "answer": sample.answer_label}
    return {
        "doc_id": number, "doc": doc, "target": sample.answer_label, "resps": [[reply]], "filtered_resps": [letter],
        "arguments": {"gen_args_0": {"arg_0": "Question ...", "arg_1": {"until": ["</s>"]}}},
        "filter": "custom-extract", "metrics": ["exact_match"], "exact_match": float(letter == sample.answer_label),
    }  # fmt: skip


def lmms_eval_line(number: int, row: Row) -> dict[str, Any]:
    sample, reply, letter = row
    options = "\n".join(f"{label}. {text}" for label, text in sample.options.items())
    return {
        "doc_id": number, "target": sample.answer_label, "filtered_resps": [reply],
        "token_counts": [{"output_tokens": 9}],
        "input": f"{sample.question}\n{options}\nAnswer with the option's letter from the given choices directly.",
        "films_acc": {"id": str(number), "answer": sample.answer_label, "parsed_pred": letter},
    }  # fmt: skip


def mmmu_pro_line(number: int, row: Row) -> dict[str, Any]:
    sample, reply, letter = row
    return {
        "id": f"test_Radiology_{number}", "question": sample.question, "options": str([*sample.options.values()]),
        "answer": sample.answer_label, "subject": "Radiology", "response": reply, "pred_indexs": letter,
        "if_right": letter == sample.answer_label,
    }  # fmt: skip


LINES: dict[OutputForm, tuple[str, Callable[[int, Row], dict[str, Any]]]] = {
    "reference": ("eval_results.jsonl", reference_line),
    "lm_eval": ("samples_films_2026-01-02T03-04-05.678.jsonl", lm_eval_line),
    "lmms_eval": ("20260102_030405_samples_films.jsonl", lmms_eval_line),
    "mmmu_pro": ("films.jsonl", mmmu_pro_line),
}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def made(form: OutputForm) -> list[dict[str, Any]]:
    return [LINES[form][1](number, row) for number, row in enumerate(generated())]


def stored(folder: Path, name: str = "completions.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize("form", LINES)
def test_every_wording_is_read_as_it_was_made(form: OutputForm, tmp_path: Path) -> None:
    """The letters are those that the replies were made of, so both graders agree on every output."""
    path = write(tmp_path / LINES[form][0], made(form))
    import_outputs(str(path), str(tmp_path / "run"), form, label="toy")
    records = stored(tmp_path / "run")
    rows = generated()
    assert [(r["options"], r["answer_label"]) for r in records] == [(dict(s.options), s.answer_label) for s, *_ in rows]
    assert [record["label"] for record in records] == [letter for *_, letter in rows]
    assert [record["question"] for record in records][:2] != [""] * 2
    right = [letter == sample.answer_label for sample, _, letter in rows]
    assert [record["correct"] for record in records] == [record["stated_correct"] for record in records] == right
    report = (tmp_path / "run" / "agreement.md").read_text()
    assert f"agree on {COUNT} of {COUNT} outputs (100.00%" in report
    assert stored(tmp_path / "run", "disagreements.jsonl") == []
    run = read_run(tmp_path / "run")
    assert run.label == "toy"
    assert run.about["stage"] == "import"
    assert run.about["lengths"] == (form == "lmms_eval")
    assert {len(answers.uids) for answers in run.benchmarks.values()} == {COUNT}


def test_disagreements_are_listed_by_our_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = made("mmmu_pro")
    for number, reply in {0: "A or B", 1: "I'm sorry, I can't.", 7: "no | idea"}.items():
        lines[number] |= {"response": reply, "if_right": True, "pred_indexs": lines[number]["answer"]}
    lines[4] |= {"response": lines[4]["answer"], "if_right": False}
    lines[5] |= {"response": {"refused": True}}
    del lines[6]["if_right"]
    path = write(tmp_path / "x.jsonl", lines)
    import_outputs(str(path), str(tmp_path / "run"), "mmmu_pro")
    report = (tmp_path / "run" / "agreement.md").read_text()
    assert f"agree on {COUNT - 6} of {COUNT - 2} outputs" in report
    assert "1 without a verdict of theirs, 1 that never came" in report
    assert "| ambiguous | 1 | 0 | 1 | 0 |" in report
    assert "| no\\_answer | 2 | 0 | 2 | 0 |" in report
    assert "no \\| idea" in report
    found = {line["dataset_index"].rpartition("_")[2]: line for line in stored(tmp_path / "run", "disagreements.jsonl")}
    assert {number: line["reason"] for number, line in found.items()} == {
        "0": "ambiguous", "1": "no_answer", "4": "label", "7": "no_answer",
    }  # fmt: skip
    failed = stored(tmp_path / "run")[5]
    assert (failed["finish_reason"], failed["correct"], "refused" in failed["error"]) == ("error", False, True)
    assert "agree on" in capsys.readouterr().out


def shards(folder: Path, lines: list[dict[str, Any]], parts: int) -> Path:
    size = -(-len(lines) // parts)
    for rank in range(parts):
        write(folder / "shards" / f"dp_{rank}.jsonl", lines[rank * size : (rank + 1) * size])
    return folder


def test_shards_of_the_reference(tmp_path: Path) -> None:
    """Whole shards give what the merged file gives, in any order; stale ones, lost rows and half a line are counted."""
    lines = made("reference")
    import_outputs(str(write(tmp_path / "whole" / "eval_results.jsonl", lines)), str(tmp_path / "run"), "reference")
    import_outputs(str(write(tmp_path / "back" / "x.jsonl", lines[::-1])), str(tmp_path / "turned"), "reference")
    assert stored(tmp_path / "turned") == stored(tmp_path / "run")
    folder = shards(tmp_path / "out", lines, 12)
    import_outputs(str(folder), str(tmp_path / "sharded"), "reference")
    assert stored(tmp_path / "sharded") == stored(tmp_path / "run")

    changed = [{**line, "parsed_outputs": [{"output_text": "?", "is_correct": False}]} for line in lines[8:10]]
    write(folder / "shards" / "dp_12.jsonl", [lines[10], *changed])  # of an earlier run with more ranks: defect D3
    write(folder / "shards" / "dp_0.jsonl", lines[1:4])  # defect D1: the first row is not there
    with (folder / "shards" / "dp_3.jsonl").open("a") as file:
        file.write('{"dataset_name": "films", "data')
    with pytest.raises(DataError) as raised:
        import_outputs(str(folder), str(tmp_path / "broken"), "reference")
    message = str(raised.value)
    assert "1 lines cannot be used, such as dp_3.jsonl line 5" in message
    assert "3 lines repeat a question (a merge of old and new shards does that), such as dp_12.jsonl line 1" in message
    assert "(films 10, the same outputs); dp_12.jsonl line 2 (films 8, other outputs)" in message
    assert "1 questions or outputs are not there, such as number 0;" in message
    assert "repair=true" in message
    assert not (tmp_path / "broken").exists()
    import_outputs(str(folder), str(tmp_path / "broken"), "reference", repair=True)
    assert stored(tmp_path / "broken") == stored(tmp_path / "run")[1:]
    assert len(read_run(tmp_path / "broken").about["repaired"]) == 3


def benchmark(path: Path, rows: list[Row]) -> JSONLines:
    records = [
        {
            "question": sample.question, "options": dict(sample.options), "answer_label": sample.answer_label,
            "answer": sample.answer, "dataset_name": "films", "dataset_index": number,
        }
        for number, (sample, *_) in enumerate(rows)
    ]  # fmt: skip
    return JSONLines(write(path, records))


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
    other = {**lines[0], "options": dict(generated()[0][0].options), "answer_label": "C"}  # as in a regraded file
    assert lines[0]["answer_label"] != "C"
    with pytest.raises(DataError, match="right is C there"):
        import_outputs(str(write(path, [other, *lines[1:]])), str(tmp_path / "more"), "reference", benchmarks=source)


def test_repeats_must_be_equally_many(tmp_path: Path) -> None:
    lines = made("reference")
    for line in lines:
        line["parsed_outputs"] *= 3
    path = write(tmp_path / "eval_results.jsonl", lines)
    import_outputs(str(path), str(tmp_path / "run"), "reference")
    assert read_run(tmp_path / "run").benchmarks["films"].n == 3
    lines[7]["parsed_outputs"] = lines[7]["parsed_outputs"][:1]
    write(path, lines)
    with pytest.raises(DataError, match="1 questions or outputs are not there, such as 2 of 3 outputs of films 7"):
        import_outputs(str(path), str(tmp_path / "less"), "reference")
    import_outputs(str(path), str(tmp_path / "less"), "reference", repair=True)
    assert read_run(tmp_path / "less").benchmarks["films"].failed.sum(axis=1).tolist() == [
        2 * (number == 7) for number in range(COUNT)
    ]


def test_filters_and_tasks_of_lm_eval(tmp_path: Path) -> None:
    """A line for each filter is not a repeated question; a folder has a file for each task."""
    lines = made("lm_eval")
    twice = [{**line, "filter": name} for line in lines for name in ("strict-match", "flexible-extract")]
    for line in twice[1::2]:
        line["exact_match"] = 1.0
    write(tmp_path / "out" / "model" / "samples_films_2026-01-02T03-04-05.678.jsonl", twice)
    write(tmp_path / "out" / "model" / "samples_other_2026-01-02T03-04-05.678.jsonl", lines)
    import_outputs(str(tmp_path / "out"), str(tmp_path / "run"), "lm_eval", lm_eval_filter=None)
    run = read_run(tmp_path / "run")
    assert {name: answers.questions for name, answers in run.benchmarks.items()} == {"films": COUNT, "other": COUNT}
    assert run.about["left_out_filters"] == {"flexible-extract": COUNT}
    shutil.rmtree(tmp_path / "run")
    path = tmp_path / "out" / "model" / "samples_films_2026-01-02T03-04-05.678.jsonl"
    import_outputs(str(path), str(tmp_path / "run"), "lm_eval", lm_eval_filter="flexible-extract")
    assert all(line["stated_correct"] for line in stored(tmp_path / "run"))
    likelihoods = {**lines[0], "resps": [[["-1.5", "False"]], [["-0.5", "True"]]]}
    with pytest.raises(DataError, match="only likelihoods of the options; a generative task is needed"):
        import_outputs(str(write(path, [likelihoods])), str(tmp_path / "none"), "lm_eval")


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


def test_what_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "films.jsonl", made("mmmu_pro"))
    run = str(tmp_path / "run")
    with pytest.raises(
        DataError, match=r"48 lines cannot be used, such as films\.jsonl line 1 \(not a line of lm-eval"
    ):
        import_outputs(str(path), run, "lm_eval")
    with pytest.raises(DataError, match="nothing is left to import"):
        import_outputs(str(path), run, "lm_eval", repair=True)
    with pytest.raises(DataError, match="found no file of theirs"):
        import_outputs(str(tmp_path), run, "lmms_eval")
    with pytest.raises(DataError, match="found none"):
        import_outputs(str(write(tmp_path / "empty.jsonl", [])), run, "mmmu_pro")
    with pytest.raises(DataError, match="cannot read"):
        import_outputs(str(tmp_path / "absent.jsonl"), run, "mmmu_pro")
    with pytest.raises(ConfigurationError, match="grading policies"):
        import_outputs(str(path), run, "mmmu_pro", policy="lenient")  # type: ignore[arg-type]
    import_outputs(str(path), run, "mmmu_pro")
    with pytest.raises(DataError, match="overwrite=true"):
        import_outputs(str(path), run, "mmmu_pro")
    import_outputs(str(path), run, "mmmu_pro", overwrite=True)
