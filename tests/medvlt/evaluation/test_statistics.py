# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medvlt.errors import ConfigurationError, DataError
from medvlt.evaluation import statistics
from medvlt.evaluation.statistics import paired_bootstrap, wilson_interval


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_equals_scipy(counts: tuple[int, int], confidence: float) -> None:
    correct, total = counts
    expected = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(correct, total, confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= low <= correct / total <= high <= 1


def test_wilson_of_nothing_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("correct", "total"), [(-1, 5), (6, 5), (1, 0)])
def test_wilson_refuses_impossible_counts(correct: int, total: int) -> None:
    with pytest.raises(DataError, match="correct <= total"):
        wilson_interval(correct, total)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(ConfigurationError, match="inside"):
        wilson_interval(1, 2, confidence)
    with pytest.raises(ConfigurationError, match="inside"):
        paired_bootstrap([1.0], [0.0], seed=0, confidence=confidence)


def scores(seed: int, size: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Returns two systems that agree on most questions; the first is better."""
    generator = np.random.default_rng(seed)
    second = generator.random(size) < 0.5
    return second | (generator.random(size) < 0.1), second


def test_bootstrap_equals_scipy() -> None:
    a, b = scores(0)
    difference, low, high = paired_bootstrap(a, b, seed=1)
    paired = a.astype(float) - b
    expected = stats.bootstrap(
        (paired,), np.mean, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert difference == pytest.approx(paired.mean())
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=4e-3)
    assert 0 < low < difference < high


def test_pairing_narrows_the_interval() -> None:
    a, b = scores(0)
    _, low, high = paired_bootstrap(a, b, seed=0, samples=2000)
    _, loose_low, loose_high = paired_bootstrap(a, np.random.default_rng(3).permutation(b), seed=0, samples=2000)
    assert high - low < 0.6 * (loose_high - loose_low)


def test_bootstrap_is_a_function_of_the_seed() -> None:
    a, b = scores(0)
    assert paired_bootstrap(a, b, seed=5, samples=500) == paired_bootstrap(a, b, seed=5, samples=500)
    assert paired_bootstrap(a, b, seed=5, samples=500) != paired_bootstrap(a, b, seed=6, samples=500)
    difference, low, high = paired_bootstrap(b, a, seed=5, samples=500)
    forward = paired_bootstrap(a, b, seed=5, samples=500)
    assert (-difference, -high, -low) == pytest.approx(forward)


def test_equal_systems_do_not_differ() -> None:
    a, _ = scores(0)
    assert paired_bootstrap(a, a, seed=0, samples=100) == (0.0, 0.0, 0.0)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = scores(0, size=50)
    whole = paired_bootstrap(a, b, seed=0, samples=100)
    monkeypatch.setattr(statistics, "_CHUNK", 7 * 50)
    assert paired_bootstrap(a, b, seed=0, samples=100) == whole


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "equally long"),
        ([1.0], [1.0, 0.0], "equally long"),
        ([[1.0]], [[0.0]], "equally long"),
        ([float("nan")], [0.0], "finite"),
    ],
)
def test_bootstrap_refuses_bad_scores(a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired_bootstrap(a, b, seed=0)


def test_bootstrap_needs_a_draw() -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        paired_bootstrap([1.0], [0.0], seed=0, samples=0)
