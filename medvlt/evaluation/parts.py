# SPDX-License-Identifier: Apache-2.0
"""An evaluation while it goes on: each process writes a part, and the parts become a run when all is asked."""

from __future__ import annotations

import os
import shutil
import socket
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from medvlt.data.files import sweep_leftovers
from medvlt.errors import DataError
from medvlt.evaluation.records import completion_record, encode_record, picture_id
from medvlt.evaluation.runs import COMPLETIONS_FILE, PICTURES_FOLDER, SHOWN
from medvlt.evaluation.thumbnails import thumbnail
from medvlt.types import ImageSource, RolloutGroup, Verdict


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
        parts: What `new_parts` gave to rank 0, the same for all processes.
        rank: Of the process.
        shown: Benchmark to the questions whose pictures get thumbnails.

    Attributes:
        entries: One per question, in the order in which they came.

    Raises:
        DataError: If it cannot be written, here and in every method; here also if this process does not see `parts`.
    """

    def __init__(self, parts: Path, rank: int, shown: Mapping[str, Collection[str]]) -> None:
        self.folder = parts / str(rank)
        self.shown = shown
        self.entries: list[Entry] = []
        self._end = 0
        self._ids: dict[Path, str] = {}
        try:
            self.folder.mkdir()
            self._file = (self.folder / COMPLETIONS_FILE).open("wb")
        except FileNotFoundError as error:
            raise DataError(
                f"process {rank}, on {socket.gethostname()}, does not see {parts}, which process 0 has just made; set "
                "default_root_dir (or EvaluationRecorder.folder) to a folder that all ranks see"
            ) from error
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
        with suppress(OSError):  # those of other processes may be there still
            self.folder.parent.rmdir()

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


def new_parts(folder: Path) -> Path:
    """Makes a folder for the parts of one evaluation, and removes those that killed evaluations of this machine left.

    It is named after this process, so that evaluations which run at the same time do not meet.

    Args:
        folder: Of the run.

    Raises:
        DataError: If it cannot be made.
    """
    sweep_leftovers(folder / "parts")
    parts = folder / f".parts.{socket.gethostname()}.{os.getpid()}.{uuid4().hex[:8]}.tmp"  # a name that is swept
    try:
        parts.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(parts, error) from error
    return parts


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
        folder: Of the parts.
        parts: Entries of each process; `check_entries` has passed.
        asked: Benchmark to questions.

    Raises:
        DataError: If a part is not what its process wrote.
    """
    place = {(entry.benchmark, entry.uid): (rank, entry) for rank, part in enumerate(parts) for entry in part}
    with ExitStack() as opened:
        files = []
        for rank, part in enumerate(parts):
            path = folder / str(rank) / COMPLETIONS_FILE
            try:
                files.append(opened.enter_context(path.open("rb")))
                size = path.stat().st_size
            except OSError as error:
                raise DataError(f"cannot read what process {rank} wrote, {path}: {error.strerror or error}") from error
            if size != sum(entry.length for entry in part):
                raise DataError(
                    f"{path} has {size} bytes, process {rank} wrote {sum(entry.length for entry in part)}; see that "
                    "the folder shows all ranks the same and that nothing else writes to it, and run again"
                )
        for name, uids in asked.items():
            for uid in uids:
                rank, entry = place[name, uid]
                files[rank].seek(entry.offset)
                yield files[rank].read(entry.length)


def merged_pictures(folder: Path, ranks: int) -> Path:
    """Returns a folder with the thumbnails of all parts, which are moved there.

    Args:
        folder: Of the parts.
        ranks: Number of parts.

    Raises:
        DataError: If they cannot be moved.
    """
    target = folder / PICTURES_FOLDER
    try:
        target.mkdir()
        for rank in range(ranks):
            for path in (folder / str(rank)).glob("*.jpg"):
                path.replace(target / path.name)
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot write {path}: {error}; check that the folder may be written and has space")
