# SPDX-License-Identifier: Apache-2.0
"""Thumbnails of a run as data URLs."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from medvlt.evaluation.runs import PICTURES_FOLDER

FILE_LIMIT = 200_000
"""Bytes of one thumbnail; a larger file is not shown."""

SIDE_LIMIT = 1_024
"""Pixels of one side of a thumbnail; a larger one is not shown."""

TOTAL_LIMIT = 32_000_000
"""Bytes of all thumbnails of a page."""

_ID = re.compile(r"[0-9a-f]{16}")


class Thumbnails:
    """Reads thumbnails, until the page is full.

    Args:
        folders: Runs; the first that has a picture gives it.

    Attributes:
        left_out: Thumbnails that were there and not shown, as the page was full.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = list(folders)
        self.left_out = 0
        self._total = 0

    def url(self, identity: str) -> str | None:
        """Returns a thumbnail as a data URL; None if there is none, it is no JPEG, or the page is full."""
        if not _ID.fullmatch(identity):  # it becomes part of a path
            return None
        content = next((found for folder in self.folders if (found := _read(folder, identity)) is not None), None)
        if content is None:
            return None
        if self._total + len(content) > TOTAL_LIMIT:
            self.left_out += 1
            return None
        self._total += len(content)
        return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def _read(folder: Path, identity: str) -> bytes | None:
    path = folder / PICTURES_FOLDER / f"{identity}.jpg"
    try:
        if path.stat().st_size > FILE_LIMIT:
            return None
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
            if max(picture.size) > SIDE_LIMIT:
                return None
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return content
