# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medvlt import console
from medvlt.data.drops import DropReason, RecordError
from medvlt.data.readers import ReadChecks, RecordReader
from medvlt.errors import ConfigurationError, DataError


def png(side: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def record(index: int, **changes: Any) -> dict[str, Any]:
    return {
        "question": "Is it?",
        "options": {"A": "yes", "B": "no"},
        "answer_label": "A",
        "dataset_index": index,
        **changes,
    }


def reader(root: Path | None = None, **checks: Any) -> RecordReader:
    return RecordReader(ReadChecks(**checks), source="toy", dataset_name="toy", image_root=root)


def test_good_records_in_order_bad_ones_reported(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "bad.png").write_bytes(png()[:20])
    rows = [
        record(0, images=["good.png"]),
        record(1, images=["bad.png"]),
        RecordError(DropReason.BAD_JSON, "not JSON"),
        record(3, images=["bad.png"]),
        record(4, images=[{"bytes": png(), "path": None}, "good.png"]),
        record(0, images=["good.png"]),
        record(6, images=["../good.png"]),
        record(7, images=["none.png"]),
        record(8, options=None),
    ]
    log = tmp_path / "log" / "drops.jsonl"
    run = reader(tmp_path, max_drop_share=0.8, drop_log=log)
    kept = list(run.accept(rows, len(rows)))
    assert [row for row, _ in kept] == [0, 4]
    assert kept[0][1].images == (tmp_path.resolve() / "good.png",)
    report = run.finish()
    assert (report.read, report.kept) == (9, 2)
    assert [(drop.row, drop.reason.value) for drop in report.dropped] == [
        (1, "corrupt_image"),
        (2, "bad_json"),
        (3, "corrupt_image"),
        (5, "duplicate"),
        (6, "path_escape"),
        (7, "missing_image"),
        (8, "open_question"),
    ]
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["row"] for line in logged] == [drop.row for drop in report.dropped]
    assert logged[3]["uid"] == kept[0][1].uid
    assert logged[1]["uid"] is None


def test_too_many_drops_name_the_three_commonest(tmp_path: Path) -> None:
    bad = [record(i, question=None) for i in range(4)]
    bad += [record(i, answer_label="C") for i in range(4, 7)]
    bad += [record(i, answer="no") for i in range(7, 9)]
    bad += [record(9, options="x")]
    log = tmp_path / "drops.jsonl"
    run = reader(drop_log=log)
    list(run.accept([record(i) for i in range(100, 190)] + bad, 100))
    with pytest.raises(DataError) as caught:
        run.finish()
    message = str(caught.value)
    assert "10 of 100 records (10.0%)" in message
    for part in ("no_question 4 (e.g. row 90", "bad_label 3 (e.g. row 94", "answer_mismatch 2 (e.g. row 97"):
        assert part in message
    assert "bad_options" not in message
    assert len(log.read_text().splitlines()) == 10  # the log is there although the read failed


def test_share_is_a_bound_that_may_be_reached(caplog: pytest.LogCaptureFixture) -> None:
    rows = [record(i) for i in range(19)] + [record(19, question=None)]
    run = reader(max_drop_share=0.05)
    assert len(list(run.accept(rows, 20))) == 19
    with caplog.at_level(logging.WARNING):
        assert run.finish().kept == 19
    assert "1 of 20 records (5.0%)" in caplog.text
    run = reader(max_drop_share=0.04)
    list(run.accept(rows, 20))
    with pytest.raises(DataError):
        run.finish()


def test_no_records_and_none_kept() -> None:
    with pytest.raises(DataError, match="empty"):
        reader().finish()
    run = reader(max_drop_share=1.0)
    list(run.accept([record(0, question=None)], 1))
    with pytest.raises(DataError, match="no_question 1"):
        run.finish()


def test_header_only_sees_less(tmp_path: Path) -> None:
    rows = [record(0, images=[png(64)[:60]])]
    assert list(reader(check_images="decode", max_drop_share=1.0).accept(rows, 1)) == []
    assert len(list(reader(check_images="header").accept(rows, 1))) == 1


def test_large_pictures(tmp_path: Path) -> None:
    run = reader(max_decoded_pixels=15, max_drop_share=1.0)
    assert list(run.accept([record(0, images=[png(4)])], 1)) == []
    assert len(list(reader(max_decoded_pixels=16).accept([record(0, images=[png(4)])], 1))) == 1


def test_paths_need_a_folder() -> None:
    run = reader(None, max_drop_share=0.6)
    assert [row for row, _ in run.accept([record(0, images=["x.png"]), record(1, images=[png()])], 2)] == [1]
    assert run.finish().drops == {DropReason.MISSING_IMAGE: 1}


def test_more_records_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PROGRESS_FROM", 100)
    rows = [record(i, answer_label="A" if i % 7 else "Z") for i in range(300)]
    run = reader(max_drop_share=0.5)
    assert [row for row, _ in run.accept(iter(rows), 300)] == [i for i in range(300) if i % 7]
    assert run.finish().read == 300


@pytest.mark.parametrize(
    "checks", [{"max_drop_share": 1.5}, {"max_drop_share": -0.1}, {"max_decoded_pixels": 0}, {"check_images": "no"}]
)
def test_settings_are_checked(checks: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(checks))):
        ReadChecks(**checks)
