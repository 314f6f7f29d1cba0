# SPDX-License-Identifier: Apache-2.0
"""How many questions were answered right how often: as numbers, as a table in the terminal, as a picture."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from medvlt.errors import DataError
from medvlt.imports import require

SHOWN_SOURCES = 6
"""Most sources with a column of their own in the table; the smallest of more are put together."""


NO_NAME = "(no name)"
"""Shown for a source without a name."""


def binned(counts: Iterable[int], n: int) -> list[int]:
    """Returns how many questions have each pass count from 0 to n.

    Args:
        counts: Pass count of each question, in 0..n.
        n: Completions of each question.

    Raises:
        DataError: If a count lies outside 0..n.

    Example:
        >>> binned([0, 2, 2], n=2)
        [1, 0, 2]
    """
    found = Counter(counts)
    if strange := sorted(set(found) - set(range(n + 1))):
        raise DataError(f"expected pass counts from 0 to {n}, got {strange[:5]}")
    return [found[count] for count in range(n + 1)]


def by_source(counts: Mapping[str, int], sources: Mapping[str, str], n: int) -> dict[str, list[int]]:
    """Returns a histogram for each source, the largest source first.

    Args:
        counts: Uid to pass count.
        sources: Uid to the name of its data set; an empty one is shown as `NO_NAME`.
        n: Completions of each question.
    """
    grouped: dict[str, list[int]] = {}
    for uid, count in counts.items():
        grouped.setdefault(sources[uid] or NO_NAME, []).append(count)
    largest_first = sorted(grouped.items(), key=lambda item: (-len(item[1]), item[0]))
    return {name: binned(values, n) for name, values in largest_first}


def total(bins: Mapping[str, list[int]]) -> list[int]:
    """Returns the histogram of all sources together."""
    return [sum(column) for column in zip(*bins.values(), strict=True)]


def histogram_table(bins: Mapping[str, list[int]], title: str, band: tuple[int, int] | None = None) -> Table:
    """Returns a table with one row per pass count: questions, their share, a bar, and the questions of each source.

    Args:
        bins: Source to histogram, all of one length; at least one.
        title: Stands above it.
        band: Lowest and highest count of a selection, whose rows are marked.
    """
    whole = total(bins)
    questions, most = sum(whole), max(whole)
    shown = _with_others(bins) if len(bins) > 1 else {}
    table = Table(title=f"{title} Research software, not for clinical use.", title_justify="left")
    for heading in ("right", "questions", "share"):
        table.add_column(heading, justify="right")
    table.add_column("", width=30)
    for name in shown:
        table.add_column(Text(name), justify="right", overflow="fold")
    for count, number in enumerate(whole):
        inside = band is not None and band[0] <= count <= band[1]
        table.add_row(
            f"{'> ' if inside else ''}{count}",
            f"{number:,}",
            f"{number / questions:.1%}" if questions else "",
            Bar(size=max(most, 1), begin=0, end=number, color="green" if inside else "default"),
            *(f"{values[count]:,}" for values in shown.values()),
        )
    table.add_section()
    table.add_row("all", f"{questions:,}", "", "", *(f"{sum(values):,}" for values in shown.values()))
    table.add_row(
        "accuracy", f"{accuracy(whole):.1%}", "", "", *(f"{accuracy(values):.1%}" for values in shown.values())
    )
    if band is not None:
        kept = [values[band[0] : band[1] + 1] for values in (whole, *shown.values())]
        first, *others = (f"{sum(values):,}" for values in kept)
        share = f"{sum(kept[0]) / questions:.1%}" if questions else ""
        table.add_row(f"> {band[0]} to {band[1]}", first, share, "", *others)
    return table


def accuracy(bins: list[int]) -> float:
    """Returns the share of right completions that a histogram stands for, in [0, 1]; 0 without questions."""
    completions = sum(bins) * (len(bins) - 1)
    return sum(count * number for count, number in enumerate(bins)) / completions if completions else 0.0


def histogram_png(bins: Mapping[str, list[int]], title: str, band: tuple[int, int] | None = None) -> bytes:
    """Returns a picture of the histogram, the sources stacked, as an encoded PNG.

    Args:
        bins: Source to histogram, all of one length.
        title: Stands above it.
        band: Lowest and highest count of a selection, which is shaded.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    require("matplotlib", extra="report")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")  # not pyplot: it would look for a screen
    axes = figure.subplots()
    if band is not None:
        axes.axvspan(band[0] - 0.5, band[1] + 0.5, color="0.9", zorder=0, label=f"selected: {band[0]} to {band[1]}")
    height = [0] * len(total(bins))
    for name, values in _with_others(bins).items():
        axes.bar(range(len(values)), values, bottom=height, label=name, width=0.8, zorder=2)
        height = [below + value for below, value in zip(height, values, strict=True)]
    for count, number in enumerate(height):
        axes.annotate(f"{number:,}", (count, number), ha="center", va="bottom", fontsize=7)
    axes.set(title=title, xlabel=f"right answers of {len(height) - 1}", ylabel="questions")
    axes.set_xticks(range(len(height)))
    axes.legend(fontsize=8)
    figure.text(0.995, 0.005, "Research software, not for clinical use.", ha="right", fontsize=6, color="0.4")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})  # the same bytes for the same numbers
    return buffer.getvalue()


def _with_others(bins: Mapping[str, list[int]]) -> dict[str, list[int]]:
    names = list(bins)
    if len(names) <= SHOWN_SOURCES:
        return dict(bins)
    rest = {name: bins[name] for name in names[SHOWN_SOURCES - 1 :]}
    return {name: bins[name] for name in names[: SHOWN_SOURCES - 1]} | {f"{len(rest)} others": total(rest)}
