# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlt.data.phantom.bands import Bands, band_draft, decimal, number_draft, number_grid

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


@given(st.integers(0, 10**9), st.floats(0.5, 1), st.integers(-3, 60), st.integers(1, 12), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_a_grid_keeps_its_bounds(pick: int, difficulty: float, lowest: int, step: int, room: int) -> None:
    highest = lowest + 4 * step + room
    numbers, truth = number_grid(Random(pick), pick, difficulty, lowest=lowest, highest=highest, step=step)
    assert lowest <= numbers[0]
    assert numbers[-1] <= highest
    assert len(numbers) == (5 if difficulty >= 0.75 else 4)
    assert {after - before for before, after in pairwise(numbers)} == {step}
    assert truth == pick % len(numbers)


def test_a_grid_reaches_both_bounds() -> None:
    rng = Random(3)
    grids = {number_grid(rng, 0, 1.0, lowest=3, highest=9, step=1)[0] for _ in range(200)}
    assert grids == {(3, 4, 5, 6, 7), (4, 5, 6, 7, 8), (5, 6, 7, 8, 9)}


@pytest.mark.parametrize(("truth", "guess"), [(0, 1), (2, 3), (3, 3)])
def test_the_teacher_takes_the_next_number(truth: int, guess: int) -> None:
    draft = number_draft((5, 9, 13, 17), truth, question="q", fact="f", key="k", place=(0, 2))
    assert (draft.choices, draft.truth, draft.guess) == (("5", "9", "13", "17"), truth, guess)
    assert (draft.key, draft.place) == ("k", (0, 2))
