# SPDX-License-Identifier: Apache-2.0
"""Why a record is left out, and the report of a read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from medvlt.data.files import replacing
from medvlt.errors import DataError


class DropReason(StrEnum):
    """Why a record cannot be used."""

    BAD_JSON = "bad_json"  # the line is not one JSON object in UTF-8
    BAD_FIELD = "bad_field"  # a column holds a value of the wrong type
    NO_QUESTION = "no_question"
    OPEN_QUESTION = "open_question"  # no options, and the source does not allow that
    BAD_OPTIONS = "bad_options"  # unreadable, a label outside A to Z, an option without text
    TOO_FEW_OPTIONS = "too_few_options"
    EQUAL_OPTIONS = "equal_options"  # two options that differ at most in outer blanks
    BAD_LABEL = "bad_label"  # a label is none of the options, or missing and not to be had from the answer
    NO_ANSWER = "no_answer"
    ANSWER_MISMATCH = "answer_mismatch"  # the label names one option, the answer is another
    REASONING_TAGS = "reasoning_tags"  # the reasoning holds think or answer tags beyond one pair around it
    SPECIAL_TOKEN = "special_token"  # the text holds a control token of the tokenizer
    MISSING_IMAGE = "missing_image"
    PATH_ESCAPE = "path_escape"  # the picture lies outside the image folder
    CORRUPT_IMAGE = "corrupt_image"
    IMAGE_TOO_LARGE = "image_too_large"  # more pixels than may be decoded
    IMAGE_TOO_THIN = "image_too_thin"  # longer side over shorter side beyond what the vision tower takes
    DUPLICATE = "duplicate"  # the uid was there before


class RecordError(DataError):
    """One record, or one of its pictures, that cannot be used.

    Args:
        reason: Kind of fault, for counting.
        message: What was expected, what came, what to change.
    """

    def __init__(self, reason: DropReason, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Drop:
    """One record left out.

    Attributes:
        row: Position in the source, from 0, blank lines not counted.
        uid: Its uid, or None if the record did not get as far.
        reason: Kind of fault.
        message: The fault in words.
    """

    row: int
    uid: str | None
    reason: DropReason
    message: str


@dataclass(frozen=True, slots=True)
class ReadReport:
    """What became of the records of a source.

    Attributes:
        source: The source in words.
        read: Records seen.
        kept: Samples in the set; of a mixture with repeats this may exceed `read`.
        dropped: Every record left out, in row order.
        parts: Reports of the sources that this one combines.
    """

    source: str
    read: int
    kept: int
    dropped: tuple[Drop, ...] = ()
    parts: tuple[ReadReport, ...] = ()

    @property
    def drops(self) -> Counter[DropReason]:
        """Number of records left out by reason, parts included."""
        return Counter(drop.reason for _, drop in self.all_dropped())

    def all_dropped(self) -> Iterator[tuple[str, Drop]]:
        """Yields every record left out with the source it was in, parts included."""
        for drop in self.dropped:
            yield self.source, drop
        for part in self.parts:
            yield from part.all_dropped()

    def commonest(self, count: int = 3) -> str:
        """Returns the commonest reasons in words, each with its number and its first example."""
        first: dict[DropReason, Drop] = {}
        for _, drop in self.all_dropped():
            first.setdefault(drop.reason, drop)
        return "; ".join(
            f"{reason} {number} (e.g. row {first[reason].row}: {first[reason].message})"
            for reason, number in self.drops.most_common(count)
        )

    def drop_lines(self) -> Iterator[str]:
        """Yields one JSON line, with its end, per record left out: source, row, uid, reason, message."""
        for source, drop in self.all_dropped():
            line = {
                "source": source,
                "row": drop.row,
                "uid": drop.uid,
                "reason": drop.reason.value,
                "message": drop.message,
            }
            yield json.dumps(line) + "\n"

    def write_drop_log(self, path: Path) -> None:
        """Writes the `drop_lines`.

        The file is replaced as a whole, and written also if nothing was left out, so that an old log never misleads.

        Raises:
            DataError: If the file cannot be written.
        """
        with replacing(path, overwrite=True) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(self.drop_lines())
