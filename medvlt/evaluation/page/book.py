# SPDX-License-Identifier: Apache-2.0
"""The rollout book: questions with what each run answered, as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvlt.evaluation.page.pictures import Thumbnails
from medvlt.evaluation.page.svg import glyph
from medvlt.evaluation.page.text import TEXT_LIMIT, parts, shortened
from medvlt.evaluation.runs import EvaluationRun, shown_questions
from medvlt.evaluation.scores import ReportData, RunScores

COMPLETIONS = 8
"""Completions of one question and run that are shown."""

BOOK_LIMIT = 16_000_000
"""Characters of all completions of a page, about; many completions are cut shorter than few."""

SHORTEST = 600
"""A completion is never cut below this many characters."""

FIELD_LIMIT = 2_000
"""Characters of a question, an option or an error that are shown."""


@dataclass(frozen=True)
class Option:
    """An option of a question, and whether it is the right one."""

    letter: str
    text: str
    right: bool


@dataclass(frozen=True)
class Answer:
    """A completion as it is shown.

    Attributes:
        number: Of the completion, from 0.
        before: Text before the thought.
        thought: The thought, folded.
        after: The rest, with the answer.
        choice: The letter it chose and that option's text; empty for none.
        state: "right", "wrong" or "failed".
        truncated: Whether it was cut at the token limit.
        reason: Why the grader said so.
        tokens: Its length; None if it was not stored.
        finish: Why it ended.
        error: Why it never came.
        reward: In training; None elsewhere, or if there was none.
        advantage: In training; None elsewhere.
    """

    number: int
    before: str
    thought: str
    after: str
    choice: str
    state: str
    truncated: bool
    reason: str
    tokens: int | None
    finish: str
    error: str
    reward: float | None = None
    advantage: float | None = None


@dataclass(frozen=True)
class Group:
    """The completions of a question by one run.

    Attributes:
        run: Number of the run.
        glyph: Its marker.
        label: Its name.
        control: Name of the control under which it was asked; empty for none.
        right: Right completions.
        n: All completions.
        options: Options as this run saw them, where they differ from those of the card; else empty.
        answers: The first completions.
    """

    run: int
    glyph: str
    label: str
    control: str
    right: int
    n: int
    options: tuple[Option, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Card:
    """A question.

    Attributes:
        benchmark: Number of its benchmark.
        heading: Benchmark or data set.
        uid: Of the question.
        question: Its text.
        options: Of the first run that shows it as it is.
        pictures: Data URLs; None for one that is not there.
        groups: One for each run that was asked.
        changed: Whether the runs differ in how often they are right.
    """

    benchmark: int
    heading: str
    uid: str
    question: str
    options: tuple[Option, ...]
    pictures: tuple[str | None, ...]
    groups: tuple[Group, ...]
    changed: bool


def cards(
    runs: Sequence[EvaluationRun], data: ReportData, questions: int, thumbnails: Thumbnails, notes: list[str]
) -> list[Card]:
    """Returns some questions of each benchmark, those of which the runs kept thumbnails first.

    Args:
        runs: In the order of the report.
        data: Their scores, in that order.
        questions: Most questions of each benchmark.
        thumbnails: Gives the pictures.
        notes: Where to add what was left out.
    """
    benchmarks = list(dict.fromkeys(name for run in runs for name in run.benchmarks))
    asked = {name: list(dict.fromkeys(uid for run in runs for uid in _uids(run, name))) for name in benchmarks}
    chosen = {name: shown_questions(asked[name], questions) for name in benchmarks}
    stored = [_by_question(run, chosen) for run in runs]
    shown = sum(min(len(lines), COMPLETIONS) for found in stored for lines in found.values())
    limit = text_limit(shown)
    if any(len(chosen[name]) < len(asked[name]) for name in benchmarks):
        counts = f"{sum(map(len, chosen.values())):,} of {sum(map(len, asked.values())):,}"
        notes.append(f"The rollout book shows {counts} questions, at most {questions} of each benchmark.")
    if any(len(lines) > COMPLETIONS for found in stored for lines in found.values()):
        notes.append(f"The rollout book shows the first {COMPLETIONS} completions of a question and run.")
    if any(len(line["completion"] or "") > limit for found in stored for lines in found.values() for line in lines):
        notes.append(f"The rollout book leaves out the middle of texts of more than {limit:,} characters.")
    ordered = sorted(range(len(runs)), key=lambda number: bool(runs[number].about.get("control")))
    return [
        _card(
            place,
            name,
            uid,
            [(number, runs[number], stored[number].get((name, uid), [])) for number in ordered],
            data,
            limit,
            thumbnails,
        )
        for place, name in enumerate(benchmarks)
        for uid in chosen[name]
    ]


def text_limit(completions: int) -> int:
    """Returns how many characters of each of so many completions are shown."""
    return min(TEXT_LIMIT, max(SHORTEST, BOOK_LIMIT // max(completions, 1)))


def options(record: Mapping[str, Any]) -> tuple[Option, ...]:
    """Returns the options of a stored completion."""
    right = record["answer_label"]
    return tuple(
        Option(str(letter), shortened(str(text), FIELD_LIMIT), letter == right)
        for letter, text in (record["options"] or {}).items()
    )


def answer(record: Mapping[str, Any], limit: int, *, lengths: bool = True) -> Answer:
    """Returns a stored completion as it is shown, its texts cut to about `limit` characters.

    Args:
        record: As it is stored.
        limit: Of each text.
        lengths: Whether its length is known.
    """
    text = parts(str(record["completion"] or ""))
    letter = record["label"]
    chosen = "" if letter is None else f"{letter}. {(record['options'] or {}).get(letter, '')}".removesuffix(". ")
    failed = record["finish_reason"] == "error"
    return Answer(
        number=int(record["sample"]),
        before=shortened(text.before, limit),
        thought=shortened(text.thought, limit),
        after=shortened(text.after, limit),
        choice=shortened(chosen, FIELD_LIMIT),
        state="failed" if failed else "right" if record["correct"] else "wrong",
        truncated=record["finish_reason"] == "length",
        reason=str(record["reason"]),
        tokens=int(record["tokens"]) if lengths else None,
        finish=str(record["finish_reason"]),
        error=shortened(str(record.get("error") or ""), FIELD_LIMIT),
    )


def _card(
    place: int,
    name: str,
    uid: str,
    found: Sequence[tuple[int, EvaluationRun, Sequence[Mapping[str, Any]]]],
    data: ReportData,
    limit: int,
    thumbnails: Thumbnails,
) -> Card:
    there = [(number, run, lines) for number, run, lines in found if lines]  # the runs without a control come first
    first = there[0][2][0]
    pictures = next((lines[0]["picture_ids"] for _, _, lines in there if lines[0]["picture_ids"]), ())
    in_order = sorted(there, key=lambda item: item[0])
    groups = [
        _group(number, data.runs[number], name, run, lines, options(first), limit) for number, run, lines in in_order
    ]
    return Card(
        benchmark=place,
        heading=name,
        uid=uid,
        question=shortened(str(first["question"]), FIELD_LIMIT),
        options=options(first),
        pictures=tuple(thumbnails.url(str(identity)) for identity in pictures),
        groups=tuple(groups),
        changed=len({group.right / group.n for group in groups}) > 1,
    )


def _group(
    number: int,
    scores: RunScores,
    benchmark: str,
    run: EvaluationRun,
    lines: Sequence[Mapping[str, Any]],
    asked: tuple[Option, ...],
    limit: int,
) -> Group:
    own, control, score = options(lines[0]), run.about.get("control"), scores.of(benchmark)
    lengths = score is not None and score.mean_tokens is not None
    return Group(
        run=number,
        glyph=glyph(number),
        label=scores.label,
        control=str(control.get("name") or "unnamed") if isinstance(control, dict) else "",
        right=sum(bool(line["correct"]) for line in lines),
        n=len(lines),
        options=() if own == asked else own,
        answers=tuple(answer(line, limit, lengths=lengths) for line in lines[:COMPLETIONS]),
    )


def _by_question(
    run: EvaluationRun, chosen: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in run.records(chosen):
        found.setdefault((record["benchmark"], record["uid"]), []).append(record)
    return found


def _uids(run: EvaluationRun, name: str) -> tuple[str, ...]:
    return run.benchmarks[name].uids if name in run.benchmarks else ()
