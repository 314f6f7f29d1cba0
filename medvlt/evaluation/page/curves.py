# SPDX-License-Identifier: Apache-2.0
"""Figures of several completions per question, and of their lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from medvlt.evaluation.page.figures import Shown, legend
from medvlt.evaluation.page.svg import colour, grid, marker
from medvlt.evaluation.page.text import label
from medvlt.evaluation.runs import EvaluationRun
from medvlt.evaluation.scores import MEAN, ReportData, RunScores
from medvlt.evaluation.wording import MEAN_NAME, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTILES = 5

LEAST = 10
"""Completions of a group of similar length; smaller ones are not shown."""


class LengthBin(NamedTuple):
    """Completions of similar length."""

    shortest: int
    longest: int
    completions: int
    mean_tokens: float
    accuracy: float


def length_bins(
    tokens: npt.NDArray[np.int64], correct: npt.NDArray[np.bool_], bins: int = QUANTILES
) -> list[LengthBin]:
    """Returns groups of completions between quantiles of their length; equal lengths are never parted.

    Args:
        tokens: Length of each completion, (N,).
        correct: Whether it is right, (N,).
        bins: Most groups; fewer where many lengths are equal, none for no completions.

    Example:
        >>> [tuple(found)[:3] for found in length_bins(np.array([1, 2, 3, 3]), np.array([1, 0, 1, 1]) > 0, bins=2)]
        [(1, 2, 2), (3, 3, 2)]
    """
    if not len(tokens):
        return []
    inner = np.unique(np.quantile(tokens, np.arange(1, bins) / bins))
    places = np.searchsorted(inner, tokens, side="left")
    found = []
    for place in np.unique(places):
        chosen = places == place
        lengths = tokens[chosen]
        accuracy = float(correct[chosen].mean())
        found.append(LengthBin(int(lengths.min()), int(lengths.max()), len(lengths), float(lengths.mean()), accuracy))
    return found


def pass_curves(data: ReportData) -> Shown | None:
    """Returns pass@k of the runs with several completions per question; None if there are none."""
    several = [name for name in data.benchmarks if any((s := run.of(name)) and s.n > 1 for run in data.runs)]
    if not several:
        return None

    def draw(axes: Axes, name: str) -> None:
        if name == MEAN:
            axes.set_title(MEAN_NAME)
        most = 1
        for number, run in enumerate(data.runs):
            curve = mean_curve(run) if name == MEAN else _curve(run, name)
            most = max(most, *curve, 1)
            values = [100 * value for value in curve.values()]
            axes.plot(list(curve), values, color=colour(number), marker=marker(number), markersize=4)
        ticks = [2**power for power in range(most.bit_length()) if 2**power <= most]
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set(ylim=(0, 102), xlabel="k", ylabel="pass@k, %")

    labels = {i: run.label for i, run in enumerate(data.runs) if any(score.n > 1 for score in run.benchmarks)}
    rows = tuple(
        (label(run.label, 80), score.benchmark, str(k), percent(value))
        for run in data.runs
        for score in run.benchmarks
        if score.n > 1
        for k, value in sorted(score.pass_at_k.items())
    )
    return Shown(
        "pass",
        "pass@k",
        "Share of questions of which at least one of k completions is right: the unbiased estimate from all n. "
        "The mean is over benchmarks, unweighted. A curve that hardly rises belongs to a model that repeats itself.",
        f"pass@k curves of {len(labels)} runs on {len(several)} benchmarks.",
        grid("pass", [*several, *([MEAN] if len(several) > 1 else [])], draw),
        legend(labels),
        ("run", "benchmark", "k", "pass@k, %"),
        rows,
    )


def mean_curve(run: RunScores) -> dict[int, float]:
    """Returns pass@k averaged over all benchmarks of a run, for the k that all have; empty if one has no such curve."""
    curves = [_curve(run, score.benchmark) for score in run.benchmarks]
    shared = [k for k in curves[0] if all(k in curve for curve in curves)] if curves else []
    return {k: sum(curve[k] for curve in curves) / len(curves) for k in shared}


def _curve(run: RunScores, name: str) -> dict[int, float]:
    score = run.of(name)
    return {} if score is None or score.n < 2 else dict(sorted(score.pass_at_k.items()))


def pass_counts(data: ReportData) -> Shown | None:
    """Returns how many questions were right how often, of runs with several completions; None if there are none."""
    several = [name for name in data.benchmarks if any((s := run.of(name)) and s.n > 1 for run in data.runs)]
    if not several:
        return None

    def draw(axes: Axes, name: str) -> None:
        found = [(i, score) for i, run in enumerate(data.runs) if (score := run.of(name)) is not None and score.n > 1]
        width = 0.84 / len(found)
        for place, (number, score) in enumerate(found):
            shift = (place - (len(found) - 1) / 2) * width
            heights = 100 * np.array(score.pass_counts) / score.questions
            axes.bar(np.arange(score.n + 1) + shift, heights, width=width * 0.92, color=colour(number))
        most = max(score.n for _, score in found)
        axes.set_xticks(range(0, most + 1, max(1, most // 8)))
        axes.grid(axis="x", visible=False)
        axes.set(xlabel="right completions", ylabel="questions, %")

    labels = {i: run.label for i, run in enumerate(data.runs) if any(score.n > 1 for score in run.benchmarks)}
    rows = tuple(
        (label(run.label, 80), score.benchmark, str(count), f"{questions:,}")
        for run in data.runs
        for score in run.benchmarks
        if score.n > 1
        for count, questions in enumerate(score.pass_counts)
    )
    return Shown(
        "counts",
        "Pass counts",
        "How often each question was answered rightly. Questions at both ends teach nothing to a policy trained on "
        "groups; those between do.",
        f"Histograms of pass counts of {len(labels)} runs on {len(several)} benchmarks.",
        grid("counts", several, draw),
        legend(labels),
        ("run", "benchmark", "right completions", "questions"),
        rows,
    )


def lengths(data: ReportData, runs: Sequence[EvaluationRun]) -> Shown | None:
    """Returns the accuracy of short and long completions, in groups of equal size; None if no run knows lengths."""
    found = {
        (number, name): bins
        for number, run in enumerate(runs)
        for name, answers in run.benchmarks.items()
        if (score := data.runs[number].of(name)) is not None and score.mean_tokens is not None
        if (bins := _large(answers.tokens[~answers.failed], answers.correct[~answers.failed]))
    }
    if not found:
        return None
    labels = {number: data.runs[number].label for number, _ in found}
    panels = [name for name in data.benchmarks if any(name == of for _, of in found)]

    def draw(axes: Axes, name: str) -> None:
        for number in range(len(runs)):
            bins = found.get((number, name), [])
            x, y = [b.mean_tokens for b in bins], [100 * b.accuracy for b in bins]
            axes.plot(x, y, color=colour(number), marker=marker(number), markersize=4)
        sizes = [b.completions for (_, of), bins in found.items() if of == name for b in bins]
        counts = f"mean tokens of groups of {min(sizes):,} to {max(sizes):,}"
        axes.set(ylim=(0, 102), xlabel=counts, ylabel="accuracy, %")

    rows = tuple(
        (
            label(data.runs[number].label, 80),
            name,
            f"{b.shortest:,} to {b.longest:,}",
            f"{b.completions:,}",
            percent(b.accuracy),
        )
        for (number, name), bins in found.items()
        for b in bins
    )
    return Shown(
        "lengths",
        "Length against correctness",
        f"Completions that came, in up to {QUANTILES} groups between quantiles of their length; how many "
        f"are in a group stands below each panel, and groups of fewer than {LEAST} are left out. Hard questions draw "
        "long answers, so a falling line does not say that thinking harms.",
        f"Accuracy by length of the completion, {len(labels)} runs on {len(panels)} benchmarks.",
        grid("lengths", panels, draw),
        legend(labels),
        ("run", "benchmark", "tokens", "completions", "accuracy, %"),
        rows,
    )


def _large(tokens: npt.NDArray[np.int64], correct: npt.NDArray[np.bool_]) -> list[LengthBin]:
    bins = length_bins(tokens, correct, max(1, min(QUANTILES, len(tokens) // LEAST)))
    return [one for one in bins if one.completions >= LEAST]
