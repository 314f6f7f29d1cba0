# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from medvlt.evaluation.page.svg import GLYPHS, INK, colour, drawing, glyph, grid, inline, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(axes: Axes, title: str) -> None:
    axes.plot([1, 2], [3, 4], color=colour(0), marker=marker(0))
    axes.fill_between([1, 2], [1, 1], color=colour(1), hatch="/")
    axes.set_xlabel(title, color=INK)


def test_ids_differ_between_figures_and_references_hold() -> None:
    first, second = (ElementTree.fromstring(grid(name, ["a", "b"], draw)) for name in ("one", "two"))
    ids = [{e.get("id") for e in root.iter()} - {None} for root in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for root, own in zip((first, second), ids, strict=True):
        text = ElementTree.tostring(root, encoding="unicode")
        asked = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
        assert asked
        assert asked <= own


def test_colours_and_fonts_are_those_of_the_page() -> None:
    text = grid("one", ["a"], draw)
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", text.replace("#000000", ""))  # black: shapes without a style, unseen
    assert "var(--s0)" in text
    assert "var(--s1)" in text
    assert "DejaVu" not in text
    assert ">a</text>" in text, "text stays text"
    assert "<style" not in text
    assert "metadata" not in text


def test_the_same_numbers_give_the_same_bytes_whatever_the_user_has_set() -> None:
    before = grid("one", ["a"], draw)
    with mpl.rc_context({"lines.linewidth": 9, "svg.fonttype": "path", "figure.dpi": 300}):
        assert grid("one", ["a"], draw) == before
        assert mpl.rcParams["lines.linewidth"] == 9, "and the user's settings stay"


@pytest.mark.parametrize(
    "text", ["$x", "$\\frac{1}{2}$", "</text><script>x</script>", 'id="a" url(#b) #0f0001', "\u4e2d"]
)
def test_labels_are_text_and_nothing_else(text: str) -> None:
    root = ElementTree.fromstring(grid("one", [text], draw))
    assert text in {e.text for e in root.iter("{http://www.w3.org/2000/svg}text")}


def test_64_runs_look_different() -> None:
    assert len({(colour(number), marker(number)) for number in range(64)}) == 64
    assert len({glyph(number) for number in range(8)}) == len(GLYPHS)


def test_a_figure_without_panels_is_a_figure() -> None:
    with drawing(1, 1) as figure:
        assert inline(figure, "none").startswith("<svg")
