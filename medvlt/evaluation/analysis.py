# SPDX-License-Identifier: Apache-2.0
"""From stored runs to the numbers of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from medvlt.evaluation.alignment import WARNING, AlignedRuns, align
from medvlt.evaluation.comparing import Clusters, compare_with_baseline, compare_with_controls, question_clusters
from medvlt.evaluation.published import BENCHMARKS, QUESTIONS
from medvlt.evaluation.runs import BenchmarkAnswers, EvaluationRun
from medvlt.evaluation.scores import BenchmarkScore, Interval, ReportData, RunScores
from medvlt.evaluation.statistics.intervals import (
    bootstrap_interval,
    effective_interval,
    effective_questions,
    mean_of_intervals,
)
from medvlt.evaluation.statistics.passes import majority_correct, pass_curve
from medvlt.evaluation.statistics.power import detectable_difference
from medvlt.evaluation.statistics.repeats import flip_rate, repeat_std


def analyse(
    runs: Sequence[EvaluationRun],
    *,
    baseline: EvaluationRun | None,
    intersect: bool = False,
    seed: int = 0,
    samples: int = 10_000,
) -> ReportData:
    """Returns everything a report says in numbers.

    Args:
        runs: The runs, in the order of the report.
        baseline: What they are compared with; may be one of them.
        intersect: Whether questions that some runs were not asked are left out, with a note.
        seed: Of all bootstraps and randomisation tests.
        samples: Draws of each.

    Raises:
        DataError: If there is no run, or they cannot be compared; see `align`.
    """
    return analyse_aligned(align(runs, baseline=baseline, intersect=intersect), seed=seed, samples=samples)


def analyse_aligned(aligned: AlignedRuns, *, seed: int = 0, samples: int = 10_000) -> ReportData:
    """Returns the same of runs that are aligned already.

    Args:
        aligned: The runs.
        seed: Of all bootstraps and randomisation tests.
        samples: Draws of each.
    """
    clusters, chances = question_clusters(aligned), guessing(aligned)
    scores = tuple(
        score_run(run, label, clusters, chances, seed=seed, samples=samples)
        for run, label in zip(aligned.runs, aligned.labels, strict=True)
    )
    comparisons, not_compared = compare_with_baseline(aligned, clusters, seed=seed, samples=samples)
    controls, without_partner = compare_with_controls(aligned, clusters, seed=seed, samples=samples)
    failures = tuple(
        (label, name, uid, number, message)
        for run, label in zip(aligned.runs, aligned.labels, strict=True)
        for name, answers in run.benchmarks.items()
        for uid, number, message in answers.errors
    )
    notes = [*aligned.notes, *_score_notes(scores), *not_compared, *without_partner]
    return ReportData(
        runs=scores,
        baseline=aligned.labels[-1] if aligned.baseline else None,
        benchmarks=aligned.benchmarks,
        comparisons=comparisons,
        controls=controls,
        notes=tuple(sorted(notes, key=lambda note: not note.startswith(WARNING))),
        failures=failures,
    )


def guessing(aligned: AlignedRuns) -> dict[str, float | None]:
    """Returns what guessing gets right on each benchmark, by the first run that stored options; None if none did."""
    found: dict[str, float | None] = {}
    for name in aligned.benchmarks:
        tables = (aligned.runs[number].benchmarks[name].options for number in aligned.asked(name))
        options = next((table for table in tables if any(table)), ())
        found[name] = float(np.mean([1 / len(one) if one else 0.0 for one in options])) if options else None
    return found


def score_run(
    run: EvaluationRun, label: str, clusters: Clusters, chances: Mapping[str, float | None], *, seed: int, samples: int
) -> RunScores:
    """Returns what a run reached on each benchmark and in the mean.

    Args:
        run: The run.
        label: Its name in the report.
        clusters: Benchmark to the cluster of each question.
        chances: Benchmark to what guessing gets right.
        seed: Of the bootstraps.
        samples: Draws of each.
    """
    lengths = run.about.get("lengths", True)
    scores = tuple(
        score_benchmark(answers, clusters[name], chances[name], seed=seed, samples=samples, lengths=lengths)
        for name, answers in run.benchmarks.items()
    )
    macro = mean_of_intervals([score.accuracy for score in scores])
    return RunScores(label, run.folder.resolve().name, scores, macro)


def score_benchmark(
    answers: BenchmarkAnswers,
    clusters: npt.NDArray[np.int64],
    chance: float | None,
    *,
    seed: int,
    samples: int,
    lengths: bool = True,
) -> BenchmarkScore:
    """Returns what a run reached on one benchmark.

    Args:
        answers: Its answers.
        clusters: Of each question; where all are different, no bootstrap is needed.
        chance: What guessing gets right.
        seed: Of the bootstrap.
        samples: Its draws.
        lengths: Whether the lengths of completions are known.
    """
    questions, several = answers.questions, answers.n > 1
    scores = answers.scores
    came = ~answers.failed
    shared = len(set(clusters.tolist())) < questions
    accuracy = effective_interval(scores, clusters=clusters, completions=answers.n)
    return BenchmarkScore(
        benchmark=answers.benchmark,
        questions=questions,
        n=answers.n,
        correct=int(answers.correct.sum()),
        accuracy=accuracy,
        clustered=bootstrap_interval(scores, clusters=clusters, seed=seed, samples=samples) if shared else None,
        chance=chance,
        format_rate=float(answers.format_ok.mean()),
        truncation_rate=float(answers.truncated.mean()),
        failed=int(answers.failed.sum()),
        mean_tokens=float(answers.tokens[came].mean()) if lengths and came.any() else None,
        majority=_majority(answers, clusters) if several else None,
        pass_at_k=dict(pass_curve(answers.correct)),
        repeat_std=repeat_std(answers.correct) if several else None,
        pass_counts=tuple(np.bincount(answers.correct.sum(axis=1), minlength=answers.n + 1).tolist()),
        minimum_detectable=detectable_difference(
            accuracy.value, effective_questions(scores, clusters=clusters, completions=answers.n)
        ),
        flip_rate=flip_rate(answers.correct) if several else None,
    )


def comparable_benchmarks(data: ReportData) -> tuple[str, ...]:
    """Returns the benchmarks beside whose scores published ones may stand, in the order of the report.

    They have a published name, and every run of them was asked as many questions as were published.
    """
    return tuple(
        name
        for name in data.benchmarks
        if name in BENCHMARKS
        and all(score.questions == QUESTIONS[name] for run in data.runs if (score := run.of(name)) is not None)
    )


def comparable_means(data: ReportData) -> bool:
    """Returns whether published averages may stand beside the means: every run was asked the six and no other."""
    return set(comparable_benchmarks(data)) == set(BENCHMARKS) and all(
        {score.benchmark for score in run.benchmarks} == set(BENCHMARKS) for run in data.runs
    )


def _majority(answers: BenchmarkAnswers, clusters: npt.NDArray[np.int64]) -> Interval:
    return effective_interval(majority_correct(answers.labels, answers.answer_labels), clusters=clusters)


def _score_notes(scores: Sequence[RunScores]) -> list[str]:
    notes = [
        f"{WARNING}{run.label}: completions that never came: {failed:,}. They count as wrong."
        for run in scores
        if (failed := sum(score.failed for score in run.benchmarks))
    ]
    if len({frozenset(score.benchmark for score in run.benchmarks) for run in scores}) > 1:
        notes.append(f"{WARNING}the runs were asked different benchmarks, so their means are of different things.")
    return notes
