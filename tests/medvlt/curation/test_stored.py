# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from medvlt.curation.stored import stored
from medvlt.data.readers import ReadChecks
from medvlt.data.sources import HubDataset, JSONLines, Parquet, SavedDataset
from medvlt.errors import ConfigurationError, DataError


def test_each_place_has_its_source(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([{"question": "a"}])
    (tmp_path / "x.jsonl").write_text("{}")
    (tmp_path / "parquet").mkdir()
    table.to_parquet(str(tmp_path / "parquet" / "x.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict(train=table).save_to_disk(str(tmp_path / "splits"))
    places = ["x.jsonl", "parquet/x.parquet", "parquet", "saved", "splits"]
    classes = [JSONLines, Parquet, Parquet, SavedDataset, SavedDataset]
    for place, kind in zip(places, classes, strict=True):
        for path in (tmp_path / place, str(tmp_path / place)):
            checks = ReadChecks(check_images="header", max_drop_share=0.5, drop_log="log")
            assert stored(path, checks=checks) == kind(path, check_images="header", max_drop_share=0.5, drop_log="log")
            assert stored(path) == kind(path)
            with pytest.raises(ConfigurationError, match="revision"):
                stored(path, revision="main")
    assert stored("owner/name", revision="abc") == HubDataset("owner/name", revision="abc")
    source = JSONLines("x", open_questions=True)
    assert stored(source) is source
    with pytest.raises(
        ConfigurationError, match=r"own checks; set max_drop_share, drop_log, check_images at JSONLines"
    ):
        stored(source, checks=checks)


def test_a_path_goes_before_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(stored("owner/name"), HubDataset)
    datasets.Dataset.from_list([{"question": "a"}]).save_to_disk("owner/name")
    assert isinstance(stored("owner/name"), SavedDataset)


def test_a_folder_without_a_set_is_no_name_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "figures" / "inner").mkdir(parents=True)
    (tmp_path / "figures" / "inner" / "x.png").touch()
    with pytest.raises(DataError, match=r"figures, found a folder without one"):
        stored(tmp_path / "figures")
    (tmp_path / "figures" / "inner" / "train.csv").touch()
    assert stored(tmp_path / "figures") == HubDataset(str(tmp_path / "figures"))
