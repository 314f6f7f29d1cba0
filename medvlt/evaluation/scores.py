# SPDX-License-Identifier: Apache-2.0
"""What a report says of runs, as numbers: scores with intervals, comparisons with a baseline, controls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

MEAN = "mean"
"""Stands for the unweighted mean over benchmarks where the name of a benchmark is expected."""


class Interval(NamedTuple):
    """A number with the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BenchmarkScore:
    """What one run reached on one benchmark.

    Attributes:
        benchmark: Its name.
        questions: Questions asked, Q; the denominator, failed ones included.
        n: Completions of each.
        correct: Right completions, of Q * n.
        accuracy: Share that is right with its interval: Wilson's with the effective number of questions
            (`statistics.intervals.effective_interval`), which counts shared pictures and several completions.
        clustered: The same share with a bootstrap interval that draws pictures, to check the other by; None where no
            two questions share a picture. It has no width where all are right or all are wrong.
        chance: Share that guessing one of the options would get right, in [0, 1]; None if no run stored options.
        format_rate: Share of completions in the asked format.
        truncation_rate: Share cut at the token limit.
        failed: Completions that never came.
        mean_tokens: Mean length of those that came; None where none did, or lengths are not stored.
        majority: Accuracy of the majority vote; None with one completion.
        pass_at_k: k to the unbiased estimate of pass@k; {1: accuracy} with one completion.
        repeat_std: Sample standard deviation of the accuracies of the n repeats; None with one completion.
        pass_counts: How many questions were right 0, 1, ..., n times.
        minimum_detectable: Smallest difference from an equally accurate model on the same questions that a two-sided
            test at 0.05, before correction, would find with probability 0.8, unpaired; shared pictures counted.
        flip_rate: Share of questions of whose completions some are right and some are not; None with one completion.
    """

    benchmark: str
    questions: int
    n: int
    correct: int
    accuracy: Interval
    clustered: Interval | None
    chance: float | None
    format_rate: float
    truncation_rate: float
    failed: int
    mean_tokens: float | None
    majority: Interval | None
    pass_at_k: dict[int, float]
    repeat_std: float | None
    pass_counts: tuple[int, ...]
    minimum_detectable: float
    flip_rate: float | None = None


@dataclass(frozen=True)
class RunScores:
    """What one run reached.

    Attributes:
        label: Its name in tables, different from that of every other run of the report.
        folder: Name of the folder in which it lies, without the path: a report does not depend on where runs lie.
        benchmarks: In the order in which they were asked.
        macro: Unweighted mean over benchmarks with the interval that follows from theirs; never without width.
    """

    label: str
    folder: str
    benchmarks: tuple[BenchmarkScore, ...]
    macro: Interval

    def of(self, benchmark: str) -> BenchmarkScore | None:
        """Returns the score on a benchmark, None if the run did not ask it."""
        return next((score for score in self.benchmarks if score.benchmark == benchmark), None)


@dataclass(frozen=True)
class Comparison:
    """A run against the baseline on the same questions of one benchmark, or on the mean over benchmarks (`MEAN`).

    Attributes:
        run: Label of the run.
        baseline: Label of the baseline.
        benchmark: Name; `MEAN` for the unweighted mean over the benchmarks that both were asked.
        questions: Questions that both were asked.
        difference: Run minus baseline with its paired bootstrap interval (pictures are drawn, not questions). One
            without width, of runs that answered alike, is no interval.
        only_run: Questions that only the run has right; with several completions, on which it is right more often.
        only_baseline: The other way round.
        test: Name of the test behind `p_value`.
        p_value: Two-sided.
        p_adjusted: After Holm's correction over all comparisons of the report with this baseline.
        minimum_detectable: Smallest difference that the test would find with probability 0.8 at 0.05, before
            correction, given how often the two disagree and which questions share pictures; None for the mean.
        mcnemar: Two-sided p of the exact McNemar test, which takes questions as independent; None for the mean and
            where one of the two has several completions.
    """

    run: str
    baseline: str
    benchmark: str
    questions: int
    difference: Interval
    only_run: int
    only_baseline: int
    test: str
    p_value: float
    p_adjusted: float
    minimum_detectable: float | None
    mcnemar: float | None = None


@dataclass(frozen=True)
class ControlResult:
    """A run against the same model under a control (no pictures, blank pictures, options rotated).

    Attributes:
        run: Label of the run as it should be.
        control_run: Label of the run under the control.
        control: Name of the control.
        benchmark: Name of the benchmark.
        questions: Questions of both.
        difference: Accuracy of the run minus accuracy under the control, with a paired bootstrap interval.
        consistency: Share of questions whose chosen option has the same text in both (first completion); a question
            without a choice in either is inconsistent.
    """

    run: str
    control_run: str
    control: str
    benchmark: str
    questions: int
    difference: Interval
    consistency: float


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows, but for the completions themselves.

    Attributes:
        runs: Scores of each run, in the order given; the baseline last, if there is one.
        baseline: Label of the baseline, or None.
        benchmarks: Names of all benchmarks, in order of first appearance.
        comparisons: Runs against the baseline.
        controls: Runs against their controls.
        notes: What a reader must know, such as that only shared questions were compared; warnings first.
        failures: Completions that never came: (run, benchmark, uid, number, message), all of them.
    """

    runs: tuple[RunScores, ...]
    baseline: str | None
    benchmarks: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = ()
    controls: tuple[ControlResult, ...] = ()
    notes: tuple[str, ...] = ()
    failures: tuple[tuple[str, str, str, int, str], ...] = field(default=())
