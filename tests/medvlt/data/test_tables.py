# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from medvlt.data.readers import ReadChecks
from medvlt.data.tables import TableSamples, read_table
from medvlt.errors import DataError


def rows(number: int) -> list[dict[str, Any]]:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    return [
        {
            "images": [{"bytes": buffer.getvalue(), "path": None}],
            "question": f"{i}?",
            "options": '{"A": "x", "B": "y"}',
            "answer_label": "A" if i % 5 else "C",
        }
        for i in range(number)
    ]


@pytest.fixture
def table() -> datasets.Dataset:
    features = {name: datasets.Value("string") for name in rows(1)[0]} | {"images": datasets.List(datasets.Image())}
    return datasets.Dataset.from_list(rows(200), features=datasets.Features(features))


def test_light_samples_keep_columns_that_name_pictures(table: datasets.Dataset) -> None:
    named = samples_of(table.add_column("image_path", ["a.png"] * len(table)))
    assert named.light(1).extra == named[1].extra == {"image_path": "a.png"}
    assert (named.light(1).images, len(named[1].images)) == ((), 1)


def samples_of(table: datasets.Dataset) -> TableSamples:
    return TableSamples(table, dataset_name="toy", image_root=None, open_questions=False)


def test_pictures_are_handed_out_encoded(table: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("decoded"))
    sample = samples_of(table)[1]
    assert sample.images == (rows(1)[0]["images"][0]["bytes"],)
    assert samples_of(table).light(1).images == ()
    assert samples_of(table).light(1).uid == sample.uid


def test_selected_rows_of_a_table(table: datasets.Dataset) -> None:
    chosen = samples_of(table.select([7, 3]))
    assert [sample.question for sample in chosen[:]] == ["7?", "3?"]
    assert len(list(chosen.records())) == 2


def test_only_good_rows(table: datasets.Dataset) -> None:
    checks = ReadChecks(max_drop_share=0.5)
    samples = read_table(table, checks, source="t", dataset_name="toy", image_root=None)
    expected = [i for i in range(200) if i % 5]
    assert [sample.question for sample in samples] == [f"{i}?" for i in expected]
    assert [sample.dataset_index for sample in samples] == expected
    assert [sample.uid for sample in samples] == list(samples.uids)
    assert (samples.report.read, samples.report.kept, len(samples.report.dropped)) == (200, 160, 40)


def test_table_without_the_columns(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    with pytest.raises(DataError, match=r"no_question 2"):
        read_table(table, ReadChecks(), source="t", dataset_name="toy", image_root=None)
