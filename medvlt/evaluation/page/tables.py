# SPDX-License-Identifier: Apache-2.0
"""Tables of the page: numbers turned to words, nothing computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvlt.evaluation.page.svg import glyph
from medvlt.evaluation.page.text import NONE, p_text, percent, points
from medvlt.evaluation.published import PublishedRow
from medvlt.evaluation.runs import EvaluationRun
from medvlt.evaluation.scores import MEAN, BenchmarkScore, Comparison, ControlResult, Interval, ReportData

SIGNIFICANT = 0.05
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
            "baseline" if run.label == data.baseline else "",
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


def details(data: ReportData) -> list[tuple[str, ...]]:
    """Returns one row per run and benchmark, with what the table of results leaves out."""
    return [
        (
            run.label,
            score.benchmark,
            f"{score.questions:,}",
            str(score.n),
            percent(score.chance),
            percent(score.format_rate),
            percent(score.truncation_rate),
            f"{score.failed:,}",
            NONE if score.mean_tokens is None else f"{score.mean_tokens:,.1f}",
            _range(score.majority),
            percent(score.pass_at_k[max(score.pass_at_k)]) if score.n > 1 else NONE,
            NONE if score.repeat_std is None else percent(score.repeat_std, 2),
            NONE if score.flip_rate is None else percent(score.flip_rate),
            percent(score.minimum_detectable),
        )
        for run in data.runs
        for score in run.benchmarks
    ]


DETAILS = (
    "run", "benchmark", "questions", "n", "chance", "asked format", "cut", "failed", "mean tokens", "majority vote",
    "pass@n", "deviation of repeats", "questions that flip", "detectable difference",
)  # fmt: skip


def in_words(comparison: Comparison) -> str:
    """Returns a comparison as a sentence that claims no more than the test does."""
    if comparison.p_adjusted < SIGNIFICANT:
        size = percent(abs(comparison.difference.value))
        return f"{size} points {'better' if comparison.difference.value > 0 else 'worse'} than the baseline."
    if comparison.minimum_detectable is None:
        return "No difference shown."
    return f"No difference shown; {percent(comparison.minimum_detectable)} points would be found 4 times in 5."


def comparisons(found: Sequence[Comparison]) -> dict[str, list[ComparisonRow]]:
    """Returns the comparisons of each run, in the order given."""
    by_run: dict[str, list[ComparisonRow]] = {}
    for item in found:
        cells = (
            Cell("mean of all" if item.benchmark == MEAN else item.benchmark, f"{item.questions:,} questions"),
            Cell(points(item.difference.value), f"{points(item.difference.low)} to {points(item.difference.high)}"),
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
            item.control,
            item.benchmark,
            f"{item.questions:,}",
            points(item.difference.value),
            f"[{points(item.difference.low)}, {points(item.difference.high)}]",
            percent(item.consistency),
        )
        for item in found
    ]


CONTROLS = ("run", "control", "benchmark", "questions", "run minus control", "95% interval", "same option, %")


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


def _score(score: BenchmarkScore | None) -> Cell:
    return Cell(NONE) if score is None else _interval(score.interval)


def _interval(found: Interval) -> Cell:
    return Cell(percent(found.value), f"{percent(found.low)} to {percent(found.high)}", found.value)


def _range(found: Interval | None) -> str:
    return NONE if found is None else f"{percent(found.value)} ({percent(found.low)} to {percent(found.high)})"


def _published(
    row: PublishedRow, data: ReportData, comparable: Sequence[str], with_mean: bool, mark: int | None
) -> Row:
    values = [row.scores.get(name) if name in comparable else None for name in data.benchmarks]
    values.append(row.average if with_mean else None)
    cells = tuple(Cell(NONE) if value is None else Cell(f"{value:.1f}", "", value / 100) for value in values)
    return Row(row.model, "published", None, "", cells, mark)
