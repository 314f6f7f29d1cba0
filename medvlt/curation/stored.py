# SPDX-License-Identifier: Apache-2.0
"""One word for where a set is stored: a file, a folder, a name on the Hub, or a source."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from medvlt.data.samples import Source
from medvlt.data.sources import HubDataset, JSONLines, Parquet, SavedDataset
from medvlt.errors import ConfigurationError

Place = str | Path | Source
"""A JSON Lines or Parquet file, a folder of Parquet files, one written by `save_to_disk` or one in the Hub's layout, a
name on the Hub such as `UCSC-VLAA/MedVLThinker-Eval`, or a source."""


def stored(
    place: Place, *, revision: str | None = None, check_images: Literal["decode", "header"] = "decode"
) -> Source:
    """Returns the source that reads what is stored at a place; a path that exists goes before a name on the Hub.

    Args:
        place: Where; a source comes back as it is, with its own checks.
        revision: Commit, branch or tag, for a name on the Hub.
        check_images: See `ReadChecks`.

    Raises:
        ConfigurationError: If a revision is asked of anything but a name on the Hub.
    """
    kind = kind_of(place)
    if revision is not None and kind is not HubDataset:
        raise ConfigurationError(f"revision={revision!r} belongs to a name on the Hub, got {place}; leave it out")
    if isinstance(place, Source):
        return place
    if kind is HubDataset:
        return HubDataset(str(place), revision=revision, check_images=check_images)
    if kind is JSONLines:
        return JSONLines(place, check_images=check_images)
    if kind is Parquet:
        return Parquet(place, check_images=check_images)
    return SavedDataset(place, check_images=check_images)


def kind_of(place: Place) -> type[Source]:
    """Returns the class that reads a place."""
    if isinstance(place, Source):
        return type(place)
    path = Path(place)
    if path.is_file():
        return Parquet if path.suffix == ".parquet" else JSONLines
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return SavedDataset
    if path.is_dir() and any(path.glob("*.parquet")):
        return Parquet
    return HubDataset
