# SPDX-License-Identifier: Apache-2.0
"""Tables of the page: numbers turned to words, nothing computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

from medvlt.evaluation.alignment import grader_text, prompt_text, sampling_text
from medvlt.evaluation.page.svg import glyph
from medvlt.evaluation.page.text import label
from medvlt.evaluation.published import PublishedRow
from medvlt.evaluation.runs import EvaluationRun
from medvlt.evaluation.scores import BenchmarkScore, Comparison, ControlResult, Interval, ReportData, RunScores
from medvlt.evaluation.wording import (
    MDE_NAME,
    REPEATS_NAME,
    SIGNIFICANT,
    benchmark_name,
    bounds,
    difference_bounds,
    has_interval,
    mean_mark,
    p_text,
    percent,
    points,
    published_text,
    with_bounds,
)

FAILURES = 50
"""Completions that never came, listed; the rest are counted."""


@dataclass(frozen=True)
class Cell:
    """A cell: a number, what stands small below it, and the value by which it is sorted."""

    main: str
    small: str = ""
    sort: float = float("-inf")


@dataclass(frozen=True)
class Row:
    """A row of the table of results; `run` is the number of an own run, None for a published one, `mark` a footnote."""

    label: str
    small: str
    run: int | None
    glyph: str
    cells: tuple[Cell, ...]
    mark: int | None = None


@dataclass(frozen=True)
class ComparisonRow:
    """A comparison: its cells, and whether a difference is shown."""

    cells: tuple[Cell, ...]
    words: str
    shown: bool


@dataclass(frozen=True)
class Section:
    """Rows of one kind, which are folded and sorted together."""

    name: str
    title: str
    rows: tuple[Row, ...]


def sections(
    data: ReportData, published: Sequence[PublishedRow], comparable: Sequence[str], *, with_mean: bool
) -> list[Section]:
    """Returns the table of results: own runs, then published recipes, then published other models."""
    own = tuple(
        Row(
            run.label,
            ", ".join(filter(None, ("baseline" if run.label == data.baseline else "", _mean_of(run, data)))),
            number,
            glyph(number),
            (*(_score(run.of(name)) for name in data.benchmarks), _interval(run.macro)),
        )
        for number, run in enumerate(data.runs)
    )
    found = [Section("own", "Runs of this report", own)]
    marks = {note: number for number, note in enumerate(footnotes(published), start=1)}
    for kind, title in (("recipe", "Published: recipes"), ("comparison", "Published: other models")):
        rows = tuple(
            _published(row, data, comparable, with_mean, marks.get(row.note)) for row in published if row.kind == kind
        )
        if comparable and rows:
            found.append(Section(kind, title, rows))
    return found


def footnotes(published: Sequence[PublishedRow]) -> list[str]:
    """Returns what does not add up in published rows, each once."""
    return list(dict.fromkeys(row.note for row in published if row.note))


def details(data: ReportData) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns header and rows, one per run and benchmark, with what the table of results leaves out.

    Columns that are empty in all rows are left out.
    """
    rows = [
        (
            run.label,
            score.benchmark,
            f"{score.questions:,}",
            str(score.n),
            percent(score.chance),
            percent(score.format_rate),
            percent(score.truncation_rate),
            f"{score.failed:,}",
            "" if score.mean_tokens is None else f"{score.mean_tokens:,.1f}",
            bounds(score.clustered) if score.clustered and has_interval(score.clustered) else "",
            "" if score.majority is None else with_bounds(score.majority),
            percent(score.pass_at_k[max(score.pass_at_k)]) if score.n > 1 else "",
            percent(score.repeat_std, 2),
            percent(score.flip_rate),
            percent(score.minimum_detectable),
        )
        for run in data.runs
        for score in run.benchmarks
    ]
    filled = [any(column) for column in zip(*rows, strict=True)]
    return tuple(compress(DETAILS, filled)), [tuple(compress(row, filled)) for row in rows]


DETAILS = (
    "run", "benchmark", "questions", "n", "chance", "asked format", "cut", "failed", "mean tokens",
    "interval by picture", "majority vote", "pass@n", REPEATS_NAME, "questions that flip", MDE_NAME,
)  # fmt: skip


