# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from stored_outputs import COUNT, LINES, generated, made, stored, write

from medvlt.errors import DataError
from medvlt.evaluation.runs import read_run
from medvlt.evaluation.third_party.importing import import_outputs
from medvlt.evaluation.third_party.reading import FORMS, OutputForm


def test_repeats_must_be_equally_many(tmp_path: Path) -> None:
    lines = made("reference")
    for line in lines:
        line["parsed_outputs"] *= 3
    path = write(tmp_path / "eval_results.jsonl", lines)
    import_outputs(str(path), str(tmp_path / "run"), "reference")
    assert read_run(tmp_path / "run").benchmarks["films"].n == 3
    assert "Wilson interval over questions 92.59% to 100.00%" in (tmp_path / "run" / "agreement.md").read_text()
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
    assert {*run.about["identity"]["files"]} == {
        f"model/samples_{task}_2026-01-02T03-04-05.678.jsonl" for task in ("films", "other")
    }
    assert all(len(digest) == 64 for digest in run.about["identity"]["files"].values())
    shutil.rmtree(tmp_path / "run")
    path = tmp_path / "out" / "model" / "samples_films_2026-01-02T03-04-05.678.jsonl"
    import_outputs(str(path), str(tmp_path / "run"), "lm_eval", lm_eval_filter="flexible-extract")
    assert all(line["stated_correct"] for line in stored(tmp_path / "run"))
    with pytest.raises(DataError, match=r"filter 'strict', found none of films; its filters are 'strict-match', 'flex"):
        import_outputs(str(path), str(tmp_path / "none"), "lm_eval", lm_eval_filter="strict")
    less = [
        line
        for line in twice
        if (line["doc_id"], line["filter"]) not in ((5, "strict-match"), (COUNT - 1, "strict-match"))
    ]
    with pytest.raises(DataError, match="2 questions or outputs are not there, such as films 5 of the filter 'strict-"):
        import_outputs(str(write(path, less)), str(tmp_path / "less"), "lm_eval")
    import_outputs(str(path), str(tmp_path / "less"), "lm_eval", repair=True)
    failed = [line["dataset_index"] for line in stored(tmp_path / "less") if line["finish_reason"] == "error"]
    assert failed == [5, COUNT - 1]
    write(tmp_path / "out" / "model2" / "samples_third.jsonl", lines)
    with pytest.raises(DataError, match=r"expected the outputs of one model, found files in .*model, .*model2"):
        import_outputs(str(tmp_path / "out"), str(tmp_path / "none"), "lm_eval")
    likelihoods = {**lines[0], "resps": [[["-1.5", "False"]], [["-0.5", "True"]]]}
    with pytest.raises(DataError, match="only likelihoods of the options; a generative task is needed"):
        import_outputs(str(write(path, [likelihoods])), str(tmp_path / "none"), "lm_eval")


def test_what_is_not_text_or_no_verdict(tmp_path: Path) -> None:
    lines = made("reference")
    for line, changes in zip(
        lines, ({"output_text": None}, {"is_correct": None}, {"is_correct": "False"}), strict=False
    ):
        line["parsed_outputs"][0] |= changes
    path, run = write(tmp_path / "x.jsonl", lines), tmp_path / "run"
    import_outputs(str(path), str(run), "reference", policy="reference_reward")
    records = stored(run)
    assert [(record["completion"], record["finish_reason"]) for record in records[:2]] == [
        ("", "error"),
        (lines[1]["parsed_outputs"][0]["output_text"], "stop"),
    ]
    assert [record["stated_correct"] for record in records[1:3]] == [None, None]
    assert sum(record["correct"] for record in records) < sum(bool(record["stated_correct"]) for record in records)
    lines = [{**line, "parsed_outputs": []} for line in lines]
    with pytest.raises(DataError, match="found none; name another path"):
        import_outputs(str(write(path, lines)), str(run), "reference", repair=True, overwrite=True)
    lines[0]["dataset_index"] = "x"
    with pytest.raises(DataError, match="nothing is left to import"):
        import_outputs(str(write(path, lines)), str(run), "reference", repair=True, overwrite=True)
    lines = made("reference")
    lines[0]["dataset_index"] = 10**9
    with pytest.raises(DataError, match=r"999999953 questions or outputs are not there, such as number 0; number 48"):
        import_outputs(str(write(path, lines)), str(tmp_path / "no"), "reference")


def lm(**changes: Any) -> tuple[OutputForm, dict[str, Any]]:
    return "lm_eval", changes


def lmms(**changes: Any) -> tuple[OutputForm, dict[str, Any]]:
    return "lmms_eval", {"films_acc": None, **changes}


@pytest.mark.parametrize(
    ("form", "changes", "stated"),
    [
        (*lm(metrics=["bypass", "exact_match"], bypass=999), "as made"),
        (*lm(exact_match=0.5), None),
        (*lm(exact_match=True), True),
        (*lmms(films_acc={"answer": 3, "parsed_pred": "D"}), True),
        (*lmms(films_acc={"answer": "B. {B}", "pred_answer": "b"}), True),
        (*lmms(films_acc={"answer": "B", "pred_answer": "{A}"}), False),
        (*lmms(films_acc={"answer": "x", "pred": "X"}), True),
        (*lmms(films_acc={"answer": 1, "pred": "b"}, input="x"), True),
        (*lmms(films_acc={"answer": 1, "pred": "none"}, input="x"), None),
        (*lmms(films_acc={"score": 3}, exact_match=1.0), True),
        (*lmms(films_acc={"score": 0.5}), None),
        (*lmms(films_acc={"score": 0}, token_counts=[{"output_tokens": None}]), False),
        (*lmms(acc=0.4), None),
    ],
)
def test_stated_verdicts(form: OutputForm, changes: dict[str, Any], stated: bool | str | None, tmp_path: Path) -> None:
    row = generated()[1]
    line = LINES[form][1](0, row)
    line |= json.loads(json.dumps(changes).replace("{A}", row[0].options["A"]).replace("{B}", row[0].options["B"]))
    question = FORMS[form].parse(line, tmp_path / "samples_films.jsonl")
    assert question.outputs[0].stated_correct is (row[2] == row[0].answer_label if stated == "as made" else stated)


@pytest.mark.parametrize(
    ("form", "changes"),
    [
        ("lmms_eval", {"token_counts": [[{"output_tokens": 4}]]}),
        ("lmms_eval", {"token_counts": [5]}),
        ("lmms_eval", {"doc_id": {"a": 1}}),
        ("lm_eval", {"doc_id": [1]}),
        ("lm_eval", {"doc_id": None}),
        ("lm_eval", {"metrics": None}),
        ("lm_eval", {"metrics": [{"x": 1}], "exact_match": None, "acc": None}),
        ("mmmu_pro", {"options": "[" * 100_000}),
        ("reference", {"parsed_outputs": ["x"]}),
    ],
)
def test_odd_lines_are_bad_lines(form: OutputForm, changes: dict[str, Any], tmp_path: Path) -> None:
    lines = made(form)[:2]
    path = write(tmp_path / LINES[form][0], [{**lines[0], **changes}, lines[1]])
    if changes.get("metrics"):
        changes = {name: value for name, value in changes.items() if name == "metrics"}
        path = write(path, [{key: v for key, v in lines[0].items() if key != "exact_match"} | changes, lines[1]])
    with pytest.raises(DataError, match=r"1 lines cannot be used, such as "):
        import_outputs(str(path), str(tmp_path / "run"), form)
