# SPDX-License-Identifier: Apache-2.0
"""Figures of a training set, checked and resized once, by many threads, and never twice after an interruption."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from PIL import Image
from rich.console import Console
from rich.progress import track

from medvlt.data.decode import MAX_ASPECT, check_image, open_image, resolve_image
from medvlt.data.drops import DropReason, RecordError
from medvlt.data.files import replacing
from medvlt.data.readers import PROGRESS_FROM
from medvlt.errors import ConfigurationError, DataError

logger = logging.getLogger(__name__)

ResizeRule: TypeAlias = Literal["bounded", "reference"]
"""How figures are sized; see `figure_size`."""

MIN_SIDE = 28
"""Shorter side that a figure has at least, in pixels: one token."""

MAX_SIDE = 1024
"""Longer side that a figure has at most, in pixels, where its shape allows."""

FORMAT = 1
"""Of the journal; raised when older code would misread it."""

_CHUNK = 64

_PNG_LEVEL = 3  # half the time of Pillow's 6 for 6% more bytes (VQA-RAD at 1024 pixels: 52 ms and 426 KB a picture)


def figure_size(width: int, height: int, rule: ResizeRule) -> tuple[int, int]:
    """Returns the width and height in pixels that a figure gets.

    "reference" is the rule of the published set (UCSC-VLAA/MedVLThinker a3163b1, `train_dataset/resize_image.py`): a
    side below 28 scales the shorter side to 28; else a side above 1024 scales the longer side to 1024; the other side
    follows, cut to a whole number. A long thin figure ends below 28 that way: 3000 x 60 becomes 1024 x 20.

    "bounded" is the same, except that no side ends below 28: 3000 x 60 becomes 1400 x 28. Where a figure is thinner
    than 1024:28 both bounds cannot hold, and it is the upper one that gives: it is there to bound the tokens, and a
    strip of one row has at most 200 of them, while 1024 x 1024 has 1369.

    Args:
        width: Width of the upright figure, in pixels.
        height: Height, in pixels.
        rule: Which rule.
    """
    size = width, height
    if min(size) < MIN_SIDE:
        return _shorter_side_to(MIN_SIDE, size)
    if max(size) > MAX_SIDE:
        scaled = _longer_side_to(MAX_SIDE, size)
        return scaled if rule == "reference" or min(scaled) >= MIN_SIDE else _shorter_side_to(MIN_SIDE, size)
    return size


@dataclass(frozen=True)
class FigureShop:
    """Checks figures and resizes those that need it, into a work folder that outlives an interruption.

    A figure that keeps its size is used as it lies; a resized one (bilinear, as the reference's) is stored as PNG. The
    journal `figures.jsonl` says what was done; a figure is done again only if its file has changed since. Work begun
    under another rule or with another folder of figures is thrown away.

    Args:
        images: Folder that the figures lie in.
        work: Folder for what is made.
        rule: How figures are sized.
        max_decoded_pixels: Largest figure that is decoded, in pixels.
        threads: Figures prepared at the same time.
    """

    images: Path
    work: Path
    rule: ResizeRule = "bounded"
    max_decoded_pixels: int = 64_000_000
    threads: int = 1

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigurationError(f"threads must be at least 1, got {self.threads}")
        if self.rule not in ("bounded", "reference"):
            raise ConfigurationError(f"the resize rule must be 'bounded' or 'reference', got {self.rule!r}")

    def prepare(self, names: Iterable[str]) -> dict[str, Path | RecordError]:
        """Returns, by name, the file to use, or why there is none.

        Args:
            names: Paths relative to `images`, each once.

        Raises:
            DataError: If another process is at work in the folder, or it cannot be written.
        """
        wanted = list(names)
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            with self._journal() as journal:
                known = self._read(journal)
                results = {name: result for name in wanted if (result := self._recall(known.get(name))) is not None}
                if results:
                    logger.info("%d of %d figures were prepared before", len(results), len(wanted))
                open_names = iter([name for name in wanted if name not in results])
                rows = track(
                    open_names,
                    description="preparing figures",
                    total=len(wanted) - len(results),
                    transient=True,
                    console=Console(stderr=True),
                    disable=len(wanted) <= PROGRESS_FROM,
                )
                with ThreadPoolExecutor(self.threads) as pool:
                    while chunk := list(islice(rows, _CHUNK)):
                        for name, entry in zip(chunk, pool.map(self._entry, chunk), strict=True):
                            if "stat" in entry:  # a missing figure may come to be there
                                _append(journal, entry)
                            results[name] = self._result(entry)
        except OSError as error:
            raise DataError(
                f"cannot prepare figures in {self.work}: {error}; check that it may be written and has space"
            ) from error
        return results

    def _entry(self, name: str) -> dict[str, Any]:
        """Checks and resizes one figure; what became of it as a line of the journal."""
        entry: dict[str, Any] = {"figure": name}
        try:
            path = resolve_image(Path(name), self.images)
            entry["stat"] = _stat(path)
            check_image(path, decode=False, max_pixels=self.max_decoded_pixels)
            image = open_image(path)
            size = figure_size(*image.size, self.rule)
            if max(size) > MAX_ASPECT * min(size):
                raise RecordError(
                    DropReason.IMAGE_TOO_THIN,
                    f"{path} ends with {size[0]} x {size[1]} pixels, thinner than 1:{MAX_ASPECT}; crop it",
                )
            if size == image.size:
                return entry | {"path": str(path)}
            target = self.work / "figures" / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.png"
            with replacing(target, overwrite=True) as temporary:
                image.resize(size, Image.Resampling.BILINEAR).save(temporary, "PNG", compress_level=_PNG_LEVEL)
            return entry | {"path": str(target)}
        except RecordError as error:
            message = error.message
            if error.reason is DropReason.MISSING_IMAGE:
                message = f"no figure {name!r:.200} in {self.images}; name the folder that holds such files"
            return entry | {"reason": error.reason.value, "message": message}

    def _recall(self, entry: dict[str, Any] | None) -> Path | RecordError | None:
        """Returns what an entry of the journal says, or None if the figure has to be done again."""
        if entry is None:
            return None
        try:
            if _stat(resolve_image(Path(entry["figure"]), self.images)) != entry["stat"]:
                return None
        except (RecordError, OSError):
            return None
        result = self._result(entry)
        return None if isinstance(result, Path) and not result.is_file() else result

    def _result(self, entry: dict[str, Any]) -> Path | RecordError:
        if "path" in entry:
            return Path(entry["path"])
        return RecordError(DropReason(entry["reason"]), entry["message"])

    @contextmanager
    def _journal(self) -> Iterator[IO[bytes]]:
        with (self.work / "figures.jsonl").open("a+b") as journal:
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DataError(
                    f"another process prepares figures in {self.work}; wait for it, or choose another output"
                ) from error
            yield journal

    def _read(self, journal: IO[bytes]) -> dict[str, dict[str, Any]]:
        """Returns the entries by figure; cuts off a line that a killed process left half written."""
        head = {
            "format": FORMAT,
            "rule": self.rule,
            "images": str(self.images.resolve()),
            "max_decoded_pixels": self.max_decoded_pixels,
        }
        journal.seek(0)
        entries, whole, begun = {}, 0, False
        for number, line in enumerate(journal):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if entry is None or (number == 0 and entry != head):
                break
            if number == 0:
                begun = True
            else:
                entries[entry["figure"]] = entry
            whole += len(line)
        journal.truncate(whole)
        if not begun:
            _append(journal, head)
        return entries


def _append(journal: IO[bytes], entry: dict[str, Any]) -> None:
    journal.write(json.dumps(entry).encode() + b"\n")
    journal.flush()


def _stat(path: Path) -> list[int]:
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns]


def _shorter_side_to(side: int, size: tuple[int, int]) -> tuple[int, int]:
    """Products and quotients in the reference's order, so that its rounding is met too."""
    width, height = size
    return (side, int(height * (side / width))) if width < height else (int(width * (side / height)), side)


def _longer_side_to(side: int, size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    return (side, int(height * (side / width))) if width > height else (int(width * (side / height)), side)
