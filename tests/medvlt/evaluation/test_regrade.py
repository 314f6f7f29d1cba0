# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from toy_runs import toy_record, toy_run

from medvlt.data.samples import uids_fingerprint
from medvlt.errors import ConfigurationError, DataError
from medvlt.evaluation.regrade import EXAMPLES, regrade
from medvlt.evaluation.runs import read_run, write_run
from medvlt.rewards.grade import GRADER_VERSION

TEXTS = (
    ("<think>x</think> <answer>{right}</answer>", True, True),
    ("<think>x</think> <answer>\n{right}\n</answer>", True, False),  # the reference's reward wants it in one line
    ("The answer is ({right}).", True, False),  # nor does it read prose
    ("<think><answer>{right}</answer></think> <answer>{wrong}</answer>", False, True),  # it credits the first answer
    ("<think>x</think> <answer>{wrong}</answer>", False, False),
    ("no idea", False, False),
)
"""Reply, right by the robust policy, right by the reference's reward; from the defects in its specification."""


def stored(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]


def run_of_texts(folder: Path, repeats: int = 1, **changes: Any) -> Path:
    """A run whose verdicts are those of the robust policy, known by hand."""
    records = []
    for number in range(repeats * len(TEXTS)):
        text, right, _ = TEXTS[number % len(TEXTS)]
        record = toy_record("vqa", number, 0, right=right)
        letters = {"right": record["answer_label"], "wrong": next(iter({*"AB"} - {record["answer_label"]}))}
        read = None if text == "no idea" else letters["right" if right else "wrong"]
        record |= {"completion": text.format(**letters), "label": read, "question": "Which | of\n*these*?"}
        record |= {"format_ok": text.startswith("<think>x"), "reason": "label" if read else "no_answer"}
        record |= {"grader_version": GRADER_VERSION, **changes}
        records.append(record)
    uids = [record["uid"] for record in records]
    about = {
        "label": "by hand",
        "sampling": {"n": 1},
        "grader": {"policy": "robust", "version": GRADER_VERSION},
        "benchmarks": {"vqa": {"questions": len(uids), "uids": uids_fingerprint(uids)}},
    }
    write_run(folder, about, records)
    return folder


def test_the_same_rules_change_nothing(tmp_path: Path) -> None:
    """Byte for byte, failed completions and pictures included; only `run.json` says that it was done."""
    benchmarks = {"slake": 7, "pmc": 5}
    first = toy_run(tmp_path / "first", "toy", benchmarks, n=2, failed={("pmc", 1, 0)}, thumbnails=True, share=2)
    old, new = tmp_path / "old", tmp_path / "new"
    regrade(str(first), str(old))  # the lines of a made-up run may be of another grader version
    regrade(str(old), str(new))
    unversioned = [[{**line, "grader_version": ""} for line in stored(folder)] for folder in (first, old)]
    assert unversioned[0] == unversioned[1]
    assert (new / "completions.jsonl").read_bytes() == (old / "completions.jsonl").read_bytes()
    assert (new / "changes.jsonl").read_text() == ""
    pictures = {path.name: path.read_bytes() for path in (old / "pictures").iterdir()}
    assert pictures == {path.name: path.read_bytes() for path in (new / "pictures").iterdir()} != {}
    before, after = (json.loads((folder / "run.json").read_text()) for folder in (old, new))
    assert {name for name in after if after[name] != before.get(name)} == {"regraded_from"}
    assert after["label"] == after["regraded_from"]["label"] == "toy (robust)"  # not "(robust) (robust)"
    assert after["regraded_from"]["completions"] == before["completions"]
    assert "1 completions that never came and stay failed" in (new / "regrade.md").read_text()


