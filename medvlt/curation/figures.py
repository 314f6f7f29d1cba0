# SPDX-License-Identifier: Apache-2.0
"""Figures of a training set, checked and resized once, by many threads, and never twice after an interruption."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from PIL import Image

from medvlt.console import tracked
from medvlt.data.decode import MAX_ASPECT, check_image, open_image, resolve_image
from medvlt.data.drops import DropReason, RecordError
from medvlt.data.files import replacing
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

JOURNAL, MADE = "figures.jsonl", "figures"
"""All that lies in a work folder: what was done, and the folder of resized figures."""

_MARK = b'{"made_by": "medvlt", '
"""Every journal begins so."""

_OURS = re.compile(r"\.?[0-9a-f]{24}\.png(\..*\.tmp)?")
"""Names of the resized figures, half written ones included."""

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
    under another rule or with another folder of figures is thrown away. A folder that is not such a work folder is left
    alone.

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
        if not 1 <= self.max_decoded_pixels <= 178_956_970:
            raise ConfigurationError(f"max_decoded_pixels must be in [1, 178956970], got {self.max_decoded_pixels}")

    @contextmanager
    def locked(self) -> Iterator[IO[bytes]]:
        """Gives the journal, for `prepare`; until the block ends no other process works in the folder.

        Raises:
            DataError: If another process is at work in the folder, it holds other things, or it cannot be written.
        """
        with self._failures():
            self.work.mkdir(parents=True, exist_ok=True)
            self._refuse_others()
            journal = (self.work / JOURNAL).open("a+b")
        with journal:
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.fstat(journal.fileno()).st_nlink:
                    raise BlockingIOError("the folder was just cleared")
            except OSError as error:
                raise DataError(
                    f"another process prepares figures in {self.work}; wait for it, or choose another output"
                ) from error
            yield journal

    def prepare(self, names: Iterable[str], journal: IO[bytes]) -> dict[str, Path | RecordError]:
        """Returns, by name, the file to use, or why there is none.

        Args:
            names: Paths relative to `images`, each once.
            journal: From `locked`.

        Raises:
            DataError: If the folder cannot be written.
        """
        wanted = list(names)
        with self._failures(), ThreadPoolExecutor(self.threads) as pool:
            known = self._read(journal)
            results = {name: result for name in wanted if (result := self._recall(known.get(name))) is not None}
            if results:
                logger.info("%d of %d figures were prepared before", len(results), len(wanted))
            left = [name for name in wanted if name not in results]
            rows = iter(tracked(left, "preparing figures", len(left)))
            while chunk := list(islice(rows, _CHUNK)):
                for name, entry in zip(chunk, pool.map(self._entry, chunk), strict=True):
                    if "stat" in entry:  # a missing figure may come to be there
                        _append(journal, entry)
                    results[name] = self._result(entry)
        return results

    def clear(self) -> None:
        """Removes what was made, for use inside `locked`; a work folder that then holds nothing else goes too."""
        with suppress(OSError):  # the set is written: what cannot be removed does no harm
            for path in list((self.work / MADE).glob("*")) if (self.work / MADE).is_dir() else []:
                if _OURS.fullmatch(path.name):
                    path.unlink()
            if (self.work / MADE).is_dir():
                (self.work / MADE).rmdir()
        with suppress(OSError):
            (self.work / JOURNAL).unlink()
            self.work.rmdir()
        if self.work.exists():
            logger.warning("%s holds other things and stays", self.work)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"cannot prepare figures in {self.work}: {error}; check that it may be written and has space"
            ) from error

    def _refuse_others(self) -> None:
        """Fails unless the folder is empty or an earlier run's, told by the first line of its journal."""
        found = {path.name for path in self.work.iterdir()}
        head = b""
        if (self.work / JOURNAL).is_file():
            with (self.work / JOURNAL).open("rb") as file:
                head = file.read(len(_MARK))
        # a killed run may have left half a first line, or none
        if head != _MARK and not (found <= {JOURNAL, MADE} and _MARK.startswith(head) and (head or MADE not in found)):
            raise DataError(
                f"expected an empty folder or the work of an earlier build at {self.work}, found other things there, "
                "which are never touched; move them away or choose another output"
            )

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
            target = self.work / MADE / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.png"
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

    def _read(self, journal: IO[bytes]) -> dict[str, dict[str, Any]]:
        """Returns the entries by figure; cuts off a line that a killed process left half written."""
        head = {
            "made_by": "medvlt",  # first, see `_MARK`
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
