# SPDX-License-Identifier: Apache-2.0
"""Figures of the scores: with intervals, and as a radar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlt.evaluation.page.svg import INK, MUTED, PAPER, colour, drawing, glyph, inline, marker
from medvlt.evaluation.page.text import LABEL_LIMIT, label
from medvlt.evaluation.published import PublishedRow
from medvlt.evaluation.scores import MEAN, Interval, ReportData, RunScores
from medvlt.evaluation.wording import benchmark_name, percent, with_bounds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RADAR_RUNS = 8


@dataclass(frozen=True)
class LegendEntry:
    """A run in the legend of a figure.

    Attributes:
        glyph: Its marker.
        series: Number of its colour.
        label: Its name.
    """

    glyph: str
    series: int
    label: str


@dataclass(frozen=True)
class Shown:
    """A figure of the page.

    Attributes:
        name: Of its place in the page.
        title: Its heading.
        caption: What is drawn, and what to make of it.
        words: What a reader who cannot see it should know.
        svg: The drawing.
        legend: Its runs; empty where they are named inside.
        header: Columns of its numbers.
        rows: Its numbers, where no other table has them.
    """

    name: str
    title: str
    caption: str
    words: str
    svg: str
    legend: tuple[LegendEntry, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def legend(labels: Mapping[int, str]) -> tuple[LegendEntry, ...]:
    """Returns the legend of some runs.

    Args:
        labels: Number of a run to its label.
    """
    return tuple(LegendEntry(glyph(number), number % 8, label(name, 160)) for number, name in labels.items())


def forest(data: ReportData, published: Sequence[PublishedRow], comparable: Sequence[str], *, with_mean: bool) -> Shown:
    """Returns the accuracies with their intervals, benchmark by benchmark, beside published ones without.

    Args:
        data: With at least one run.
        published: Rows of the literature.
        comparable: Benchmarks whose published scores are of as many questions.
        with_mean: Whether published averages are over the same benchmarks.
    """
    blocks = [*data.benchmarks, *([MEAN] if len(data.benchmarks) > 1 else [])]
    labels = [run.label for run in data.runs]
    rows = len(blocks) * (len(data.runs) + 1) + len(comparable) + with_mean
    with drawing(11.6, 0.7 + 0.235 * rows) as figure:
        axes: Axes = figure.subplots()
        y, ticks, names = 0.0, [], []
        for block in blocks:
            heading = label(benchmark_name(block), 60)
            axes.text(0, y + 0.1, heading, fontweight="bold", va="center", ha="left", color=INK)
            y += 1
            top = y
            for number, run in enumerate(data.runs):
                found = _interval(run, block)
                if found is not None:
                    _whisker(axes, y, found, number)
                    ticks.append(y)
                    names.append(label(run.label))
                    y += 1
            chance = _chance(data, block)
            if chance is not None:
                axes.plot([100 * chance] * 2, [top - 0.5, y - 0.5], ":", color=MUTED, linewidth=1.2)
            if block in comparable or (block == MEAN and with_mean):
                _published(axes, y, published, block)
                ticks.append(y)
                names.append("published")
                y += 1
        axes.set(xlim=(0, 100), ylim=(y - 0.4, -0.6), xlabel="accuracy, %", yticks=ticks)
        axes.set_yticklabels(names)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        svg = inline(figure, "forest")
    hollow = " Hollow marks are published scores (diamonds: recipes, circles: other models), which have no intervals."
    return Shown(
        "forest",
        "Accuracy with 95% intervals",
        "Each mark is a run with its interval; a question is one observation. Dots mark what guessing would get."
        + (hollow if comparable else ""),
        f"Accuracies of {len(data.runs)} runs on {len(data.benchmarks)} benchmarks, as in the table of results.",
        svg,
        legend(dict(enumerate(labels))) if any(len(name) > LABEL_LIMIT for name in labels) else (),
    )


def radar(data: ReportData) -> Shown | None:
    """Returns the accuracies on one axis per benchmark, each divided by the best run's; None for fewer than three."""
    axes_names = [name for name in data.benchmarks if all(run.of(name) for run in data.runs)]
    best = {name: max(_value(run, name) for run in data.runs) for name in axes_names}
    axes_names = [name for name in axes_names if best[name] > 0]
    if len(axes_names) < 3:
        return None
    shown = data.runs[:RADAR_RUNS]
    angles = np.linspace(0, 2 * np.pi, len(axes_names), endpoint=False)
    with drawing(7.0, 5.2) as figure:
        axes: Any = figure.subplots(subplot_kw={"projection": "polar"})
        axes.set_theta_offset(np.pi / 2)
        axes.set_theta_direction(-1)
        for number, run in enumerate(shown):
            values = [_value(run, name) / best[name] for name in axes_names]
            axes.plot(
                [*angles, angles[0]], [*values, values[0]], color=colour(number), marker=marker(number), markersize=4
            )
        axes.set_xticks(angles)
        axes.set_xticklabels([f"{label(name, 24)}\n{percent(best[name])}" for name in axes_names], color=INK)
        for text, angle in zip(axes.get_xticklabels(), angles, strict=True):
            side = round(float(np.sin(angle)), 6)  # away from the drawing
            text.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
        axes.tick_params(axis="x", pad=8)
        axes.set_ylim(0, 1.05)
        axes.set_yticks([0.25, 0.5, 0.75, 1.0])
        axes.set_yticklabels(["", "50%", "", "best"], fontsize=7)
        axes.spines["polar"].set_visible(False)
        svg = inline(figure, "radar")
    rest = f" Only the first {RADAR_RUNS} runs are drawn." if len(data.runs) > RADAR_RUNS else ""
    return Shown(
        "radar",
        "Radar",
        "Each axis is divided by the best run of this report on that benchmark (its accuracy in % stands below the "
        "name), as the reference draws it; so axes say nothing of one another, and the area means nothing." + rest,
        f"{len(shown)} runs on {len(axes_names)} axes, each relative to the best run.",
        svg,
        legend(dict(enumerate(run.label for run in shown))),
    )


def _whisker(axes: Axes, y: float, found: Interval, number: int) -> None:
    axes.plot([100 * found.low, 100 * found.high], [y, y], color=colour(number), linewidth=2, solid_capstyle="butt")
    axes.plot([100 * found.value], [y], marker=marker(number), color=colour(number), markersize=6)
    axes.text(1.01, y, with_bounds(found), transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=INK)


def _published(axes: Axes, y: float, published: Sequence[PublishedRow], block: str) -> None:
    for kind, shape in (("comparison", "o"), ("recipe", "D")):
        scores = [row.average if block == MEAN else row.scores[block] for row in published if row.kind == kind]
        axes.plot(scores, [y] * len(scores), shape, markersize=4.5, markerfacecolor=PAPER, markeredgecolor=MUTED)


def _interval(run: RunScores, block: str) -> Interval | None:
    if block == MEAN:
        return run.macro
    score = run.of(block)
    return None if score is None else score.accuracy


def _chance(data: ReportData, block: str) -> float | None:
    found = (score.chance for run in data.runs if (score := run.of(block)) is not None and score.chance is not None)
    return next(found, None)  # none for the mean


def _value(run: RunScores, name: str) -> float:
    score = run.of(name)
    return 0.0 if score is None else score.accuracy.value
