# SPDX-License-Identifier: Apache-2.0
"""The commands: what they print and write. What a selection takes is tested with `Selection`."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from medvlt.__main__ import main
from medvlt.curation.ledger import Ledger, Probe
from medvlt.curation.select import histogram, select
from medvlt.curation.selection import Selected, Selection
from medvlt.data.phantom import Phantom
from medvlt.data.samples import uids_fingerprint
from medvlt.data.sources import JSONLines, SavedDataset
from medvlt.errors import DataError
from medvlt.rewards.grade import GRADER_VERSION

SOURCE = Phantom("train", 24)
PROBE = Probe("tiny", "model", "plain", {"n": 8}, 42, grader_version=GRADER_VERSION)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """The first 22 questions, with counts 0 to 8 over and over; the last of them partly failed."""
    rows, questions = {}, {}
    for number, sample in enumerate(SOURCE.load()[:22]):
        right, errors = number % 9, int(number == 21)
        rows[sample.uid] = {
            "n": 8 - errors, "strict": right, "robust": right, "format": 0, "truncated": 0, "errors": errors,
            "mean_tokens": 1.0,
        }  # fmt: skip
        questions[sample.uid] = (sample.dataset_name, sample.dataset_index)
    Ledger().with_probe(PROBE, rows, questions).write(tmp_path / "ledger.parquet")
    return tmp_path / "ledger.parquet"


def chosen(ledger: Path, **changes: Any) -> Selection:
    """A selection that takes a ledger which has not measured 3 of 24 questions."""
    return Selection(ledger, min_measured=0.8, **changes)


def test_the_data_set_on_disk_says_how_it_was_made(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "selected"
    select(SOURCE, chosen(ledger, low=1, high=7, order="easy_to_hard"), output, title="A band")
    samples = SavedDataset(output).load()
    expected = Selected(SOURCE, chosen(ledger, order="easy_to_hard")).load()
    assert samples.uids == expected.uids
    assert [sample.pass_count for sample in samples] == sorted((s.pass_count for s in expected), reverse=True)
    assert len(datasets.load_from_disk(str(output))) == len(expected)

    record = json.loads((output / "provenance.json").read_text())["provenance"]
    assert record["ledger"] == {"path": str(ledger), "sha256": hashlib.sha256(ledger.read_bytes()).hexdigest()}
    assert record["probe"]["model"] == "model"
    assert record["probe"]["fingerprint"] == uids_fingerprint(SOURCE.load().uids[:22])
    assert record["source_fingerprint"] == uids_fingerprint(SOURCE.load().uids)
    assert record["selection"] | {"ledger": ""} == {
        "ledger": "", "probe": "tiny", "count": "strict", "low": 1, "high": 7, "unmeasured": "drop",
        "order": "easy_to_hard", "seed": 42, "without_marks": [], "accept_grader_version": None,
        "min_measured": 0.8,
    }  # fmt: skip
    assert record["grader_version"] == GRADER_VERSION
    assert sum(counts["before"] for counts in record["by_source"].values()) == 24
    assert sum(counts["after"] for counts in record["by_source"].values()) == len(samples)
    assert sum(record["left_out"].values()) == 24 - len(samples)
    assert "Phantom" in record["source"]
    card = (output / "README.md").read_text()
    assert "A band" in card
    assert "not for clinical use" in card
    assert "2 not measured" in card
    assert (output / "pass_counts.png").read_bytes().startswith(b"\x89PNG")

    out = capsys.readouterr().out
    assert "below the band" in out
    assert "1 to 7 of 8 right by tiny (strict)" in out
    assert f"{len(samples)} questions" in out


def test_without_matplotlib_only_the_picture_is_missing(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level(logging.WARNING):
        select(SOURCE, chosen(ledger), tmp_path / "selected")
    assert "no pass_counts.png" in caplog.text
    assert not (tmp_path / "selected" / "pass_counts.png").exists()
    assert len(SavedDataset(tmp_path / "selected").load()) > 5


def test_what_is_there_is_not_replaced_unasked(ledger: Path, tmp_path: Path) -> None:
    select(SOURCE, chosen(ledger), tmp_path / "selected")
    before = (tmp_path / "selected" / "provenance.json").read_bytes()
    with pytest.raises(DataError, match="exists"):
        select(SOURCE, chosen(ledger, low=2), tmp_path / "selected")
    assert (tmp_path / "selected" / "provenance.json").read_bytes() == before
    with pytest.raises(DataError, match="expected a new path"):  # before anything is read
        select(JSONLines("nowhere.jsonl"), chosen(ledger), tmp_path / "selected")
    select(SOURCE, chosen(ledger, low=2), tmp_path / "selected", overwrite=True)
    assert (tmp_path / "selected" / "provenance.json").read_bytes() != before


def test_the_histogram_is_printed_for_every_probe_or_one(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {uid: {**row, "strict": 0} for uid, row in Ledger.read(ledger).rows("tiny").items()}
    Ledger.read(ledger).with_probe(Probe("other", "big", "plain", {"n": 8}, 1), other).write(ledger)
    histogram(ledger)
    out = capsys.readouterr().out
    assert "tiny (model, plain)" in out
    assert "other (big, plain)" in out
    assert out.count("1 questions with failed completions are left out") == 2
    histogram(ledger, "tiny", low=1, png=tmp_path / "tiny.png")
    out = capsys.readouterr().out
    assert "> 1 to 8" in out
    assert "other (" not in out
    assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="no probe is named"):
        histogram(ledger, png=tmp_path / "both.png")


def test_the_picture_takes_the_place_of_nothing_unasked(
    ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, png = ledger.read_bytes(), tmp_path / "counts.png"
    png.write_text("mine")
    with pytest.raises(DataError, match="exists"):
        histogram(ledger, png=png)
    assert png.read_text() == "mine"
    with pytest.raises(DataError, match="take the place of the ledger"):
        histogram(ledger, png=tmp_path / "." / "ledger.parquet", overwrite=True)
    assert ledger.read_bytes() == before
    assert capsys.readouterr().out == ""
    histogram(ledger, png=png, overwrite=True)
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("low", "high"), [(-2, None), (None, 9), (5, 4), (9, None)])
def test_the_histogram_refuses_a_band_that_no_count_has(
    low: int | None, high: int | None, ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="is not within 0 to 8"):
        histogram(ledger, low=low, high=high)
    assert capsys.readouterr().out == ""


def test_the_histogram_names_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"n": 8, "strict": 3, "robust": 3, "format": 0, "truncated": 0, "errors": 0, "mean_tokens": 1.0}
    Ledger().with_probe(replace(PROBE, checkpoint="last.ckpt"), {"u": row}).write(tmp_path / "l")
    histogram(tmp_path / "l")
    assert "model with weights of last.ckpt" in capsys.readouterr().out


def test_an_empty_ledger_has_no_histogram(tmp_path: Path) -> None:
    Ledger().with_marks({"odd": {"set:1:x": True}}).write(tmp_path / "l")
    with pytest.raises(DataError, match="has no probe"):
        histogram(tmp_path / "l")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str]]:
    def run(*args: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as caught:
            main(args)
        captured = capsys.readouterr()
        return caught.value.code, captured.out + captured.err

    return run


def test_the_commands_run_from_the_command_line(
    ledger: Path, tmp_path: Path, run: Callable[..., tuple[object, str]]
) -> None:
    code, out = run(
        "data", "select", "--source", "Phantom", "--source.init_args.split", "train", "--source.init_args.size", "24",
        "--selection.ledger", str(ledger), "--output", str(tmp_path / "out"), "--selection.high", "3",
        "--selection.order", "hard_to_easy", "--selection.min_measured", "0.8",
    )  # fmt: skip
    assert code == 0, out
    expected = Selected(SOURCE, chosen(ledger, high=3, order="hard_to_easy")).load().uids
    assert SavedDataset(tmp_path / "out").load().uids == expected
    settings = tmp_path / "selection.yaml"
    settings.write_text(f"{{ledger: {ledger}, high: 3, order: hard_to_easy, min_measured: 0.8}}")
    code, out = run(
        "data", "select", "--source", "Phantom", "--source.split", "train", "--source.size", "24",
        "--selection", str(settings), "--output", str(tmp_path / "again"),
    )  # fmt: skip
    assert code == 0, out
    assert SavedDataset(tmp_path / "again").load().uids == expected
    code, out = run("data", "histogram", "--ledger", str(ledger))
    assert (code, "accuracy" in out) == (0, True), out
    code, out = run("data", "histogram", "--ledger", str(tmp_path / "none"))
    assert code == 2
    assert "there is no ledger" in out


def test_real_questions_keep_everything_but_the_count(shared_data: Path, tmp_path: Path) -> None:
    source = JSONLines(shared_data / "text_mcq_medqa_train.jsonl")
    samples = source.load()
    rows = {
        uid: {"n": 8, "strict": i % 9, "robust": 0, "format": 0, "truncated": 0, "errors": 0, "mean_tokens": 0.0}
        for i, uid in enumerate(samples.uids)
    }
    Ledger().with_probe(PROBE, rows).write(tmp_path / "l")
    select(source, Selection(tmp_path / "l"), tmp_path / "out")
    written = SavedDataset(tmp_path / "out").load()
    kept = [index for index in range(len(samples)) if 1 <= index % 9 <= 7]
    assert written.uids == tuple(samples.uids[index] for index in kept)
    for place, index in list(enumerate(kept))[:: len(kept) // 50]:
        one, two = written[place], samples[index]
        assert (one.question, one.options, one.answer, one.reasoning) == (
            two.question, two.options, two.answer, two.reasoning,
        )  # fmt: skip
        assert one.pass_count == index % 9
