# SPDX-License-Identifier: Apache-2.0
"""An evaluation while it goes on: each process writes a part, and the parts become a run when all is asked."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from medvlt.errors import DataError
from medvlt.evaluation.records import completion_record, picture_id
from medvlt.evaluation.runs import SHOWN, encode_record
from medvlt.evaluation.thumbnails import thumbnail
from medvlt.types import ImageSource, RolloutGroup, Verdict

PARTS_FOLDER = ".parts"
"""Inside the folder of the run; what a killed evaluation left there never enters another one."""

_LINES_FILE = "completions.jsonl"


class Entry(NamedTuple):
    """Where the lines of a question lie in a part.

    Attributes:
        benchmark: Its benchmark.
        uid: Of the question.
        completions: How many it has.
        failed: How many of them never came.
        offset: First byte.
        length: In bytes.
    """

    benchmark: str
    uid: str
    completions: int
    failed: int
    offset: int
    length: int


class RunPart:
    """What one process has asked so far, on the disk; only where each question lies is kept in memory.

    Args:
        folder: Of the run; `clear_parts` has been called.
        rank: Of the process.
        shown: Benchmark to the questions whose pictures get thumbnails.

    Attributes:
        entries: One per question, in the order in which they came.

    Raises:
        DataError: If it cannot be written, here and in every method.
    """

    def __init__(self, folder: Path, rank: int, shown: Mapping[str, Collection[str]]) -> None:
        self.folder = folder / PARTS_FOLDER / str(rank)
        self.shown = shown
        self.entries: list[Entry] = []
        self._end = 0
        self._ids: dict[Path, str] = {}
        try:
            self.folder.mkdir(parents=True)
            self._file = (self.folder / _LINES_FILE).open("wb")
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def add(
        self,
        benchmark: str,
        group: RolloutGroup,
        verdicts: Sequence[Verdict],
        pictures: Sequence[ImageSource] | None = None,
    ) -> None:
        """Writes the completions of a question.

        Args:
            benchmark: Its benchmark.
            group: The question and its completions, from number 0 on.
            verdicts: One per completion.
            pictures: What the question is about, where a control has put something else into the prompt.
        """
        sample = group.sample
        asked = [self._picture_id(picture) for picture in sample.images]
        pictures = sample.images if pictures is None else pictures
        ids = asked if pictures is sample.images else [self._picture_id(picture) for picture in pictures]
        records = [
            completion_record(group, number, completion, verdict, asked)
            for number, (completion, verdict) in enumerate(zip(group.completions, verdicts, strict=True))
        ]
        content = b"".join(encode_record({"benchmark": benchmark, **record, "picture_ids": ids}) for record in records)
        failed = sum(completion.finish_reason == "error" for completion in group.completions)
        try:
            self._file.write(content)
            if sample.uid in self.shown.get(benchmark, ()):
                for picture, name in zip(pictures, ids, strict=True):
                    self._write_thumbnail(picture, name)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        self.entries.append(Entry(benchmark, sample.uid, len(records), failed, self._end, len(content)))
        self._end += len(content)

    def close(self) -> None:
        """Makes all of it readable for other processes."""
        try:
            self._file.close()
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def discard(self) -> None:
        """Removes it, after an error."""
        with suppress(OSError):  # a full disk, say
            self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _picture_id(self, picture: ImageSource) -> str:
        if not isinstance(picture, Path):
            return picture_id(picture)
        if picture not in self._ids:  # one file may belong to many questions
            self._ids[picture] = picture_id(picture)
        return self._ids[picture]

    def _write_thumbnail(self, picture: ImageSource, name: str) -> None:
        path = self.folder / f"{name}.jpg"
        if not path.exists() and (content := thumbnail(picture)) is not None:
            path.write_bytes(content)


def clear_parts(folder: Path) -> None:
    """Removes what killed evaluations left; before any process starts its part.

    Raises:
        DataError: If it cannot be removed.
    """
    try:
        if (folder / PARTS_FOLDER).exists():
            shutil.rmtree(folder / PARTS_FOLDER)
    except OSError as error:
        raise _unwritable(folder / PARTS_FOLDER, error) from error


def check_entries(parts: Sequence[Sequence[Entry]], asked: Mapping[str, Sequence[str]], n: int) -> None:
    """Makes sure that each question was written once with all its completions.

    Args:
        parts: Entries of each process.
        asked: Benchmark to the questions that were to be asked.
        n: Completions of each.

    Raises:
        DataError: With the number of questions that were lost or are there too often, and some of them.
    """
    entries = [entry for part in parts for entry in part]
    times = Counter((entry.benchmark, entry.uid) for entry in entries)
    expected = {(name, uid) for name, uids in asked.items() for uid in uids}
    faults = {
        "lost": [question for question in sorted(expected) if question not in times],
        "answered more than once": [question for question, number in times.items() if number > 1],
        "not in the data": [question for question in times if question not in expected],
        f"without their {n} completions": [(e.benchmark, e.uid) for e in entries if e.completions != n],
    }
    found = [
        f"{len(questions)} {fault}, such as {', '.join(f'{uid} of {name}' for name, uid in questions[:SHOWN])}"
        for fault, questions in faults.items()
        if questions
    ]
    if found:
        raise DataError(
            f"the evaluation is not whole, and nothing of it is written: of {len(expected)} questions "
            f"{'; '.join(found)}. What the store has is kept; run again, and report it if it stays"
        )


def merged_lines(folder: Path, parts: Sequence[Sequence[Entry]], asked: Mapping[str, Sequence[str]]) -> Iterator[bytes]:
    """Yields the lines of each question, read one question at a time, in the order of `asked`.

    Args:
        folder: Of the run.
        parts: Entries of each process; `check_entries` has passed.
        asked: Benchmark to questions.

    Raises:
        DataError: If a part is not what its process wrote.
    """
    place = {(entry.benchmark, entry.uid): (rank, entry) for rank, part in enumerate(parts) for entry in part}
    with ExitStack() as opened:
        files = []
        for rank, part in enumerate(parts):
            path = folder / PARTS_FOLDER / str(rank) / _LINES_FILE
            try:
                files.append(opened.enter_context(path.open("rb")))
                size = path.stat().st_size
            except OSError as error:
                raise DataError(
                    f"cannot read what process {rank} wrote, {path}: {error.strerror or error}; the folder of an "
                    "evaluation must be one that all ranks see"
                ) from error
            if size != sum(entry.length for entry in part):
                raise DataError(
                    f"{path} has {size} bytes, its process wrote {sum(entry.length for entry in part)}; give each "
                    "evaluation that runs at the same time a folder of its own"
                )
        for name, uids in asked.items():
            for uid in uids:
                rank, entry = place[name, uid]
                files[rank].seek(entry.offset)
                yield files[rank].read(entry.length)


def merged_pictures(folder: Path, ranks: int) -> Path:
    """Returns a folder with the thumbnails of all parts, which are moved there.

    Raises:
        DataError: If they cannot be moved.
    """
    target = folder / PARTS_FOLDER / "pictures"
    try:
        target.mkdir()
        for rank in range(ranks):
            for path in (folder / PARTS_FOLDER / str(rank)).glob("*.jpg"):
                path.replace(target / path.name)
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot write {path}: {error}; check that the folder may be written and has space")
