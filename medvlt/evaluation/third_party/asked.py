# SPDX-License-Identifier: Apache-2.0
"""Which questions stored outputs answer: those that are stored with them, or those of the benchmark itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from medvlt.data.samples import Source
from medvlt.data.schema import sample_uid
from medvlt.errors import DataError
from medvlt.evaluation.third_party.options import label_of, position_of, undressed
from medvlt.evaluation.third_party.outputs import StoredOutput, StoredQuestion
from medvlt.evaluation.third_party.reading import LOST, Findings
from medvlt.types import Sample

Asked: TypeAlias = tuple[str, Sample, tuple[StoredOutput, ...]]
"""Benchmark, question and its outputs."""

YES_NO = {"A": "yes", "B": "no"}
"""Options of a question that is stored without, and whose right answer is yes or no."""

_PICTURE = re.compile(r"<image[^<>]*>")


def as_stored(questions: Sequence[StoredQuestion], findings: Findings) -> list[Asked]:
    """Returns the questions as far as the outputs tell them; those that cannot be graded are in `findings.bad`."""
    golds = [str(question.golds[0]).strip().casefold() for question in questions]
    questions = [
        replace(question, options=question.options or (YES_NO if gold in YES_NO.values() else {}))
        for question, gold in zip(questions, golds, strict=True)
    ]
    _check_positions([(question, question.options) for question in questions])
    asked: list[Asked] = []
    for question in questions:
        options, right = question.options, right_label(question, question.options)
        if len(options) < 2 or right is None:
            lacks = "options" if len(options) < 2 else "right letter"
            findings.bad.append(
                f"{question.benchmark} {question.key} (no {lacks} are stored with it; give the benchmark itself)"
            )
            continue
        name, answer = question.dataset_name or question.benchmark, options[right]
        sample = Sample(
            uid=sample_uid(name, question.key, question.question, options, answer),
            question=question.question,
            options=options,
            answer_label=right,
            answer=answer,
            dataset_name=name,
            dataset_index=question.key,
        )
        asked.append((question.benchmark, sample, question.outputs))
    return asked


def as_asked(questions: Sequence[StoredQuestion], benchmarks: Source, findings: Findings) -> list[Asked]:
    """Returns the questions of the benchmark in its order, each with its outputs, or with failed ones.

    Questions without outputs are in `findings.lost`. Stored ones that the benchmark has not, or has with other options,
    another wording or another right letter, are in `findings.extra`. If that holds of half of them or more, this is not
    what was asked, and nothing is returned.
    """
    stored = {(question.dataset_name or question.benchmark, str(question.key)): question for question in questions}
    samples = benchmarks.load()
    pairs = [(sample, stored.pop((sample.dataset_name, str(sample.dataset_index)), None)) for sample in samples]
    _check_positions([(question, sample.options) for sample, question in pairs if question is not None])
    n = max((len(question.outputs) for question in questions), default=1)
    asked: list[Asked] = []
    others = 0
    for sample, question in pairs:
        outputs = (StoredOutput("", error=LOST),) * n
        if question is None:
            findings.lost.append(sample.uid)
        elif differences := _differences(question, sample):
            others += 1
            findings.extra.append(f"{sample.uid} ({differences})")
            outputs = (StoredOutput("", error=f"of another question: {differences}"),) * n
        else:
            outputs = question.outputs
        asked.append((sample.dataset_name, sample, outputs))
    findings.extra += [f"{name} {key}" for name, key in stored]
    if 2 * others >= len(questions) - len(stored):
        return []
    order = {name: place for place, name in enumerate(dict.fromkeys(name for name, _, _ in asked))}
    return sorted(asked, key=lambda item: order[item[0]])


def right_label(question: StoredQuestion, options: Mapping[str, str]) -> str | None:
    """Returns the right letter of a stored question, as far as one is stored."""
    return next(filter(None, (label_of(gold, options) for gold in question.golds)), None)


def _differences(question: StoredQuestion, sample: Sample) -> str:
    """What is stored of a question and contradicts the benchmark's; "" if nothing does."""
    found = []
    right = right_label(question, sample.options)
    if right not in (None, sample.answer_label):
        found.append(f"right is {right} there, {sample.answer_label} here")
    theirs, ours = ({k: _plain(v) for k, v in undressed(o).items()} for o in (question.options, sample.options))
    if theirs and list(theirs) == list(ours):  # a last option that was read out of a prompt ends with its line
        last = list(ours)[-1]
        ours[last] = theirs[last] if theirs[last] == _plain(sample.options[last].partition("\n")[0]) else ours[last]
    if theirs and theirs != ours:
        found.append("other options")
    texts = (_plain(sample.question), _plain(question.question))  # a context, or a whole prompt, may stand around one
    if texts[0] not in texts[1] not in texts[0]:
        found.append(f"there it asks {question.question!r:.80}")
    return ", ".join(found)


def _plain(text: str) -> str:
    return " ".join(_PICTURE.sub(" ", text).split()).casefold()


def _check_positions(pairs: Sequence[tuple[StoredQuestion, Mapping[str, str]]]) -> None:
    """Refuses right answers that are stored as positions and cannot count from 0."""
    counted: set[str] = set()
    beyond: dict[str, str] = {}
    for question, options in pairs:
        gold = next((gold for gold in question.golds if label_of(gold, options) is not None), None)
        if gold is not None and position_of(gold) is not None:
            counted.add(question.benchmark)
        elif gold is None and options and any(position_of(value) is not None for value in question.golds):
            beyond.setdefault(question.benchmark, f"{question.key} ({len(options)} options)")
    for name in sorted(counted & beyond.keys()):
        raise DataError(
            f"expected the right answers of {name} as positions from 0, found one beyond the options at question "
            f"{beyond[name]}; they may count from 1: store letters instead"
        )
