# SPDX-License-Identifier: Apache-2.0
"""One word for where a set is stored: a file, a folder, a name on the Hub, or a source."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from medvlt.data.readers import ReadChecks
from medvlt.data.samples import Source
from medvlt.data.sources import HubDataset, JSONLines, Parquet, SavedDataset
from medvlt.errors import ConfigurationError, DataError

Place = str | Path | Source
"""A JSON Lines or Parquet file, a folder of Parquet files, one written by `save_to_disk` or one in the Hub's layout, a
name on the Hub such as `UCSC-VLAA/MedVLThinker-Eval`, or a source."""

_HUB_FILES = {".parquet", ".arrow", ".json", ".jsonl", ".csv"}
"""What the rows of a folder in the Hub's layout are stored as."""


def stored(place: Place, *, revision: str | None = None, checks: ReadChecks | None = None) -> Source:
    """Returns the source that reads what is stored at a place; a path that exists goes before a name on the Hub.

    Args:
        place: Where; a source comes back as it is, with its own checks.
        revision: Commit, branch or tag, for a name on the Hub.
        checks: What is checked when it is read; by default what every source checks.

    Raises:
        ConfigurationError: If a revision is asked of anything but a name on the Hub, or checks of a source.
        DataError: If it is a folder that holds no set.
    """
    kind = kind_of(place)
    if revision is not None and kind is not HubDataset:
        raise ConfigurationError(f"revision={revision!r} belongs to a name on the Hub, got {place}; leave it out")
    if isinstance(place, Source):
        if checks is not None:
            raise ConfigurationError(
                f"a source brings its own checks; set {_changed(checks)} at {type(place).__name__}"
            )
        return place
    settings: dict[str, Any] = {field.name: getattr(checks or ReadChecks(), field.name) for field in fields(ReadChecks)}
    if kind is HubDataset:
        return HubDataset(str(place), revision=revision, **settings)
    if kind is JSONLines:
        return JSONLines(place, **settings)
    if kind is Parquet:
        return Parquet(place, **settings)
    return SavedDataset(place, **settings)


def kind_of(place: Place) -> type[Source]:
    """Returns the class that reads a place.

    Raises:
        DataError: If it is a folder that holds no set.
    """
    if isinstance(place, Source):
        return type(place)
    path = Path(place)
    if path.is_file():
        return Parquet if path.suffix == ".parquet" else JSONLines
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return SavedDataset
    if path.is_dir() and any(path.glob("*.parquet")):
        return Parquet
    if path.is_dir() and not any(file.suffix in _HUB_FILES for file in path.rglob("*")):
        raise DataError(
            f"expected a set at {path}, found a folder without one: no folder of save_to_disk, no Parquet files and no "
            f"other rows ({', '.join(sorted(_HUB_FILES))}) in it (working folder {Path.cwd()}); correct the path"
        )
    return HubDataset


def _changed(checks: ReadChecks) -> str:
    plain = ReadChecks()
    names = [field.name for field in fields(ReadChecks) if getattr(checks, field.name) != getattr(plain, field.name)]
    return ", ".join(names) or "them"
