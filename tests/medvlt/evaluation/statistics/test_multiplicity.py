# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from medvlt.errors import DataError
from medvlt.evaluation.statistics.multiplicity import holm

p_values = st.one_of(st.floats(0, 1), st.sampled_from([0.01, 0.05, 1.0]))


@pytest.mark.parametrize("given_values", [[0.3], [0.04, 0.01, 0.03, 0.01, 0.5], list(np.linspace(0.9, 0, 30) ** 3)])
def test_holm_equals_statsmodels(given_values: list[float]) -> None:
    assert holm(given_values) == pytest.approx(multipletests(given_values, method="holm")[1])


@settings(max_examples=100, deadline=None)
@given(st.lists(p_values, min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(given_values: list[float]) -> None:
    """A claim stands if every set of tests that it belongs to is significant together."""
    sets = [s for size in range(1, 7) for s in combinations(range(len(given_values)), size)]
    together = {s: min(1, len(s) * min(given_values[place] for place in s)) for s in sets}
    expected = [max(p for s, p in together.items() if place in s) for place in range(len(given_values))]
    assert holm(given_values) == pytest.approx(expected)


def test_nothing_and_nonsense() -> None:
    assert holm([]).tolist() == []
    for bad in ([1.1], [-0.1], [float("nan")], [[0.5]]):
        with pytest.raises(DataError, match="p-values in"):
            holm(bad)
