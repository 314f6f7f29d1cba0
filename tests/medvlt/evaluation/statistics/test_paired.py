# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar

from medvlt.errors import ConfigurationError, DataError
from medvlt.evaluation.statistics import paired
from medvlt.evaluation.statistics.intervals import macro_interval
from medvlt.evaluation.statistics.paired import mcnemar, paired_bootstrap, paired_macro, sign_flip


def scores(seed: int, size: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Returns two systems that agree on most questions; the first is better."""
    generator = np.random.default_rng(seed)
    second = generator.random(size) < 0.5
    return second | (generator.random(size) < 0.1), second


def test_bootstrap_equals_scipy() -> None:
    a, b = scores(0)
    difference, low, high = paired_bootstrap(a, b, seed=1)
    expected = stats.bootstrap(
        (a.astype(float) - b,), np.mean, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert difference == pytest.approx(a.mean() - b.mean())
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=4e-3)
    assert 0 < low < difference < high


def test_pairing_narrows_the_interval() -> None:
    a, b = scores(0)
    _, low, high = paired_bootstrap(a, b, seed=0, samples=2000)
    _, loose_low, loose_high = paired_bootstrap(a, np.random.default_rng(3).permutation(b), seed=0, samples=2000)
    assert high - low < 0.6 * (loose_high - loose_low)


def test_bootstrap_is_a_function_of_the_seed_and_antisymmetric() -> None:
    a, b = np.random.default_rng(0).integers(0, 4, (2, 300)) / 3  # means of three repeats
    forward = paired_bootstrap(a, b, seed=5, samples=501)
    assert paired_bootstrap(a, b, seed=5, samples=501) == forward
    assert paired_bootstrap(a, b, seed=6, samples=501) != forward
    difference, low, high = paired_bootstrap(b, a, seed=5, samples=501)
    assert (-difference, -high, -low) == pytest.approx(forward)


def test_equal_systems_do_not_differ() -> None:
    a, _ = scores(0)
    assert paired_bootstrap(a, a, seed=0, samples=100) == (0.0, 0.0, 0.0)
    assert sign_flip(a.astype(float) - a, seed=0) == 1.0


def test_macro_is_that_of_the_differences() -> None:
    systems = {"x": scores(0), "y": scores(1, size=50)}
    first, second = ({name: pair[side] for name, pair in systems.items()} for side in (0, 1))
    labels = {"y": np.repeat(np.arange(25), 2)}
    found = paired_macro(first, second, clusters=labels, seed=4, samples=500)
    differences = {name: a.astype(float) - b for name, (a, b) in systems.items()}
    assert found == macro_interval(differences, clusters=labels, seed=4, samples=500)
    assert found.value == pytest.approx(np.mean([a.mean() - b.mean() for a, b in systems.values()]))
    with pytest.raises(DataError, match="x, y and y"):
        paired_macro(first, {"y": second["y"]}, seed=0)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2000), st.integers(0, 2000))
def test_mcnemar_equals_scipy_and_statsmodels(only_a: int, only_b: int) -> None:
    p_value = mcnemar(only_a, only_b)
    table = [[5, only_a], [only_b, 7]]
    assert p_value == mcnemar(only_b, only_a)
    assert p_value <= 1
    assert p_value > 0 or only_a + only_b > 1000  # 2^-1074 is the least number there is
    if only_a + only_b:
        assert p_value == pytest.approx(reference_mcnemar(table, exact=True).pvalue, rel=1e-6, abs=1e-250)
        assert p_value == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue, rel=1e-6, abs=1e-250)


def test_mcnemar_without_disagreement() -> None:
    assert mcnemar(0, 0) == 1.0
    with pytest.raises(DataError, match="at least 0"):
        mcnemar(-1, 2)


def enumerated(differences: np.ndarray) -> float:
    """Returns the p-value by trying all signs."""
    signs = np.array(list(itertools.product([-1, 1], repeat=differences.size)))
    totals = np.abs((signs * differences).sum(axis=1))
    return float((totals >= abs(differences.sum()) - 1e-9).mean())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-1, -2 / 3, -1 / 3, 0, 0.1, 0.2, 0.3, 1]), min_size=1, max_size=11), st.data())
def test_sign_flip_equals_enumeration(values: list[float], data: st.DataObject) -> None:
    differences = np.array(values)
    assert sign_flip(differences, seed=0) == pytest.approx(enumerated(differences))
    labels = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values))))
    sums = np.array([differences[labels == label].sum() for label in np.unique(labels)])
    assert sign_flip(differences, clusters=labels, seed=0) == pytest.approx(enumerated(sums))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000))
def test_sign_flip_of_right_and_wrong_is_mcnemar(only_a: int, only_b: int) -> None:
    differences = np.repeat([1.0, -1.0, 0.0], [only_a, only_b, 3])
    assert sign_flip(differences, seed=0) == pytest.approx(mcnemar(only_a, only_b), rel=1e-6, abs=1e-200)


def test_drawn_signs_agree_with_the_normal_limit_and_with_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    differences = generator.normal(0.15, 1, 200)  # all of different size: signs are drawn
    p_value = sign_flip(differences, seed=0)
    limit = 2 * stats.norm.sf(abs(differences.sum()) / np.sqrt((differences**2).sum()))
    assert p_value == pytest.approx(limit, abs=6e-3)
    assert sign_flip(differences * 1e-6, seed=0) == p_value
    expected = stats.permutation_test(
        (differences, np.zeros(200)), lambda x, y: (x - y).mean(), permutation_type="samples", vectorized=False,
        n_resamples=1000, rng=np.random.default_rng(1),
    )  # fmt: skip
    assert p_value == pytest.approx(expected.pvalue, abs=0.03)
    monkeypatch.setattr(paired, "_CHUNK", 7 * 200)
    assert sign_flip(differences, seed=0, samples=1000) == pytest.approx(p_value, abs=0.03)
    monkeypatch.setattr(paired, "_ENUMERATED", 1)
    few = np.array([1.0, 1.0, 1.0, 0.5, -0.25])
    assert sign_flip(few, seed=0) == pytest.approx(enumerated(few), abs=5e-3)
    assert sign_flip(np.ones(60), seed=0, samples=99) == 1 / 100  # never 0


def test_no_difference_is_found_as_often_as_promised() -> None:
    """Questions of a cluster share their difference: flipped apart they seem to be much evidence, together not."""
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(30), 5)
    together, apart = [], []
    for _ in range(300):
        differences = np.repeat(generator.choice([-1.0, 1.0], 30), 5)
        together.append(sign_flip(differences, clusters=labels, seed=0))
        apart.append(sign_flip(differences, seed=0))
    assert (np.array(together) < 0.05).mean() < 0.08
    assert (np.array(apart) < 0.05).mean() > 0.25


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "equally long"),
        ([1.0], [1.0, 0.0], "equally long"),
        ([[1.0]], [[0.0]], "equally long"),
        ([float("nan")], [0.0], "finite"),
    ],
)
def test_bad_scores_are_refused(a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired_bootstrap(a, b, seed=0)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        paired_bootstrap([1.0], [0.0], seed=0, samples=0)
    with pytest.raises(ConfigurationError, match="at least 1"):
        sign_flip([1.0], seed=0, samples=0)
    with pytest.raises(DataError, match="a cluster for each"):
        sign_flip([1.0], clusters=[0, 1], seed=0)
