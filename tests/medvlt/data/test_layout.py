# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from typing import Any

import datasets

from medvlt.data.layout import TableLayout
from medvlt.data.samples import SampleSet
from medvlt.data.schema import sample_uid
from medvlt.types import Sample


def sample(index: int | str = 0, **extra: Any) -> Sample:
    options = {"A": "x", "B": "y"}
    return Sample(
        uid=sample_uid("toy", index, "q", options, "x"),
        question="q",
        options=options,
        answer_label="A",
        answer="x",
        dataset_name="toy",
        dataset_index=index,
        extra=extra,
    )


def test_columns_of_the_published_record() -> None:
    features = TableLayout.of([sample()]).features()
    assert features["images"] == datasets.List(datasets.Image())
    assert features["options"] == datasets.Value("string")
    assert features["dataset_index"] == datasets.Value("int64")
    assert "uid" not in features
    assert "extra_json" not in features


def test_index_that_is_sometimes_a_name() -> None:
    assert TableLayout.of([sample(1), sample("MM-1")]).index_type == "string"


def test_extra_columns_by_type() -> None:
    layout = TableLayout.of(
        [
            sample(0, family="map", score=0.5, hard=True, n=3, mixed=1, nested={"a": 1}),
            sample(1, family="bmi", mixed="one"),
        ]
    )
    assert layout.extra == {"family": "string", "hard": "bool", "n": "int64", "score": "float64"}
    assert layout.packed == {"mixed", "nested"}
    assert layout.features()["extra_json"] == datasets.Value("string")


def test_uid_column_only_where_needed() -> None:
    assert not TableLayout.of([sample(0)]).has_uid
    layout = TableLayout.of(SampleSet([sample(0), replace(sample(1), uid="other")]))
    assert layout.has_uid
    assert layout.features()["uid"] == datasets.Value("string")
