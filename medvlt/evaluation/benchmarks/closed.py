# SPDX-License-Identifier: Apache-2.0
"""PMC-VQA, PathVQA, SLAKE and VQA-RAD out of AdaptLLM/biomed-VQA-benchmark, as the reference takes them.

The columns are those that the reference's own preparation reads (UCSC-VLAA/MedVLThinker, `prepare_vlm_eval_data.py`):
`image` and `input` everywhere; `A` to `D` and the letter `label` in PMC-VQA; `answer_type`, OPEN or CLOSED, and the
text `label` in the others.

The closed questions bring no options. Theirs are read from the wording (`extract_options`), whose rules were written
with the questions of SLAKE and VQA-RAD in view and never look at an answer. A question whose wording offers none, or
not the annotated one ("kidney or spleen?", annotated liver, is in the SLAKE test), stays in the denominator as an open
question, which the robust grader never calls right (the graders of the reference take the annotated text itself). How
many there may be is counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from medvlt.data.drops import RecordError
from medvlt.data.samples import SampleSet, Source
from medvlt.data.schema import Record
from medvlt.evaluation.benchmarks.extraction import YES_NO, extract_options, label_of
from medvlt.evaluation.benchmarks.options_file import GivenOptions, read_options
from medvlt.evaluation.benchmarks.originals import OriginalBenchmark, encoded_pictures, lettered, wanted_text
from medvlt.evaluation.benchmarks.rows import Convert, Part, Row, StoredRows

ADAPTLLM = "AdaptLLM/biomed-VQA-benchmark"

OPTIONS_FROM = "options_from"
"""Key in `Sample.extra`: "question" (its wording), "file" (an options file) or "set" (the same for the whole set)."""

_PICTURES = ("image",)


@dataclass(frozen=True, kw_only=True)
class PMCVQATest(OriginalBenchmark):
    """PMC-VQA's test questions, 2,000, with the options of the source.

    Args:
        source: The rows; see `OriginalBenchmark`.
        expected: How many questions there must be; null takes any number.
    """

    name: ClassVar[str] = "pmc_vqa"
    parts: ClassVar[tuple[Part, ...]] = (Part("PMC-VQA", "test"),)
    columns: ClassVar[frozenset[str]] = frozenset({"image", "input", "label", "A", "B", "C", "D"})
    pictures: ClassVar[tuple[str, ...]] = _PICTURES

    source: str | Path | Source = ADAPTLLM
    expected: int | None = 2_000

    def converter(self) -> Convert:
        """See `OriginalBenchmark`."""
        return pmc_vqa_record


@dataclass(frozen=True, kw_only=True)
class ClosedQuestions(OriginalBenchmark):
    """Questions annotated as closed, options read from their wording.

    Args:
        options_file: JSON Lines with the options of some questions, which go before what the wording says: `options`,
            a list of texts, and `question` (the text) or `hash` (first 16 hex digits of SHA-256 over question and
            answer, the column of the published set). A line that is of no question, or whose options lack the
            annotated answer, is an error.
    """

    columns: ClassVar[frozenset[str]] = frozenset({"image", "input", "label", "answer_type"})
    pictures: ClassVar[tuple[str, ...]] = _PICTURES

    conversion: ClassVar[tuple[str, ...]] = ("options_file",)
    fixed: ClassVar[tuple[str, ...] | None] = None  # options of every question, whatever its wording

    options_file: str | Path | None = None

    def converter(self) -> Convert:
        """See `OriginalBenchmark`."""
        return ClosedConverter(self.given(), self.fixed)

    def given(self) -> GivenOptions | None:
        """Returns what the options file says.

        Raises:
            DataError: If it cannot be used.
        """
        return None if self.options_file is None else read_options(self.options_file)

    def _converted(self, rows: StoredRows) -> SampleSet:
        if (given := self.given()) is not None:
            given.check(_asked(rows), str(self.options_file))
        return super()._converted(rows)


@dataclass(frozen=True, kw_only=True)
class PathVQAClosed(ClosedQuestions):
    """PathVQA's closed test questions, 3,362, all of them answered by yes or no.

    Their options are Yes and No because the set is made so, also where the wording asks otherwise ("What is present?").

    Args:
        source: The rows; see `OriginalBenchmark`.
        expected: How many questions there must be; null takes any number.
    """

    name: ClassVar[str] = "pathvqa_closed"
    parts: ClassVar[tuple[Part, ...]] = (Part("PathVQA", "test"),)
    fixed: ClassVar[tuple[str, ...] | None] = YES_NO

    source: str | Path | Source = ADAPTLLM
    expected: int | None = 3_362


@dataclass(frozen=True, kw_only=True)
class SLAKEClosed(ClosedQuestions):
    """SLAKE's closed English test questions, 416; one of them offers two organs and is annotated with a third.

    Args:
        source: The rows; see `OriginalBenchmark`.
        expected: How many questions there must be; null takes any number.
        max_open: How many may stay open; see `BenchmarkChecks`.
    """

    name: ClassVar[str] = "slake_closed"
    parts: ClassVar[tuple[Part, ...]] = (Part("SLAKE", "test"),)

    source: str | Path | Source = ADAPTLLM
    expected: int | None = 416
    max_open: int = 1


@dataclass(frozen=True, kw_only=True)
class VQARADClosed(ClosedQuestions):
    """VQA-RAD's closed test questions, 272; one of them asks "What do ... indicate?" and is annotated yes.

    Args:
        source: The rows; see `OriginalBenchmark`.
        expected: How many questions there must be; null takes any number.
        max_open: How many may stay open; see `BenchmarkChecks`.
    """

    name: ClassVar[str] = "vqa_rad_closed"
    parts: ClassVar[tuple[Part, ...]] = (Part("VQA_RAD", "test"),)

    source: str | Path | Source = ADAPTLLM
    expected: int | None = 272
    max_open: int = 1


@dataclass(frozen=True)
class ClosedConverter:
    """Turns a row into a record.

    Attributes:
        given: Options that go before all others.
        fixed: Options of every question of the set; None reads them from the wording.
    """

    given: GivenOptions | None
    fixed: tuple[str, ...] | None

    def __call__(self, row: Row, number: int) -> Record | None:
        """Returns the record of a closed question, None of an open one.

        Raises:
            RecordError: If the row lacks question or answer.
        """
        if (asked := closed_question(row)) is None:
            return None
        question, answer, identity = asked
        texts, origin = self._options(question, identity)
        options = lettered(texts)
        label = label_of(answer, options)
        return {
            "images": encoded_pictures(row, _PICTURES),
            "question": question,
            "options": options if label else {},
            "answer_label": label,
            "answer": options[label] if label else answer,
            "dataset_index": number,
            "hash": identity,
            OPTIONS_FROM: origin if label else "nothing",
        }

    def _options(self, question: str, identity: str) -> tuple[tuple[str, ...], str]:
        if self.given is not None and (found := self.given.find(question, identity)) is not None:
            return found, "file"
        return (extract_options(question) or (), "question") if self.fixed is None else (self.fixed, "set")


def closed_question(row: Row) -> tuple[str, str, str] | None:
    """Returns question, annotated answer and hash of a row, None of an open question.

    Raises:
        RecordError: If the row lacks question or answer.
    """
    if wanted_text(row, "answer_type").upper() != "CLOSED":
        return None
    identity = question_hash(str(row.get("input")), str(row.get("label")))
    return wanted_text(row, "input"), wanted_text(row, "label"), identity


def _asked(rows: StoredRows) -> Iterator[tuple[str, str, str]]:
    for row, _ in rows.texts(["input", "label", "answer_type"]):
        try:
            found = closed_question(row)
        except RecordError:  # told when the row is read
            continue
        if found is not None:
            yield found


def pmc_vqa_record(row: Row, number: int) -> Record:
    """Returns the record of a row of PMC-VQA: `input` is "Question: ..." with the choices behind it.

    Raises:
        RecordError: If a text is missing.
    """
    question = wanted_text(row, "input").removeprefix("Question:").split("The choices are:")[0].strip()
    return {
        "images": encoded_pictures(row, _PICTURES),
        "question": question,
        "options": lettered(["" if row[letter] is None else str(row[letter]) for letter in "ABCD"]),
        "answer_label": wanted_text(row, "label"),
        "dataset_index": number,
    }


def question_hash(question: str, answer: str) -> str:
    """Returns the reference's hash of a question: 16 hex digits, the published column `hash`."""
    return hashlib.sha256(f"{question}{answer}".encode()).hexdigest()[:16]
