# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from stored_outputs import COUNT, LINES, generated, made, stored, write

from medvlt.errors import ConfigurationError, DataError
from medvlt.evaluation.runs import read_run
from medvlt.evaluation.third_party.agreement import agreement_of
from medvlt.evaluation.third_party.importing import import_outputs
from medvlt.evaluation.third_party.reading import OutputForm


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
    assert {record["tokens"] for record in records} == {9 if form == "lmms_eval" else 0}
    assert [record["stated_label"] for record in records] == [letter for *_, letter in rows]
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
    folder = shards(tmp_path / "Model-2.5-VL", lines, 12)
    import_outputs(str(folder), str(tmp_path / "sharded"), "reference")
    about = read_run(tmp_path / "sharded").about
    assert (about["label"], about["model"], len(about["identity"]["files"])) == ("Model-2.5-VL", "Model-2.5-VL", 12)
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


def test_repeats_of_a_question_do_not_narrow_the_interval(tmp_path: Path) -> None:
    """Sixteen copies of each verdict say what one says; their letters are counted."""
    said = []
    lines = made("reference")
    for line in lines[::7]:
        line["parsed_outputs"][0] |= {"is_correct": not line["parsed_outputs"][0]["is_correct"], "pred_letter": "Z"}
    lines[1]["parsed_outputs"][0]["pred_letter"] = "ABCD"["DABC".index(generated()[1][2])]
    for copies in (1, 16):
        copied = [{**line, "parsed_outputs": line["parsed_outputs"] * copies} for line in lines]
        import_outputs(str(write(tmp_path / "x.jsonl", copied)), str(tmp_path / "run"), "reference", overwrite=True)
        said.append((tmp_path / "run" / "agreement.md").read_text())
        assert f"it is the same in {40 * copies} of {41 * copies}." in said[-1]
    bounds = [[float(bound) for bound in re.findall(r"([\d.]+)%", text)[2:4]] for text in said]
    assert ["Wilson" in said[0], "bootstrap" in said[1]] == [True, True]
    assert bounds[1][1] - bounds[1][0] > 0.8 * (bounds[0][1] - bounds[0][0])
    total = agreement_of(copied := stored(tmp_path / "run"))
    total.update(agreement_of(copied))  # the same questions in two files
    assert {len(outputs) for outputs in total.questions.values()} == {32}


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
