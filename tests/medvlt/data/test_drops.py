# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from medvlt.data.drops import Drop, DropReason, ReadReport
from medvlt.errors import DataError

DROPS = (
    Drop(1, "toy:1:0", DropReason.MISSING_IMAGE, "no file x"),
    Drop(4, None, DropReason.BAD_JSON, "not JSON"),
    Drop(5, "toy:5:0", DropReason.MISSING_IMAGE, "no file y"),
)


def test_counts_include_parts() -> None:
    part = ReadReport("part", 10, 7, DROPS)
    whole = ReadReport("whole", 20, 16, (Drop(0, "u", DropReason.DUPLICATE, "twice"),), (part,))
    assert whole.drops == {DropReason.MISSING_IMAGE: 2, DropReason.BAD_JSON: 1, DropReason.DUPLICATE: 1}


def test_commonest_in_words() -> None:
    report = ReadReport("toy", 10, 7, DROPS)
    assert report.commonest(1) == "missing_image 2 (e.g. row 1: no file x)"
    assert report.commonest(3).count(";") == 1


def test_drop_log_lists_every_one(tmp_path: Path) -> None:
    log = tmp_path / "new" / "drops.jsonl"
    ReadReport("toy", 10, 7, DROPS).write_drop_log(log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["source"], line["row"], line["uid"], line["reason"], line["message"]) for line in lines] == [
        ("toy", drop.row, drop.uid, drop.reason.value, drop.message) for drop in DROPS
    ]
    assert list(ReadReport("toy", 10, 7, DROPS).drop_lines()) == log.read_text().splitlines(keepends=True)
    ReadReport("toy", 10, 10).write_drop_log(log)
    assert log.read_text() == ""


def test_drop_log_in_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        ReadReport("toy", 1, 1).write_drop_log(tmp_path / "file" / "drops.jsonl")
