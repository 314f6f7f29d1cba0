# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlt.errors import DataError
from medvlt.evaluation.statistics.passes import majority_correct, majority_label, pass_at_k, pass_curve


def test_all_choices_of_up_to_seven() -> None:
    for n in range(1, 8):
        for correct in range(n + 1):
            right = [place < correct for place in range(n)]
            for k in range(1, n + 1):
                hits = [any(choice) for choice in combinations(right, k)]
                assert pass_at_k(n, correct, k) == pytest.approx(float(np.mean(hits)), abs=1e-15)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_large_numbers_equal_the_product_in_fractions(numbers: tuple[int, int, int]) -> None:
    n, correct, k = numbers
    missed = Fraction(1)
    for drawn in range(k):
        missed *= Fraction(max(0, n - correct - drawn), n - drawn)
    assert pass_at_k(n, correct, k) == float(1 - missed)


def test_estimate_is_unbiased() -> None:
    """The mean over all outcomes of 9 tosses is the probability that one of k is right."""
    chance, n = 0.3, 9
    ways = [float(np.prod([(n - j) / (j + 1) for j in range(c)])) for c in range(n + 1)]
    for k in (1, 4, 9):
        mean = sum(w * chance**c * (1 - chance) ** (n - c) * pass_at_k(n, c, k) for c, w in enumerate(ways))
        assert mean == pytest.approx(1 - (1 - chance) ** k)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0), (0, 0, 1)])
def test_impossible_numbers_are_refused(n: int, correct: int, k: int) -> None:
    with pytest.raises(DataError, match="expected 0 <= correct <= n"):
        pass_at_k(n, correct, k)


@pytest.mark.parametrize(("n", "ks"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])])
def test_curve(n: int, ks: list[int]) -> None:
    correct = np.random.default_rng(n).random((20, n)) < 0.3
    curve = pass_curve(correct)
    assert list(curve) == ks
    assert curve[1] == pytest.approx(correct.mean())
    assert curve[n] == pytest.approx(correct.any(axis=1).mean())
    for k in ks:
        expected = [np.mean([row[list(chosen)].any() for chosen in combinations(range(n), k)]) for row in correct]
        assert curve[k] == pytest.approx(float(np.mean(expected)))
    with pytest.raises(DataError, match="table"):
        pass_curve(correct[:0])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["A", "B", "B"], "B"), (["B", "A", "A", "B"], "B"), ([None, None, "C"], "C"), ([None, None], None), ([], None)],
)
def test_majority(labels: list[str | None], expected: str | None) -> None:
    assert majority_label(labels) == expected


def test_majority_against_the_right_letters() -> None:
    labels = [["A", "B", "B"], ["A", "B"], [None, None], [None]]
    assert majority_correct(labels, ["B", "B", "A", None]).tolist() == [True, False, False, False]
    assert majority_correct([], []).tolist() == []
    with pytest.raises(DataError, match="as many right letters"):
        majority_correct(labels, ["A"])
