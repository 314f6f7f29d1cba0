# SPDX-License-Identifier: Apache-2.0
"""Stored outputs in, whole questions out: what is broken, twice there or not there is counted and named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from medvlt.data.drops import RecordError
from medvlt.data.sources import json_records
from medvlt.errors import DataError
from medvlt.evaluation.runs import SHOWN
from medvlt.evaluation.third_party import lm_eval, lmms_eval, mmmu_pro, reference
from medvlt.evaluation.third_party.outputs import LineError, StoredOutput, StoredQuestion

OutputForm: TypeAlias = Literal["reference", "lm_eval", "lmms_eval", "mmmu_pro"]
"""Whose files they are."""

LOST = "lost: no output is stored"
"""Error of an output that should be there."""


class _Form(Protocol):
    def files(self, path: Path) -> list[Path]: ...

    def parse(self, record: Any, path: Path) -> StoredQuestion: ...


FORMS: dict[OutputForm, _Form] = {
    "reference": reference,
    "lm_eval": lm_eval,
    "lmms_eval": lmms_eval,
    "mmmu_pro": mmmu_pro,
}


@dataclass
class Findings:
    """What is wrong with the files, each as words that name the place.

    Attributes:
        bad: Lines that cannot be used.
        duplicates: Lines whose question was there before, with the same outputs or others.
        lost: Questions, or outputs of one, that are not there.
        unnamed: Lost questions beyond those in `lost`.
        extra: Questions that the benchmark does not have, or has with another wording or right answer.
        variants: Name of another way of scoring to the lines left out for it.
    """

    bad: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unnamed: int = 0
    extra: list[str] = field(default_factory=list)
    variants: dict[str, int] = field(default_factory=dict)

    def complaints(self) -> list[str]:
        """Returns a sentence part for each kind of fault that occurs."""
        kinds = (
            (self.bad, 0, "lines cannot be used"),
            (self.duplicates, 0, "lines repeat a question (a merge of old and new shards does that)"),
            (self.lost, self.unnamed, "questions or outputs are not there"),
            (self.extra, 0, "questions are not those of the benchmark"),
        )
        return [
            f"{len(found) + more} {what}, such as {'; '.join(found[:SHOWN])}" for found, more, what in kinds if found
        ]


def read_outputs(
    paths: Sequence[Path], form: OutputForm, findings: Findings, variant: str | None = None
) -> list[StoredQuestion]:
    """Reads files of one harness; of questions that occur twice the first is kept.

    Args:
        paths: The files, in order.
        form: Whose they are.
        findings: Receives what is wrong.
        variant: Way of scoring to keep, where there are several lines for a question; None for each benchmark's first.

    Returns:
        The questions, benchmark by benchmark in order of appearance, by their numbers if they have numbers. Those that
        only lines of another way of scoring name have lost outputs.

    Raises:
        DataError: If a file cannot be read, or a benchmark has no line of `variant`.
    """
    found: dict[tuple[str, int | str], StoredQuestion] = {}
    others: dict[tuple[str, int | str], StoredQuestion] = {}
    wanted: dict[str, str] = {}
    for path in paths:
        for place, question in _questions(path, form, findings):
            name = (question.benchmark, question.key)
            kept = found.get(name)
            if question.variant != wanted.setdefault(question.benchmark, variant or question.variant):
                findings.variants[question.variant] = findings.variants.get(question.variant, 0) + 1
                others[name] = question
            elif kept is None:
                found[name] = question
            else:
                same = "the same outputs" if kept.outputs == question.outputs else "other outputs"
                findings.duplicates.append(f"{place} ({question.benchmark} {question.key}, {same})")
    if absent := wanted.keys() - {benchmark for benchmark, _ in found}:
        raise DataError(
            f"expected lines of the filter {variant!r}, found none of {', '.join(sorted(absent))}; its filters are "
            f"{', '.join(map(repr, findings.variants))}: set lm_eval_filter to one of them"
        )
    for name, question in others.items():
        if name not in found:
            findings.lost.append(f"{question.benchmark} {question.key} of the filter {wanted[question.benchmark]!r}")
            found[name] = replace(question, outputs=(StoredOutput("", error=LOST),) * len(question.outputs))
    return _in_order(list(found.values()))


def check_numbers(questions: Sequence[StoredQuestion], form: OutputForm, findings: Findings) -> None:
    """Adds numbers that are not there to `findings.lost`: all forms but MMMU-Pro's count their questions from 0.

    The reference counts over all its benchmarks, the others in each. Questions behind the last number that is there
    cannot be missed this way; give the benchmark itself to be sure.
    """
    groups: dict[str, set[int]] = {}
    for question in questions:
        if isinstance(question.key, int):
            groups.setdefault("" if form == "reference" else question.benchmark, set()).add(question.key)
    for name, numbers in groups.items():
        missing = max(max(numbers) + 1, 0) - sum(number >= 0 for number in numbers)  # a wrong number may be huge
        named = list(islice((number for number in range(max(numbers) + 1) if number not in numbers), SHOWN))
        findings.lost += [f"number {number}{f' of {name}' if name else ''}" for number in named]
        findings.unnamed += missing - len(named)


def check_repeats(questions: Sequence[StoredQuestion], findings: Findings) -> list[StoredQuestion]:
    """Returns the questions with equally many outputs: what one lacks comes as a lost output, and is in `findings`."""
    most = max((len(question.outputs) for question in questions), default=0)
    whole = []
    for question in questions:
        lacking = most - len(question.outputs)
        if lacking:
            findings.lost.append(f"{lacking} of {most} outputs of {question.benchmark} {question.key}")
        whole.append(replace(question, outputs=(*question.outputs, *[StoredOutput("", error=LOST)] * lacking)))
    return whole


def _questions(path: Path, form: OutputForm, findings: Findings) -> Iterator[tuple[str, StoredQuestion]]:
    try:
        for number, record in enumerate(json_records(path), start=1):
            place = f"{path.name} line {number}"
            try:
                if isinstance(record, RecordError):
                    raise LineError(record.message)
                yield place, FORMS[form].parse(record, path)
            except LineError as error:
                findings.bad.append(f"{place} ({error})")
            except (TypeError, AttributeError, ValueError, LookupError, RecursionError) as error:
                findings.bad.append(f"{place} (not in the form {form}, {type(error).__name__}: {error})")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error


def _in_order(questions: list[StoredQuestion]) -> list[StoredQuestion]:
    order = {name: place for place, name in enumerate(dict.fromkeys(question.benchmark for question in questions))}
    numbered = all(isinstance(question.key, int) for question in questions)
    return sorted(questions, key=lambda question: (order[question.benchmark], question.key if numbered else 0))
