# SPDX-License-Identifier: Apache-2.0
"""One of six out of a set like the published one."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from medvlt.data.sources import HubDataset, JSONLines
from medvlt.errors import ConfigurationError, DataError
from medvlt.evaluation.benchmarks import Benchmark, MedVLThinkerEval, combined
from medvlt.evaluation.published import QUESTIONS

SIX = {name: 2 + number for number, name in enumerate(QUESTIONS)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    combined._hub_rows.cache_clear()
    yield
    combined._hub_rows.cache_clear()


def rows() -> list[dict[str, Any]]:
    """Records as they are published: numbered through, the benchmarks one after the other, two of them interleaved."""
    names = [name for name, count in SIX.items() for _ in range(count)]
    names[1], names[2] = names[2], names[1]
    file = io.BytesIO()
    Image.new("RGB", (30, 30)).save(file, format="PNG")
    return [
        {
            "images": [{"bytes": file.getvalue(), "path": None}] * (1 + number % 2),
            "question": f"Question {number}?",
            "options": json.dumps({"A": "Yes", "B": "No"}),
            "answer_label": "AB"[number % 2],
            "answer": ["Yes", "No"][number % 2],
            "reasoning": None,
            "dataset_name": name,
            "dataset_index": number,
            "hash": None,
            "misc": None,
        }
        for number, name in enumerate(names)
    ]


def table() -> datasets.Dataset:
    return datasets.Dataset.from_list(rows()).cast_column("images", datasets.List(datasets.Image()))


def test_the_published_numbers() -> None:
    assert sum(QUESTIONS.values()) == 8_220
    assert [MedVLThinkerEval(name).expected_rows for name in QUESTIONS] == [2_000, 170, 2_000, 3_362, 416, 272]
    with pytest.raises(ConfigurationError, match=r"slake_closed.*got 'slake'"):
        MedVLThinkerEval("slake")


@pytest.mark.parametrize("form", ["hub", "saved", "splits", "jsonl", "source"])
def test_every_form_gives_the_six(form: str, tmp_path: Path) -> None:
    place = tmp_path / "set"
    source: Any = place
    if form == "hub":
        (place / "data").mkdir(parents=True)
        table().to_parquet(str(place / "data" / "test-00000-of-00001.parquet"))
    elif form == "saved":
        table().save_to_disk(str(place))
    elif form == "splits":
        datasets.DatasetDict(test=table(), train=table().select([0])).save_to_disk(str(place))
    else:
        place.mkdir()
        source = place / "rows.jsonl"
        source.write_text("\n".join(json.dumps(row | {"images": None}) for row in rows()))
        source = JSONLines(source) if form == "source" else source
    uids = []
    for name, count in SIX.items():
        samples = MedVLThinkerEval(name, source=source, expected=count).load()
        if form not in ("hub", "splits"):
            assert Benchmark(source, dataset_name=name, expected=count).load().uids == samples.uids
        assert [one.dataset_name for one in samples] == [name] * count
        numbers = [row["dataset_index"] for row in rows() if row["dataset_name"] == name]
        assert [one.dataset_index for one in samples] == numbers
        if form not in ("jsonl", "source"):
            assert [len(one.images) for one in samples] == [1 + number % 2 for number in numbers]
        uids += samples.uids
    assert len(set(uids)) == sum(SIX.values())
    if form == "splits":
        with pytest.raises(DataError, match="its splits: test, train"):
            Benchmark(source, dataset_name="pmc_vqa").load()
    with pytest.raises(DataError, match=r"expected 416 questions, got 6 questions, 410 lost"):
        MedVLThinkerEval("slake_closed", source=source).load()


def test_the_set_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def opened(self: HubDataset) -> datasets.Dataset:
        calls.append((self.name, self.split, self.revision))
        return table()

    monkeypatch.setattr(HubDataset, "table", opened)
    for name, count in SIX.items():
        assert len(MedVLThinkerEval(name, expected=count, revision="abc").load()) == count
    assert calls == [("UCSC-VLAA/MedVLThinker-Eval", "test", "abc")]


def test_a_lost_row_is_named(tmp_path: Path) -> None:
    records = rows()
    broken = next(row for row in records if row["dataset_name"] == "MedXpertQA-MM")
    broken["answer"] = "Maybe"
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row | {"images": None}) for row in records))
    for name, count in SIX.items():
        source = MedVLThinkerEval(name, source=file, expected=count)
        if name == "MedXpertQA-MM":
            with pytest.raises(DataError, match=r"expected 4 questions, got 3 questions, 1 lost.*answer_mismatch 1"):
                source.load()
        else:
            assert len(source.load()) == count


def test_equal_and_blank_options_are_marked_and_rows_numbered_as_stored(tmp_path: Path) -> None:
    records = rows()
    own = [number for number, row in enumerate(records) if row["dataset_name"] == "slake_closed"]
    texts = {"A": "CT", "B": " ", "C": "CT ", "D": "CT", "E": None}
    records[own[0]] |= {"options": json.dumps(texts), "answer_label": "C", "answer": "CT"}
    records[own[1]]["answer_label"] = "Z"
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps(row | {"images": None}) for row in records]
    file.write_text("\n".join(lines))
    table = datasets.Dataset.from_list([row | {"images": None} for row in records])
    table.to_parquet(str(tmp_path / "rows.parquet"))
    for place in (file, tmp_path / "rows.parquet"):
        with pytest.raises(DataError, match=rf"1 lost.*First: row {own[1]}\."):
            MedVLThinkerEval("slake_closed", source=place, expected=6).load()
        first = MedVLThinkerEval("slake_closed", source=place, expected=6, max_lost=1).load()[0]
        marked = {"A": "CT", "B": "(blank)", "C": "CT (the same as A)", "D": "CT (the same as A) (the same as C)"}
        assert (dict(first.options), first.answer_label, first.answer) == (marked, "C", "CT (the same as A)")
        with pytest.raises(ConfigurationError, match="revision"):
            MedVLThinkerEval("slake_closed", source=place, revision="abc").load()
    source = JSONLines(file, max_drop_share=1)  # which drops the twins too
    assert len(MedVLThinkerEval("pmc_vqa", source=source, expected=2).load()) == 2
    with pytest.raises(DataError, match="expected 6 questions, got 4 questions, 2 lost"):
        MedVLThinkerEval("slake_closed", source=source, expected=6).load()
    with pytest.raises(ConfigurationError, match="revision"):
        MedVLThinkerEval("pmc_vqa", source=source, revision="abc").load()


def test_a_row_of_nobody_is_lost_to_everybody(tmp_path: Path) -> None:
    records = [row | {"images": None} for row in rows()]
    records[3]["dataset_name"] = None
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    datasets.Dataset.from_list(records).to_parquet(str(tmp_path / "rows.parquet"))
    for place in (file, tmp_path / "rows.parquet"):
        with pytest.raises(DataError, match=r"1 lost.*row 3: `dataset_name` is missing"):
            MedVLThinkerEval("slake_closed", source=place, expected=6).load()
    file.write_text("\n".join([*(json.dumps(row) for row in records if row["dataset_name"]), "{broken"]))
    with pytest.raises(DataError, match=rf"1 lost.*First: row {len(records) - 1}\."):
        MedVLThinkerEval("slake_closed", source=file, expected=6).load()


def test_other_sets(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "q"}')
    with pytest.raises(DataError, match="expected the column dataset_name"):
        MedVLThinkerEval("slake_closed", source=file).load()
    table().filter(lambda row: row["dataset_name"] == "pmc_vqa").save_to_disk(str(tmp_path / "one"))
    with pytest.raises(DataError, match="no question of slake_closed; its data sets: pmc_vqa"):
        MedVLThinkerEval("slake_closed", source=tmp_path / "one").load()
