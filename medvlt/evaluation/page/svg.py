# SPDX-License-Identifier: Apache-2.0
"""Figures of matplotlib as SVG that stands inside a page: in its colours and its letters, the same bytes every time."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from medvlt.evaluation.page.text import label
from medvlt.imports import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#0f0001", "#0f0002", "#0f0003", "#0f0004"
"""Stand-ins for the colours of the page, which change with its theme."""

SERIES = tuple(f"#0e00{number:02x}" for number in range(8))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "★")
"""The markers as letters, for legends outside of the figures."""

PANEL = 3.86
"""Width of a small panel in inches: three are as wide as the page."""

LEAST = 0.8
"""A figure is never drawn smaller than this share of its size, so that its letters can be read."""

_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "rule", PAPER: "card"} | {
    colour: f"s{number}" for number, colour in enumerate(SERIES)
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medvlt",
    "text.parse_math": False,  # a label may hold dollar signs
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.7,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.0,
}


def colour(number: int) -> str:
    """Returns the colour of a run; there are eight, then they come again with other markers."""
    return SERIES[number % len(SERIES)]


def marker(number: int) -> str:
    """Returns the marker of a run: 64 runs differ in colour or marker."""
    return MARKERS[(number + number // len(SERIES)) % len(MARKERS)]


def glyph(number: int) -> str:
    """Returns the marker of a run as a letter."""
    return GLYPHS[MARKERS.index(marker(number))]


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """Gives an empty figure in the style of the page; draw and call `inline` inside the block.

    Args:
        width: In inches.
        height: In inches.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    require("matplotlib", extra="report")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the letters that our font lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield Figure(figsize=(width, height), layout="constrained")  # not pyplot: it would look for a screen


def inline(figure: Figure, name: str) -> str:
    """Returns a figure as an `svg` element without fixed colours, font and size.

    Args:
        figure: Drawn inside `drawing`.
        name: Of letters and digits, different for each figure of a page: its ids begin with it.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):  # its rule is in the style of the page
                parent.remove(child)
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            element.set(key, _own(key, value, name))
    width = float(root.attrib.pop("width").removesuffix("pt"))
    root.attrib.pop("height")
    pixels = width * 4 / 3
    root.set("style", f"max-width:{pixels:.0f}px;min-width:{LEAST * pixels:.0f}px")  # narrower pages scroll
    root.set("aria-hidden", "true")  # the figure around it has the words
    return ElementTree.tostring(root, encoding="unicode")


def grid(
    name: str,
    panels: Sequence[str],
    draw: Callable[[Axes, str], None],
    *,
    columns: int = 3,
    height: float = 2.2,
) -> str:
    """Returns a figure of equal small panels.

    Args:
        name: Of the figure, see `inline`.
        panels: Titles; at least one.
        draw: Fills one of them.
        columns: Panels side by side.
        height: Of each, in inches.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with drawing(PANEL * columns, height * rows) as figure:
        axes: Any = figure.subplots(rows, columns, squeeze=False)
        for place, panel in zip(axes.flat, panels, strict=False):
            place.set_title(label(panel))
            draw(place, panel)
        for place in list(axes.flat)[len(panels) :]:
            place.set_visible(False)
        return inline(figure, name)


def _own(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == f"{{{_XLINK}}}href":
        return value.replace("#", f"#{name}-", 1)
    value = value.replace("url(#", f"url(#{name}-")
    value = re.sub(r"font-family: [^;]*; ?", "", re.sub(r"font: ([0-9.]+px)[^;]*", r"font-size: \1", value))
    return re.sub(r"#0[ef]00[0-9a-f]{2}", lambda found: f"var(--{_VARIABLES[found[0]]})", value)
