# SPDX-License-Identifier: Apache-2.0
"""Words and formats that all forms of a report share, so that a number reads the same in each."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from medvlt.evaluation.scores import MEAN, Comparison, Interval, ReportData, RunScores

SIGNIFICANT = 0.05
"""A p-value below it, after correction, is a difference that was shown."""

MEAN_NAME, REPEATS_NAME, MDE_NAME = "mean of benchmarks", "SD of repeats", "MDE"
"""Headings."""

NO_INTERVAL = "none: nothing varies"
"""Stands for the interval of a difference that is the same for all questions (or pictures): draws cannot tell it."""

HOW_TO_READ = (
    "Accuracy is the share of right completions in percent; what never came or was cut counts as wrong. A question is "
    "one observation, however many completions it has.",
    "Intervals hold 95%. Of one benchmark they are Wilson's with the effective number of questions: as many as would "
    "be as sure if each were independent, fewer where questions share pictures, since answers about one picture are "
    "alike. Interval by picture is a percentile bootstrap that draws pictures, a check of the former; it is too narrow "
    "with few pictures or an accuracy near 0 or 100. The mean is unweighted over benchmarks, its interval put together "
    "from theirs (MOVER).",
    "Overlapping intervals of two runs say little: both answered the same questions. The comparison with the baseline "
    "uses that: differences are per question, intervals draw questions (or pictures) for both runs together. Where "
    "nothing varies, as between runs that answered alike, there is no such interval.",
    "p is two-sided: McNemar's exact test with one completion each and a picture for each question, else a "
    "randomisation test that flips the signs of differences, of all questions about a picture together. That of the "
    "mean flips all questions, weighted so that each benchmark counts the same. Holm's correction is over all rows of "
    "the comparison.",
    "MDE, minimum detectable effect: the smallest difference, in points, that a test at 0.05 before correction finds "
    "with probability 0.8; of a run, against an equally accurate other one, unpaired; of a comparison, given how often "
    "the two disagree. A smaller difference that is not significant is no evidence that there is none.",
    "SD of repeats is how much the accuracy moves when the same questions are asked again; it says nothing of other "
    "questions and is no substitute for the interval.",
    "Chance is what guessing among the options gets right on average; none where no run stored options.",
    "Published rows are the paper's (arXiv 2508.02669): percent without intervals, by its own code and grader. They "
    "are shown only beside the same number of questions of the same benchmark, averages only if every run was asked "
    "these six and no other, and nothing is tested against them.",
    "How the grader reads was compared with verdicts that others stored: benchmarks/results/"
    "2026-11-23-grader-agreement.md in the sources of medvlt has the counts, disagreements by reason code included; "
    "`medvlt import` makes the same comparison for outputs of yours.",
)


def percent(share: float | None, digits: int = 1) -> str:
    """Returns a share in [0, 1] as percent without the sign; "" of none."""
    return "" if share is None else f"{100 * share:.{digits}f}"


def points(difference: float) -> str:
    """Returns a difference of shares in percentage points with its sign; none is +0.0."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def p_text(p_value: float | None) -> str:
    """Returns a p-value with four decimals, or a bound; "" of none.

    One that is significant never reads as one that is not: 0.04999 is cut to 0.0499.
    """
    if p_value is None:
        return ""
    if p_value < 0.0001:
        return "<0.0001"
    text = f"{p_value:.4f}"
    return f"{floor(p_value * 10_000) / 10_000:.4f}" if p_value < SIGNIFICANT <= float(text) else text


def published_text(value: float | None) -> str:
    """Returns a published number, in percent already, with the two decimals of the paper; "" of none."""
    return "" if value is None else f"{value:.2f}"


def bounds(interval: Interval) -> str:
    """Returns the interval of a share, in percent."""
    return f"{percent(interval.low)} to {percent(interval.high)}"


def with_bounds(interval: Interval) -> str:
    """Returns a share with its interval, in percent."""
    return f"{percent(interval.value)} ({bounds(interval)})"


def has_interval(difference: Interval) -> bool:
    """Whether draws say how sure a difference is; not where all of them are alike."""
    return difference.low < difference.high


def difference_bounds(difference: Interval) -> str:
    """Returns the interval of a difference, in points, or words where there is none."""
    return f"{points(difference.low)} to {points(difference.high)}" if has_interval(difference) else NO_INTERVAL


def benchmark_name(benchmark: str) -> str:
    """Returns the name of a benchmark, or of the mean over them, as it is shown."""
    return MEAN_NAME if benchmark == MEAN else benchmark


def mean_mark(run: RunScores, data: ReportData) -> str:
    """Returns what stands beside the mean of a run that was not asked all benchmarks of the report; else ""."""
    asked, every = len(run.benchmarks), len(data.benchmarks)
    return "" if asked == every else f"only {asked} of {every} benchmarks"


def summary_of_tests(comparisons: Sequence[Comparison]) -> str:
    """Returns in words how many comparisons are significant after correction."""
    found = sum(comparison.p_adjusted < SIGNIFICANT for comparison in comparisons)
    return f"{found} of {len(comparisons)} differences are significant at {SIGNIFICANT} after Holm's correction."
