# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlt.data.phantom.bands import Bands, band_draft, decimal, number_draft

BANDS = Bands(("low", "middle", "high"), 10, (20, 31), 50, teacher_cuts=(25, 31))


@pytest.mark.parametrize(("value", "word"), [(10, "low"), (19, "low"), (20, "middle"), (30, "middle"), (31, "high")])
def test_a_cut_belongs_to_the_upper_class(value: int, word: str) -> None:
    assert BANDS.words[BANDS.classify(value)] == word


def test_edges_tile_the_range() -> None:
    assert [BANDS.edges(index) for index in range(3)] == [(10, 19), (20, 30), (31, 50)]


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_draws_cover_the_class_and_nothing_else(index: int, difficulty: float) -> None:
    rng = Random(1)
    drawn = {BANDS.draw(rng, index, difficulty) for _ in range(4000)}
    low, high = BANDS.edges(index)
    assert drawn == set(range(low, high + 1))


def test_easy_draws_are_uniform_and_hard_ones_hug_the_cut() -> None:
    rng = Random(2)
    easy = [BANDS.draw(rng, 2, 0.0) - 31 for _ in range(4000)]
    hard = [BANDS.draw(rng, 2, 1.0) - 31 for _ in range(4000)]
    assert sum(easy) / 4000 == pytest.approx(9.5, abs=0.4)  # mean of 0..19
    assert sum(distance < 2 for distance in hard) / 4000 == pytest.approx(0.1**0.25, abs=0.03)  # P(u^4 < 0.1)


def test_the_teacher_uses_his_own_cuts() -> None:
    draft = band_draft(BANDS, 22, question="q", fact="f", key="22")
    assert (draft.choices[draft.truth], draft.choices[draft.guess]) == ("middle", "low")


@pytest.mark.parametrize(
    ("value", "decimals", "text"), [(379, 1, "37.9"), (7, 2, "0.07"), (735, 2, "7.35"), (5, 0, "5")]
)
def test_decimal(value: int, decimals: int, text: str) -> None:
    assert decimal(value, decimals) == text


@given(st.integers(1, 200), st.lists(st.integers(-50, 300), max_size=4), st.floats(0.5, 1), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_numbers_as_options(value: int, slips: list[int], difficulty: float, seed: int) -> None:
    draft = number_draft(Random(seed), difficulty, question="q", fact="f", value=value, slips=slips, spread=3, key="k")
    numbers = [int(choice) for choice in draft.choices]
    assert len(set(numbers)) == len(numbers) == (5 if difficulty >= 0.75 else 4)
    assert min(numbers) > 0
    assert numbers[draft.truth] == value
    if slips and slips[0] > 0:
        assert numbers[draft.guess] == slips[0]
