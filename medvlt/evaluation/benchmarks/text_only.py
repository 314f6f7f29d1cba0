# SPDX-License-Identifier: Apache-2.0
"""Medical exams without pictures: MedQA, MedMCQA, PubMedQA and the medical subjects of MMLU.

Their columns were checked against code that reads the sets on the Hub, not against the sets themselves, which cannot be
reached from where this was written; rows that differ are refused with the columns that were found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from medvlt.data.drops import DropReason, RecordError
from medvlt.data.samples import SampleSet, Source
from medvlt.data.schema import Record
from medvlt.errors import DataError
from medvlt.evaluation.benchmarks.medxpertqa import options_by_letter
from medvlt.evaluation.benchmarks.originals import OriginalBenchmark, lettered, marked, wanted_text
from medvlt.evaluation.benchmarks.rows import Convert, Part, Row, StoredRows

SUBJECTS = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
)
"""The six subjects of MMLU that are commonly called medical."""

DECISIONS = ("yes", "no", "maybe")


@dataclass(frozen=True, kw_only=True)
class MedQATest(OriginalBenchmark):
    """MedQA, the US exam with four options: 1,273 test questions.

    Columns: `question`, `options` (letter to text), `answer_idx` (the letter), `answer`.

    Args:
        source: The rows; see `OriginalBenchmark`.
        expected: How many questions there must be; null takes any number.
    """

    name: ClassVar[str] = "medqa"
    parts: ClassVar[tuple[Part, ...]] = (Part(None, "test"),)
    columns: ClassVar[frozenset[str]] = frozenset({"question", "options", "answer_idx"})

    source: str | Path | Source = "GBaker/MedQA-USMLE-4-options"
    expected: int | None = 1_273

    def converter(self) -> Convert:
        """See `OriginalBenchmark`."""
        return medqa_record


@dataclass(frozen=True, kw_only=True)
class MedMCQAValidation(OriginalBenchmark):
    """MedMCQA, Indian entrance exams: the 4,183 questions of the validation split, as the test has no public answers.

    Columns: `id`, `question`, `opa` to `opd`, `cop` (0 to 3 on the Hub). In the authors' own files `cop` counts from 1;
    these are refused as a whole at the first 4.

    Args:
        source: The rows; see `OriginalBenchmark`.
        expected: How many questions there must be; null takes any number.
    """

    name: ClassVar[str] = "medmcqa"
    parts: ClassVar[tuple[Part, ...]] = (Part(None, "validation"),)
    columns: ClassVar[frozenset[str]] = frozenset({"question", "opa", "opb", "opc", "opd", "cop"})

    source: str | Path | Source = "openlifescienceai/medmcqa"
    expected: int | None = 4_183

    def converter(self) -> Convert:
        """See `OriginalBenchmark`."""
        return medmcqa_record


@dataclass(frozen=True, kw_only=True)
class PubMedQALabeled(OriginalBenchmark):
    """PubMedQA's labelled questions, yes, no or maybe after an abstract: all 1,000.

    Half of them are the official test; which, only the authors' repository says (`test_ground_truth.json`). m23k's
    predecessor trained on others of these 1,000, MedVLThinker on none. Columns: `pubid`, `question`, `context` (with
    `contexts`, the abstract without its conclusion), `final_decision`.

    Args:
        source: The rows; see `OriginalBenchmark`.
        only: JSON file with the identifiers to keep, a list or the keys of an object, such as the authors' test file;
            set `expected: 500` with that one. All of them must be there.
        expected: How many questions there must be; null takes any number.
    """

    name: ClassVar[str] = "pubmedqa"
    parts: ClassVar[tuple[Part, ...]] = (Part("pqa_labeled", "train"),)
    columns: ClassVar[frozenset[str]] = frozenset({"question", "context", "final_decision"})

    conversion: ClassVar[tuple[str, ...]] = ("only",)

    source: str | Path | Source = "qiaojin/PubMedQA"
    only: str | Path | None = None
    expected: int | None = 1_000

    def converter(self) -> Convert:
        """See `OriginalBenchmark`."""
        return PubMedConverter(None if self.only is None else _identifiers(Path(self.only)))

    def _converted(self, rows: StoredRows) -> SampleSet:
        if self.only is not None:
            known = {_identity(row, number) for row, number in rows.texts(sorted(rows.columns & {"pubid", "question"}))}
            if missing := sorted(_identifiers(Path(self.only)) - known):
                raise DataError(
                    f"{rows.source}: {len(missing):,} identifiers of {self.only} are not in it: "
                    f"{', '.join(missing[:5])}; correct `only` or the source"
                )
        return super()._converted(rows)


@dataclass(frozen=True, kw_only=True)
class MMLUMedical(OriginalBenchmark):
    """MMLU's six medical subjects, 1,089 test questions.

    Columns: `question`, `subject`, `choices`, `answer` (0 to 3). Rows of other subjects are passed over.

    Args:
        source: The rows; see `OriginalBenchmark`.
        expected: How many questions there must be; null takes any number.
    """

    name: ClassVar[str] = "mmlu_medical"
    parts: ClassVar[tuple[Part, ...]] = tuple(Part(subject, "test") for subject in SUBJECTS)
    columns: ClassVar[frozenset[str]] = frozenset({"question", "subject", "choices", "answer"})

    source: str | Path | Source = "cais/mmlu"
    expected: int | None = 1_089

    def converter(self) -> Convert:
        """See `OriginalBenchmark`."""
        return mmlu_record


def medqa_record(row: Row, number: int) -> Record:
    """Returns the record of a row of MedQA.

    Raises:
        RecordError: If it lacks options or letter, or the answer is another option than the letter's.
    """
    options, label, answer = options_by_letter(row.get("options")), row.get("answer_idx"), row.get("answer")
    if isinstance(answer, str) and isinstance(label, str) and answer.strip() != options.get(label, answer).strip():
        raise RecordError(
            DropReason.ANSWER_MISMATCH,
            f"answer_idx {label!r} stands for {options[label]!r:.80}, but answer is {answer!r:.80}",
        )
    return {
        "question": wanted_text(row, "question"),
        "options": marked(options),
        "answer_label": wanted_text(row, "answer_idx"),
        "dataset_index": number,
    }


def medmcqa_record(row: Row, number: int) -> Record:
    """Returns the record of a row of MedMCQA.

    Raises:
        RecordError: If it lacks question or answer.
    """
    options = lettered(["" if row.get(name) is None else str(row[name]) for name in ("opa", "opb", "opc", "opd")])
    return {
        "question": wanted_text(row, "question"),
        "options": options,
        "answer_label": _letter_at(row, "cop", len(options)),
        "dataset_index": row.get("id") or number,
        **({"subject": row["subject_name"]} if row.get("subject_name") else {}),
    }


def mmlu_record(row: Row, number: int) -> Record | None:
    """Returns the record of a row of MMLU, None of another subject.

    Raises:
        RecordError: If it lacks question, choices or answer.
    """
    if wanted_text(row, "subject") not in SUBJECTS:
        return None
    choices = row.get("choices")
    if not isinstance(choices, list):
        raise RecordError(DropReason.BAD_OPTIONS, f"`choices` must be a list of texts, got {choices!r:.80}")
    return {
        "question": wanted_text(row, "question"),
        "options": lettered([str(text) for text in choices]),
        "answer_label": _letter_at(row, "answer", len(choices)),
        "dataset_index": number,
        "subject": row["subject"],
    }


@dataclass(frozen=True)
class PubMedConverter:
    """Turns a row of PubMedQA into a record.

    Attributes:
        only: Identifiers to keep; None keeps all.
    """

    only: frozenset[str] | None

    def __call__(self, row: Row, number: int) -> Record | None:
        """Returns the record: the abstract, then the question; None of a row that is not to be kept.

        Raises:
            RecordError: If it lacks abstract, question or decision.
        """
        identity = _identity(row, number)
        if self.only is not None and identity not in self.only:
            return None
        context = row.get("context")
        parts = context.get("contexts") if isinstance(context, Mapping) else context
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise RecordError(DropReason.BAD_FIELD, f"`context` must hold the abstract's parts, got {context!r:.80}")
        decision = wanted_text(row, "final_decision").lower()
        if decision not in DECISIONS:
            raise RecordError(DropReason.BAD_LABEL, f"`final_decision` must be yes, no or maybe, got {decision!r:.40}")
        return {
            "question": "\n".join([*parts, wanted_text(row, "question")]),
            "options": lettered(DECISIONS),
            "answer": decision,
            "dataset_index": identity,
        }


def _identity(row: Row, number: int) -> str:
    return str(number if row.get("pubid") is None else row["pubid"])


def _letter_at(row: Row, name: str, count: int) -> str:
    place = row.get(name)
    if isinstance(place, int) and not isinstance(place, bool) and 0 <= place < count:
        return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[place]
    if place == count:
        raise DataError(
            f"`{name}` must be a place from 0 to {count - 1}, got {place!r} of {count} options: it counts from 1 here, "
            "and every answer would be wrong by one; take the set from the Hub, or subtract 1 in every row"
        )
    raise RecordError(DropReason.BAD_LABEL, f"`{name}` must be a place from 0 to {count - 1}, got {place!r:.40}")


def _identifiers(path: Path) -> frozenset[str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the identifiers in {path}: {error}; correct `only`") from error
    if not isinstance(found, list | dict) or not found:
        raise DataError(f"{path}: expected a JSON list or object of identifiers, got {found!r:.80}; correct `only`")
    return frozenset(map(str, found))
