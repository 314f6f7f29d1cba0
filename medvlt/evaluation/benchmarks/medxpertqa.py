# SPDX-License-Identifier: Apache-2.0
"""MedXpertQA-MM: questions in a table, pictures in an archive beside it."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import ClassVar

from medvlt.data.drops import DropReason, RecordError
from medvlt.data.samples import SampleSet, Source
from medvlt.data.schema import Record
from medvlt.errors import DataError
from medvlt.evaluation.benchmarks.originals import OriginalBenchmark, wanted_text
from medvlt.evaluation.benchmarks.rows import Convert, Part, Row, StoredRows, read_rows

ARCHIVE = "images.zip"


@dataclass(frozen=True, kw_only=True)
class MedXpertQAMM(OriginalBenchmark):
    """MedXpertQA's 2,000 questions with pictures, test split, five options each.

    Columns: `id`, `question`, `options` (letter to text), `label`, `images` (names). The rows of the authors'
    repository, with options as a list of `letter` and `content`, are read too. The pictures are read out of the archive
    one by one; nothing is unpacked.

    Args:
        source: The rows; see `OriginalBenchmark`.
        images: The folder of the pictures, or `images.zip`; null takes that file of the same set on the Hub, or
            `images` or `images.zip` in the same folder.
        expected: How many questions there must be; null takes any number.
    """

    name: ClassVar[str] = "MedXpertQA-MM"
    parts: ClassVar[tuple[Part, ...]] = (Part("MM", "test"),)
    columns: ClassVar[frozenset[str]] = frozenset({"id", "question", "options", "label", "images"})
    pictures: ClassVar[tuple[str, ...]] = ("images",)
    conversion: ClassVar[tuple[str, ...]] = ("images",)

    source: str | Path | Source = "TsinghuaC3I/MedXpertQA"
    images: str | Path | None = None
    expected: int | None = 2_000

    def converter(self) -> Convert:
        """See `OriginalBenchmark`."""
        return MedXpertConverter(self._pictures())

    def _converted(self, rows: StoredRows) -> SampleSet:
        folder = self._pictures()
        rows = replace(rows, folder=folder if folder.is_dir() else None)
        convert = MedXpertConverter(folder)
        return read_rows(rows, convert, self.read_checks, dataset_name=self.name, pictures=self.pictures)

    def _pictures(self) -> Path:
        """Returns where the pictures are: a folder or an archive.

        Raises:
            DataError: If they are nowhere.
        """
        place = Path(str(self.source))
        if self.images is not None:
            found = Path(self.images)
        elif place.exists():
            folder = place if place.is_dir() else place.parent
            found = next((folder / name for name in ("images", ARCHIVE) if (folder / name).exists()), folder / ARCHIVE)
        else:
            return _fetched(str(self.source), self.revision)
        if not found.is_dir() and not zipfile.is_zipfile(found):
            raise DataError(
                f"expected the pictures of MedXpertQA-MM at {found}, a folder or {ARCHIVE} as the set on the Hub has "
                "it, and there is none; set `images`"
            )
        return found.resolve()


@dataclass(frozen=True)
class MedXpertConverter:
    """Turns a row into a record.

    Attributes:
        pictures: The folder of the pictures, or the archive.
    """

    pictures: Path

    def __call__(self, row: Row, number: int) -> Record:
        """Returns the record; what stands behind "Answer Choices:" in the question repeats the options and is cut.

        Raises:
            RecordError: If a picture is missing, or options or label cannot be read.
        """
        label = row.get("label")
        identity = row.get("id")
        return {
            "images": [self._picture(name) for name in row.get("images") or ()],
            "question": wanted_text(row, "question").split("Answer Choices:")[0].strip(),
            "options": options_by_letter(row.get("options")),
            "answer_label": label[0] if isinstance(label, list) and len(label) == 1 else wanted_text(row, "label"),
            "dataset_index": number if identity is None else str(identity),
            **{key: row[key] for key in ("medical_task", "body_system", "question_type") if row.get(key)},
        }

    def _picture(self, name: object) -> object:
        if not isinstance(name, str):
            raise RecordError(DropReason.BAD_FIELD, f"`images` must hold names of pictures, got {name!r:.80}")
        if self.pictures.is_dir():
            return name
        try:
            archive, members = _archive(self.pictures, os.getpid())
            return archive.read(members[PurePosixPath(name).name])
        except KeyError:
            message = f"no picture {name!r:.80} in {self.pictures}"
        except (OSError, zipfile.BadZipFile, RuntimeError) as error:
            message = f"cannot read {name!r:.80} in {self.pictures}: {error}"
        raise RecordError(DropReason.MISSING_IMAGE, message)


def options_by_letter(value: object) -> dict[str, str]:
    """Returns options stored as letter to text, or as a list of `letter` and `content`.

    Raises:
        RecordError: If they are neither.
    """
    if isinstance(value, list) and all(
        isinstance(item, Mapping) and {"letter", "content"} <= set(item) for item in value
    ):
        return {item["letter"]: item["content"] for item in value}
    if isinstance(value, Mapping):
        return {letter: text for letter, text in value.items() if text is not None}
    raise RecordError(DropReason.BAD_OPTIONS, f"`options` must map letters to texts, got {value!r:.80}")


@lru_cache(maxsize=8)
def _archive(path: Path, process: int) -> tuple[zipfile.ZipFile, dict[str, str]]:
    """Opens an archive once per process: a copy that a fork left shares its place in the file with the parent."""
    del process
    archive = zipfile.ZipFile(path)
    return archive, {PurePosixPath(name).name: name for name in archive.namelist() if not name.endswith("/")}


def _fetched(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, ARCHIVE, repo_type="dataset", revision=revision))
    except Exception as error:  # the Hub and the network share no base
        raise DataError(
            f"cannot fetch {ARCHIVE} of {name} (revision {revision!r}): {type(error).__name__}: {error!s:.200}. "
            "Without a network, set `images` to the archive or the folder of the pictures"
        ) from error