def test_other_rules_give_the_confusion_known_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repeats = 11
    old, new = run_of_texts(tmp_path / "old", repeats), tmp_path / "new"
    regrade(str(old), str(new), policy="reference_reward")
    expected: Counter[tuple[bool, bool]] = Counter()
    for _, robust, reward in TEXTS:
        expected[robust, reward] += repeats
    seen = Counter(
        (before["correct"], after["correct"]) for before, after in zip(stored(old), stored(new), strict=True)
    )
    assert seen == expected
    changes = [json.loads(line) for line in (new / "changes.jsonl").read_text().splitlines()]
    flipped = [change for change in changes if change["before"]["correct"] != change["after"]["correct"]]
    assert len(flipped) == expected[True, False] + expected[False, True] == 3 * repeats
    assert {change["after"]["reason"] for change in flipped} == {"bad_format", "unknown_option", "label"}
    report = (new / "regrade.md").read_text()
    assert f"| right before | {repeats} | {2 * repeats} |" in report
    assert f"| wrong before | {repeats} | {2 * repeats} |" in report
    assert report.count("Which \\| of \\*these\\*?") == EXAMPLES  # one line, and no cell is cut in two
    before, after = (read_run(folder).benchmarks["vqa"].scores.mean() for folder in (old, new))
    assert f"| {100 * before:.2f} | {100 * after:.2f} | {100 * (after - before):+.2f} (" in report
    assert f"| label | bad\\_format | {repeats} |" in report
    printed = capsys.readouterr().out
    assert "reference_reward" in printed
    assert read_run(new).label == "by hand (reference_reward)"
    regrade(str(new), str(tmp_path / "back"), policy="robust")
    assert stored(tmp_path / "back") == stored(old)
    assert read_run(tmp_path / "back").label == "by hand (robust)"
    shared = run_of_texts(tmp_path / "shared", picture_ids=["p"])  # one picture is one observation: no spread
    regrade(str(shared), str(tmp_path / "shared_new"), policy="reference_reward")
    assert "-16.67 (-16.67 to -16.67)" in (tmp_path / "shared_new" / "regrade.md").read_text()


def test_cut_failed_and_open_completions(tmp_path: Path) -> None:
    """A cut completion is wrong by the robust policy and read by the reference's; the others are not graded at all."""
    cut = run_of_texts(tmp_path / "cut", finish_reason="length", correct=False, label=None, reason="truncated")
    regrade(str(cut), str(tmp_path / "cut_reference"), policy="reference_reward")
    assert [line["correct"] for line in stored(tmp_path / "cut_reference")] == [reward for *_, reward in TEXTS]
    regrade(str(tmp_path / "cut_reference"), str(tmp_path / "cut_robust"))
    assert (tmp_path / "cut_robust" / "completions.jsonl").read_bytes() == (cut / "completions.jsonl").read_bytes()
    for name, changes in {"failed": {"finish_reason": "error"}, "open_question": {"options": {}}}.items():
        old = run_of_texts(tmp_path / name, correct=False, **changes)
        regrade(str(old), str(tmp_path / f"{name}_new"), policy="reference_eval")
        assert stored(tmp_path / f"{name}_new") == stored(old)


def test_what_is_refused(tmp_path: Path) -> None:
    old, new = run_of_texts(tmp_path / "old"), tmp_path / "new"
    with pytest.raises(ConfigurationError, match="another folder than"):
        regrade(str(old), str(old / "."))
    with pytest.raises(ConfigurationError, match="another folder than"):
        regrade(str(old), str(old / "pictures" / "new"))
    with pytest.raises(ConfigurationError, match="grading policies"):
        regrade(str(old), str(new), policy="lenient")  # type: ignore[arg-type]
    assert not new.exists()
    regrade(str(old), str(new))
    with pytest.raises(DataError, match="overwrite=true"):
        regrade(str(old), str(new), policy="reference_eval")
    regrade(str(old), str(new), policy="reference_eval", overwrite=True)
    assert json.loads((new / "run.json").read_text())["grader"]["policy"] == "reference_eval"
    lines = (old / "completions.jsonl").read_text().splitlines()
    (old / "completions.jsonl").write_text("\n".join([lines[0][:40], *lines[1:5], '{"uid": 3}']) + "\n")
    absent: list[dict[str, Any]] = [{"completion": None}, {"question": None}]
    for changes in absent:
        name = next(iter(changes))
        broken = run_of_texts(tmp_path / name, **changes)
        with pytest.raises(DataError, match=rf"6 lines are no stored completions, such as line 1 \({name} is None\)"):
            regrade(str(broken), str(tmp_path / "none"))
    kept = {path.name: path.read_bytes() for path in new.iterdir() if path.is_file()}
    with pytest.raises(DataError, match=r"2 lines are no stored completions, such as line 1 .*; line 6 \(without"):
        regrade(str(old), str(new), overwrite=True)
    assert kept == {path.name: path.read_bytes() for path in new.iterdir() if path.is_file()}