def in_words(comparison: Comparison) -> str:
    """Returns a comparison as a sentence that claims no more than the test does."""
    if comparison.p_adjusted < SIGNIFICANT:
        size = percent(abs(comparison.difference.value))
        return f"{size} points {'better' if comparison.difference.value > 0 else 'worse'} than the baseline."
    if comparison.minimum_detectable is None:
        return "No difference shown."
    size = percent(comparison.minimum_detectable)
    return f"No difference shown; {size} points would be found 4 times in 5, before correction."


def comparisons(found: Sequence[Comparison]) -> dict[str, list[ComparisonRow]]:
    """Returns the comparisons of each run, in the order given."""
    by_run: dict[str, list[ComparisonRow]] = {}
    for item in found:
        cells = (
            Cell(benchmark_name(item.benchmark), f"{item.questions:,} questions"),
            Cell(points(item.difference.value), difference_bounds(item.difference)),
            Cell(f"{item.only_run:,}"),
            Cell(f"{item.only_baseline:,}"),
            Cell(p_text(item.p_value), item.test),
            Cell(p_text(item.p_adjusted)),
        )
        row = ComparisonRow(cells, in_words(item), item.p_adjusted < SIGNIFICANT)
        by_run.setdefault(item.run, []).append(row)
    return by_run


def controls(found: Sequence[ControlResult]) -> list[tuple[str, ...]]:
    """Returns the controls as rows."""
    return [
        (
            item.run,
            item.control_run,
            item.benchmark,
            f"{item.questions:,}",
            points(item.difference.value),
            difference_bounds(item.difference),
            percent(item.consistency),
        )
        for item in found
    ]


CONTROLS = (
    "run", "under the control", "benchmark", "questions", "accuracy lost, points", "95% interval", "same choice, %",
)  # fmt: skip


def protocols(runs: Sequence[EvaluationRun]) -> tuple[list[str], list[list[str]]]:
    """Returns how completions were made and graded: what all runs share, and what is of each run alone."""
    found = [
        (
            f"sampling {sampling_text(run)}",
            f"prompt {label(prompt_text(run), 80)}",
            f"grader {label(grader_text(run), 80)}",
        )
        for run in runs
    ]
    differs = [len(set(part)) > 1 for part in zip(*found, strict=True)]
    shared = [part for part, differing in zip(found[0], differs, strict=True) if not differing]
    return shared, [list(compress(of, differs)) for of in found]


def facts(run: EvaluationRun) -> list[tuple[str, str]]:
    """Returns what a run says of itself: name and value, in order of interest."""
    about = run.about
    grader, control = _mapping(about.get("grader")), _mapping(about.get("control"))
    found: dict[str, Any] = {
        "model": about.get("model"),
        "checkpoint": about.get("checkpoint"),
        "grader": " ".join(str(grader[key]) for key in ("policy", "version") if grader.get(key) is not None),
        "prompt": about.get("prompt"),
        "sampling": _listed(_mapping(about.get("sampling"))),
        "seed": about.get("seed"),
        "control": _listed(control),
        "stage": about.get("stage"),
        "limited to": about.get("limited_to"),
        "regraded from": _listed(_mapping(about.get("regraded_from"))) or about.get("regraded_from"),
        "started": about.get("started"),
        "finished": about.get("finished"),
        "versions": _listed(_mapping(about.get("versions"))),
    }
    return [(name, str(value)) for name, value in found.items() if value not in (None, "")]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(values: Mapping[str, Any]) -> str:
    shown = {name: f"({_listed(value)})" if isinstance(value, dict) else value for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value is not None)


def _mean_of(run: RunScores, data: ReportData) -> str:
    mark = mean_mark(run, data)
    return f"mean of {mark}" if mark else ""


def _score(score: BenchmarkScore | None) -> Cell:
    return Cell("") if score is None else _interval(score.accuracy)


def _interval(found: Interval) -> Cell:
    return Cell(percent(found.value), bounds(found), found.value)


def _published(
    row: PublishedRow, data: ReportData, comparable: Sequence[str], with_mean: bool, mark: int | None
) -> Row:
    values = [row.scores.get(name) if name in comparable else None for name in data.benchmarks]
    values.append(row.average if with_mean else None)
    cells = tuple(Cell("") if value is None else Cell(published_text(value), "", value / 100) for value in values)
    return Row(row.model, "", None, "", cells, mark)
