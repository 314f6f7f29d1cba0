# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from medvlt.curation.histogram import accuracy, binned, by_source, histogram_png, histogram_table, total
from medvlt.errors import DataError, MissingExtraError

BINS = {"medmcqa": [4, 3, 2, 1, 0], "[headqa]": [0, 0, 0, 0, 5]}


def printed(bins: dict[str, list[int]], band: tuple[int, int] | None = None) -> str:
    console = Console(width=140)
    with console.capture() as captured:
        console.print(histogram_table(bins, "Title.", band))
    return captured.get()


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc")), min_size=1))
def test_bins_count_what_a_loop_counts(pairs: list[tuple[int, str]]) -> None:
    counts = {str(place): count for place, (count, _) in enumerate(pairs)}
    sources = {str(place): source for place, (_, source) in enumerate(pairs)}
    bins = by_source(counts, sources, 5)
    for source, values in bins.items():
        assert values == [pairs.count((count, source)) for count in range(6)]
    assert total(bins) == [Counter(counts.values())[count] for count in range(6)]
    assert accuracy(total(bins)) == pytest.approx(sum(counts.values()) / (5 * len(counts)))
    sizes = [sum(values) for values in bins.values()]
    assert sizes == sorted(sizes, reverse=True)


def test_a_source_without_a_name_is_called_so() -> None:
    assert by_source({"a": 1, "b": 0}, {"a": "", "b": ""}, 1) == {"(no name)": [1, 1]}


@pytest.mark.parametrize("count", [-1, 6])
def test_a_count_outside_is_an_error(count: int) -> None:
    with pytest.raises(DataError, match="from 0 to 5"):
        binned([0, count], 5)


def test_the_table_has_numbers_shares_and_the_band() -> None:
    shown = printed(BINS, (1, 3))
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines() if "│" in line]
    assert lines[0][:3] == ["0", "4", "26.7%"]
    assert [line[0] for line in lines[:5]] == ["0", "> 1", "> 2", "> 3", "4"]
    assert [line[4:] for line in lines[:5]] == [["4", "0"], ["3", "0"], ["2", "0"], ["1", "0"], ["0", "5"]]
    assert lines[5] == ["all", "15", "", "", "10", "5"]
    assert lines[6] == ["accuracy", "50.0%", "", "", "25.0%", "100.0%"]
    assert lines[7] == ["> 1 to 3", "6", "40.0%", "", "6", "0"]
    bars = [line[3].count("█") for line in lines[:5]]
    assert bars == [*sorted(bars[:4], reverse=True), 30]  # as many full blocks as the longest bar is wide
    assert "[headqa]" in shown
    assert "not for clinical use" in shown


def test_one_source_needs_no_column_of_its_own() -> None:
    assert "medmcqa" not in printed({"medmcqa": [1, 2]})


def test_many_sources_are_put_together() -> None:
    shown = printed({f"source{number}": [number, 0] for number in range(9, 0, -1)})
    assert "4 others" in shown
    assert "source5" in shown
    assert "source4" not in shown


def test_the_picture_is_a_png_and_depends_on_the_numbers_alone() -> None:
    content = histogram_png(BINS, "Title", (1, 3))
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        assert image.size == (1200, 675)
    assert histogram_png(BINS, "Title", (1, 3)) == content != histogram_png(BINS, "Title", (1, 2))


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"medvlt\[report\]"):
        histogram_png(BINS, "Title")
