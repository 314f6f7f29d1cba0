# SPDX-License-Identifier: Apache-2.0
"""A report as CSV: one row per run, benchmark and number, shares in [0, 1]."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from medvlt.evaluation.analysis import comparable_benchmarks, comparable_means
from medvlt.evaluation.published import PUBLISHED
from medvlt.evaluation.scores import MEAN, BenchmarkScore, Comparison, ControlResult, Interval, ReportData
from medvlt.evaluation.wording import NO_INTERVAL, has_interval, mean_mark

HEAD = ("section", "run", "other", "benchmark", "measure", "value", "low", "high", "questions", "n", "test", "remark")
"""`section` is score, comparison, control or published; `other` is the baseline or the run under a control."""

Cell = str | int | float | None
Row = tuple[Cell, ...]

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_table(data: ReportData) -> str:
    """Returns a report as CSV (RFC 4180) with the columns `HEAD`.

    Numbers are written so that they are read back exactly. A text that a spreadsheet would take for a formula has an
    apostrophe before it.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(HEAD)
    for row in _rows(data):
        writer.writerow([_guarded(value) for value in row])
    return buffer.getvalue()


def _guarded(value: Cell) -> str:
    if isinstance(value, str):
        return f"'{value}" if value.lstrip(" ").startswith(_FORMULA) else value
    return "" if value is None else repr(value)


def _rows(data: ReportData) -> Iterator[Row]:
    for run in data.runs:
        for score in run.benchmarks:
            for measure, value in _measures(score):
                yield _row("score", run.label, None, score.benchmark, measure, value, score.questions, score.n)
        yield _row("score", run.label, None, MEAN, "accuracy", run.macro, None, None, remark=mean_mark(run, data))
    for comparison in data.comparisons:
        for measure, value in _compared(comparison):
            test = comparison.test if measure.startswith("p_") else ""
            yield _row(
                "comparison", comparison.run, comparison.baseline, comparison.benchmark, measure, value,
                comparison.questions, None, test,
            )  # fmt: skip
    for control in data.controls:
        for measure, value in _controlled(control):
            yield _row(
                "control", control.run, control.control_run, control.benchmark, measure, value, control.questions, None
            )
    comparable = comparable_benchmarks(data)
    for row in PUBLISHED if comparable else ():
        for name in comparable:
            yield _row("published", row.model, None, name, "accuracy", round(row.scores[name] / 100, 6), None, None)
        if comparable_means(data):
            yield _row("published", row.model, None, MEAN, "accuracy", round(row.average / 100, 6), None, None)


def _row(
    section: str,
    run: str,
    other: str | None,
    benchmark: str,
    measure: str,
    value: Interval | float | int,
    questions: int | None,
    n: int | None,
    test: str = "",
    remark: str = "",
) -> Row:
    numbers: Row
    if not isinstance(value, Interval):
        numbers = (value, None, None)
    elif has_interval(value):
        numbers = tuple(value)
    else:
        numbers, remark = (value.value, None, None), NO_INTERVAL
    return (section, run, other, benchmark, measure, *numbers, questions, n, test, remark)


def _measures(score: BenchmarkScore) -> Iterator[tuple[str, Interval | float | int]]:
    """Yields what is known of a score; the accuracy has its interval, `accuracy_by_picture` the bootstrap's."""
    yield "accuracy", score.accuracy
    if score.clustered is not None:
        yield "accuracy_by_picture", score.clustered
    yield "right", score.correct
    if score.chance is not None:
        yield "chance", score.chance
    yield "minimum_detectable", score.minimum_detectable
    yield "format_rate", score.format_rate
    yield "truncation_rate", score.truncation_rate
    yield "failed", score.failed
    if score.mean_tokens is not None:
        yield "mean_tokens", score.mean_tokens
    if score.majority is not None:
        yield "majority", score.majority
    for k, value in score.pass_at_k.items():
        yield f"pass_at_{k}", value
    if score.repeat_std is not None:
        yield "repeat_std", score.repeat_std
    if score.flip_rate is not None:
        yield "flip_rate", score.flip_rate
    for times, questions in enumerate(score.pass_counts):
        yield f"questions_right_{times}_times", questions


def _compared(comparison: Comparison) -> Iterator[tuple[str, Interval | float | int]]:
    yield "difference", comparison.difference
    yield "only_run", comparison.only_run
    yield "only_baseline", comparison.only_baseline
    yield "p_value", comparison.p_value
    yield "p_adjusted", comparison.p_adjusted
    if comparison.mcnemar is not None:
        yield "mcnemar", comparison.mcnemar
    if comparison.minimum_detectable is not None:
        yield "minimum_detectable", comparison.minimum_detectable


def _controlled(control: ControlResult) -> Iterator[tuple[str, Interval | float | int]]:
    yield "difference", control.difference
    yield "consistency", control.consistency
