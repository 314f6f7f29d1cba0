# SPDX-License-Identifier: Apache-2.0
"""The medical part of MMMU."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from medvlt.data.drops import DropReason, RecordError
from medvlt.data.samples import Source
from medvlt.data.schema import Record
from medvlt.evaluation.benchmarks.originals import OriginalBenchmark, encoded_pictures, lettered, wanted_text
from medvlt.evaluation.benchmarks.rows import Convert, Part, Row

SUBSETS = (
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
)

_PICTURES = tuple(f"image_{number}" for number in range(1, 8))
_MARKERS = re.compile(r"(?:\s*<image \d+>\s*)+([,;:?!]|\.(?!\d))?")


@dataclass(frozen=True, kw_only=True)
class MMMUMedical(OriginalBenchmark):
    """The multiple-choice questions of MMMU's five medical subsets: 150 of `validation` and 25 of `dev`, 170 in all.

    The paper calls them validation; the reference takes both splits, so this does. Columns: `id`, `question`,
    `options` (a Python list as text), `answer`, `question_type`, `image_1` to `image_7`.

    Args:
        source: The rows; see `OriginalBenchmark`.
        expected: How many questions there must be; null takes any number.
    """

    name: ClassVar[str] = "MMMU-medical"
    parts: ClassVar[tuple[Part, ...]] = tuple(
        Part(subset, split) for subset in SUBSETS for split in ("validation", "dev")
    )
    columns: ClassVar[frozenset[str]] = frozenset({"id", "question", "options", "answer", "question_type", "image_1"})
    pictures: ClassVar[tuple[str, ...]] = _PICTURES

    source: str | Path | Source = "MMMU/MMMU"
    expected: int | None = 170

    def converter(self) -> Convert:
        """See `OriginalBenchmark`."""
        return mmmu_record


def mmmu_record(row: Row, number: int) -> Record | None:
    """Returns the record of a row, None of an open question.

    The pictures come in the order of their columns; `<image N>` is taken out of the question. An option that is a
    picture keeps its marker as its text.

    Raises:
        RecordError: If the row's options cannot be read, or a text is missing.
    """
    del number
    if wanted_text(row, "question_type") != "multiple-choice":
        return None
    identity = wanted_text(row, "id")
    return {
        "images": encoded_pictures(row, _PICTURES),
        "question": without_markers(wanted_text(row, "question")),
        "options": lettered(listed_options(row.get("options"))),
        "answer_label": wanted_text(row, "answer"),
        "dataset_index": identity,
        "subject": re.sub(r"^(dev|validation|test)_|_\d+$", "", identity),
    }


def without_markers(question: str) -> str:
    """Returns a question without `<image N>`, one blank in the place of those around it, none before punctuation."""
    return _MARKERS.sub(lambda found: found[1] or " ", question).strip()


def listed_options(value: object) -> list[str]:
    """Returns options stored as a list, or as the text of a Python list.

    Raises:
        RecordError: If they are neither.
    """
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
    if not isinstance(value, list) or not all(isinstance(text, str | int | float) for text in value):
        raise RecordError(DropReason.BAD_OPTIONS, f"`options` must be a list of texts, got {value!r:.80}")
    return [str(text) for text in value]
