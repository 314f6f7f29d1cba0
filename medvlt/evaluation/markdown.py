# SPDX-License-Identifier: Apache-2.0
"""A report as Markdown, in the dialect of GitHub."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from medvlt.curation.card import NOTICE, cell
from medvlt.evaluation.alignment import WARNING, control_name, grader_text, prompt_text, sampling_text
from medvlt.evaluation.analysis import comparable_benchmarks, comparable_means
from medvlt.evaluation.published import PUBLISHED
from medvlt.evaluation.runs import EvaluationRun
from medvlt.evaluation.scores import BenchmarkScore, Comparison, ReportData, RunScores
from medvlt.evaluation.wording import (
    HOW_TO_READ,
    MDE_NAME,
    MEAN_NAME,
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
    summary_of_tests,
    with_bounds,
)

SHOWN_FAILURES = 20
"""Failures that are written out; the rest is counted."""

_LONG = 4_000  # letters of a note; longer ones are cut


def markdown(data: ReportData, runs: Sequence[EvaluationRun], *, title: str) -> str:
    """Returns a report as Markdown; texts of runs are shown as they are, whatever they contain.

    Args:
        data: The numbers.
        runs: The runs behind `data.runs`, in that order.
        title: Its heading.
    """
    lines = [f"# {cell(title)}", "", NOTICE, ""]
    if data.notes:
        lines += ["## Notes", "", *map(_note, data.notes), ""]
    lines += ["## Accuracy", "", "Percent with a 95% interval.", "", *_accuracy(data, runs), ""]
    lines += ["## Details", "", *_details(data), ""]
    if data.comparisons:
        lines += [f"## Compared with {cell(data.baseline)}", "", *_comparisons(data.comparisons), ""]
    if data.controls:
        lines += ["## Controls", "", *_controls(data), ""]
    if data.failures:
        lines += ["## Completions that never came", "", *_failures(data), ""]
    lines += ["## Runs", "", *_runs(data, runs), ""]
    lines += ["## How to read this", "", *(f"- {line}" for line in HOW_TO_READ), "", NOTICE, ""]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """Returns the lines of a table of finished cells; the first `left` columns stand at the left, others at the right.

    Args:
        head: Headings.
        rows: Cells, already safe for Markdown.
        left: Columns with words.
    """
    sides = ["---" if number < left else "---:" for number in range(len(head))]
    return ["| " + " | ".join(row) + " |" for row in (head, sides, *rows)]


def _note(note: str) -> str:
    text = cell(note, _LONG)
    return f"- **{text}**" if note.startswith(WARNING) else f"- {text}"


def _accuracy(data: ReportData, runs: Sequence[EvaluationRun]) -> list[str]:
    comparable = comparable_benchmarks(data)
    several = len(data.benchmarks) > 1
    head = ["run", *(f"{cell(name)} ({_questions(data, name):,})" for name in data.benchmarks)]
    rows = [
        [
            f"**{cell(run.label)}**{' (baseline)' if run.label == data.baseline else ''}"
            f"{_protocol(stored) if comparable else ''}",
            *("" if (score := run.of(name)) is None else with_bounds(score.accuracy) for name in data.benchmarks),
            *([_mean(run, data)] if several else []),
        ]
        for run, stored in zip(data.runs, runs, strict=True)
    ]
    chances = [_first(data, name).chance for name in data.benchmarks]
    known = [chance for chance in chances if chance is not None]
    chance = sum(known) / len(known) if len(known) == len(chances) else None
    rows.append(["chance", *map(percent, chances), *([percent(chance)] if several else [])])
    if comparable:
        averages = comparable_means(data)
        rows += [
            [
                f"*{cell(row.model)}* (published)",
                *(published_text(row.scores[name] if name in comparable else None) for name in data.benchmarks),
                *([published_text(row.average if averages else None)] if several else []),
            ]
            for row in PUBLISHED
        ]
    lines = table([*head, *([MEAN_NAME] if several else [])], rows)
    if comparable:
        lines += ["", "Of the published rows:", ""]
        for note in dict.fromkeys(row.note for row in PUBLISHED if row.note):
            models = ", ".join(cell(row.model) for row in PUBLISHED if row.note == note)
            lines.append(f"- {cell(note)}. So it is with {models}.")
    return lines


def _mean(run: RunScores, data: ReportData) -> str:
    mark = mean_mark(run, data)
    return with_bounds(run.macro) + (f" *{mark}*" if mark else "")


def _protocol(run: EvaluationRun) -> str:
    """What must be known of a run that stands beside published numbers."""
    return f": {cell(sampling_text(run))}; grader {cell(grader_text(run))}; prompt {cell(prompt_text(run))}"


def _details(data: ReportData) -> list[str]:
    head = (
        "run", "benchmark", "questions", "n", "right", "of", "accuracy", "95% interval", "interval by picture",
        "chance", MDE_NAME, "format", "cut", "failed", "tokens", "majority", "pass@n", REPEATS_NAME, "flips",
    )  # fmt: skip
    rows = [_detail(run, score) for run in data.runs for score in run.benchmarks]
    return table(head, rows, left=2)


def _detail(run: RunScores, score: BenchmarkScore) -> list[str]:
    several = score.n > 1
    return [
        cell(run.label),
        cell(score.benchmark),
        f"{score.questions:,}",
        str(score.n),
        f"{score.correct:,}",
        f"{score.questions * score.n:,}",
        percent(score.accuracy.value),
        bounds(score.accuracy),
        bounds(score.clustered) if score.clustered and has_interval(score.clustered) else "",
        percent(score.chance),
        percent(score.minimum_detectable),
        percent(score.format_rate),
        percent(score.truncation_rate),
        f"{score.failed:,}",
        "" if score.mean_tokens is None else f"{score.mean_tokens:.1f}",
        with_bounds(score.majority) if score.majority else "",
        percent(score.pass_at_k[score.n]) if several else "",
        f"{100 * score.repeat_std:.2f}" if score.repeat_std is not None else "",
        percent(score.flip_rate),
    ]


def _comparisons(comparisons: Sequence[Comparison]) -> list[str]:
    head = (
        "run", "benchmark", "test", "questions", "difference, points", "95% interval", "run better",
        "baseline better", "p", "p (Holm)", "McNemar p", MDE_NAME,
    )  # fmt: skip
    rows = [
        [
            cell(one.run),
            cell(benchmark_name(one.benchmark)),
            one.test,
            f"{one.questions:,}",
            points(one.difference.value),
            difference_bounds(one.difference),
            f"{one.only_run:,}",
            f"{one.only_baseline:,}",
            p_text(one.p_value),
            f"**{p_text(one.p_adjusted)}**" if one.p_adjusted < SIGNIFICANT else p_text(one.p_adjusted),
            p_text(one.mcnemar),
            percent(one.minimum_detectable),
        ]
        for one in comparisons
    ]
    return [*table(head, rows, left=3), "", summary_of_tests(comparisons)]


def _controls(data: ReportData) -> list[str]:
    head = (
        "run",
        "under the control",
        "benchmark",
        "questions",
        "accuracy lost, points",
        "95% interval",
        "same choice",
    )
    rows = [
        [
            cell(one.run),
            cell(one.control_run),
            cell(one.benchmark),
            f"{one.questions:,}",
            points(one.difference.value),
            difference_bounds(one.difference),
            percent(one.consistency),
        ]
        for one in data.controls
    ]
    words = (
        "Accuracy of the run minus its accuracy under the control. Same choice: percent of questions on which both "
        "chose an option of the same text."
    )
    return [*table(head, rows, left=3), "", words]


def _failures(data: ReportData) -> list[str]:
    rows = [
        [cell(run), cell(benchmark), cell(uid), cell(message), str(number)]
        for run, benchmark, uid, number, message in data.failures[:SHOWN_FAILURES]
    ]
    lines = table(("run", "benchmark", "question", "why", "completion"), rows, left=4)
    more = len(data.failures) - SHOWN_FAILURES
    return [*lines, "", f"{more:,} more."] if more > 0 else lines


def _runs(data: ReportData, runs: Sequence[EvaluationRun]) -> list[str]:
    head = (
        "run", "model", "checkpoint", "prompt", "sampling", "seed", "grader", "control", "graded again from",
        "started", "finished", "versions",
    )  # fmt: skip
    rows = []
    for scores, run in zip(data.runs, runs, strict=True):
        about = run.about
        said = (
            scores.label, about.get("model"), about.get("checkpoint"), prompt_text(run), sampling_text(run),
            about.get("seed"), grader_text(run), control_name(run), _regraded(run), about.get("started"),
            about.get("finished"),
            ", ".join(f"{name} {version}" for name, version in sorted((about.get("versions") or {}).items())),
        )  # fmt: skip
        rows.append(["" if value is None else cell(value, _LONG) for value in said])
    return table(head, rows, left=len(head))


def _regraded(run: EvaluationRun) -> str | None:
    source = run.about.get("regraded_from")
    if not source:
        return None
    grader = source.get("grader") or {}
    return f"{source.get('label', '')} ({grader.get('policy')}, version {grader.get('version')})"


def _first(data: ReportData, benchmark: str) -> BenchmarkScore:
    return next(score for run in data.runs if (score := run.of(benchmark)) is not None)


def _questions(data: ReportData, benchmark: str) -> int:
    return _first(data, benchmark).questions  # all runs of a benchmark have the same questions
