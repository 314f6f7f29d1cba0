# SPDX-License-Identifier: Apache-2.0
"""Records in, checked samples out; what is left out is counted and kept in words."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from medvlt.console import tracked
from medvlt.data.decode import check_image, resolve_image
from medvlt.data.drops import Drop, DropReason, ReadReport, RecordError
from medvlt.data.schema import Record, parse_record
from medvlt.errors import ConfigurationError, DataError
from medvlt.types import Sample

logger = logging.getLogger(__name__)

CHUNK = 64
"""Records checked at a time: their pictures are in memory together."""


@dataclass(frozen=True, kw_only=True)
class ReadChecks:
    """What is checked when records are read, the same for every stored source.

    Args:
        max_drop_share: Share of the records that may be left out, in [0, 1]; beyond it the set is refused.
        drop_log: JSON Lines file that lists every record left out; null writes none.
        check_images: "decode" reads every picture whole, "header" only its size, which misses damage behind it.
        max_decoded_pixels: Largest picture that may be decoded, in pixels; at most 178,956,970, Pillow's own limit.
        open_questions: Whether questions without options are kept.
    """

    max_drop_share: float = 0.05
    drop_log: str | Path | None = None
    check_images: Literal["decode", "header"] = "decode"
    max_decoded_pixels: int = 64_000_000
    open_questions: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop_share <= 1:
            raise ConfigurationError(f"max_drop_share must be in [0, 1], got {self.max_drop_share}")
        if not 1 <= self.max_decoded_pixels <= 178_956_970:
            raise ConfigurationError(f"max_decoded_pixels must be in [1, 178956970], got {self.max_decoded_pixels}")
        if self.check_images not in ("decode", "header"):
            raise ConfigurationError(f"check_images must be 'decode' or 'header', got {self.check_images!r}")


class RecordReader:
    """Checks the records of one source.

    Args:
        checks: What to check.
        source: The source in words, for messages.
        dataset_name: Name of records that have none.
        image_root: Folder that pictures given as paths must lie in; None allows no paths.
    """

    def __init__(self, checks: ReadChecks, *, source: str, dataset_name: str, image_root: Path | None) -> None:
        self.checks = checks
        self.source = source
        self.dataset_name = dataset_name
        self.image_root = image_root
        self._read = 0
        self._dropped: list[Drop] = []
        self._seen: set[str] = set()
        self._known_files: dict[Path, RecordError | None] = {}  # many questions share one picture

    def accept(self, records: Iterable[Record | RecordError], total: int) -> Iterator[tuple[int, Sample]]:
        """Yields (row, sample) for every record that can be used, in order; rows count from 0.

        Args:
            records: The records; an error stands for a row that could not even be read.
            total: Number of records, for the progress bar.
        """
        rows = iter(tracked(enumerate(records), f"checking {self.source}", total))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            while chunk := list(islice(rows, CHUNK)):
                self._read += len(chunk)
                for row, sample, error in pool.map(self._check, chunk):
                    if error is None and sample is not None and sample.uid in self._seen:
                        error = RecordError(DropReason.DUPLICATE, f"uid {sample.uid} was there before")
                    if error is not None:
                        uid = None if sample is None else sample.uid
                        self._dropped.append(Drop(row, uid, error.reason, error.message))
                    elif sample is not None:
                        self._seen.add(sample.uid)
                        yield row, sample

    def finish(self) -> ReadReport:
        """Returns the report, having written the drop log.

        Raises:
            DataError: If there were no records, or too many were left out.
        """
        dropped = tuple(self._dropped)
        report = ReadReport(self.source, self._read, self._read - len(dropped), dropped)
        if self.checks.drop_log is not None:
            report.write_drop_log(Path(self.checks.drop_log))
        if report.read == 0:
            raise DataError(f"{self.source}: expected records, but it is empty; point the source at another file")
        share = len(dropped) / report.read
        summary = f"{self.source}: {len(dropped)} of {report.read} records ({share:.1%}) cannot be used"
        if share > self.checks.max_drop_share or report.kept == 0:
            raise DataError(
                f"{summary}, and max_drop_share={self.checks.max_drop_share} allows {self.checks.max_drop_share:.1%}. "
                f"Commonest: {report.commonest(3)}. Correct the records or raise max_drop_share; drop_log=<file> lists "
                "every one"
            )
        if dropped:
            logger.warning("%s. Commonest: %s", summary, report.commonest(3))
        return report

    def _check(self, item: tuple[int, Record | RecordError]) -> tuple[int, Sample | None, RecordError | None]:
        row, record = item
        sample: Sample | None = None
        try:
            if isinstance(record, RecordError):
                raise record
            sample = parse_record(
                record, dataset_name=self.dataset_name, row=row, open_questions=self.checks.open_questions
            )
            sample = place_images(sample, self.image_root)
            for image in sample.images:
                if isinstance(image, Path):
                    self._check_file(image)
                else:
                    check_image(image, decode=self._decode, max_pixels=self.checks.max_decoded_pixels)
        except RecordError as error:
            return row, sample, error
        return row, sample, None

    def _check_file(self, path: Path) -> None:
        if path not in self._known_files:
            try:
                check_image(path, decode=self._decode, max_pixels=self.checks.max_decoded_pixels)
                self._known_files[path] = None
            except RecordError as error:
                self._known_files[path] = error
        if (known := self._known_files[path]) is not None:
            raise RecordError(known.reason, known.message)  # a fresh one: threads must not share a traceback

    @property
    def _decode(self) -> bool:
        return self.checks.check_images == "decode"


def place_images(sample: Sample, image_root: Path | None) -> Sample:
    """Returns the sample with the paths of its pictures made absolute, symbolic links followed.

    Raises:
        RecordError: If a picture is not there or lies outside `image_root`.
    """
    if not any(isinstance(image, Path) for image in sample.images):
        return sample
    if image_root is None:
        raise RecordError(
            DropReason.MISSING_IMAGE, "the record names a picture file, but its source brings no folder of pictures"
        )
    images = (resolve_image(image, image_root) if isinstance(image, Path) else image for image in sample.images)
    return replace(sample, images=tuple(images))
