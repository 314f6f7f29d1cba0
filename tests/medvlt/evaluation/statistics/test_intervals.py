# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from statsmodels.stats.proportion import proportion_confint

from medvlt.errors import ConfigurationError, DataError
from medvlt.evaluation.scores import Interval
from medvlt.evaluation.statistics import intervals
from medvlt.evaluation.statistics.intervals import (
    bootstrap_interval,
    effective_interval,
    effective_questions,
    macro_interval,
    mean_of_intervals,
    picture_clusters,
    t_quantile,
    wilson_interval,
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_equals_scipy_and_statsmodels(counts: tuple[int, int], confidence: float) -> None:
    correct, total = counts
    expected = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(correct, total, confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert (low, high) == pytest.approx(proportion_confint(correct, total, 1 - confidence, "wilson"), abs=1e-9)
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
        bootstrap_interval([1.0], seed=0, confidence=confidence)


def clustered(generator: np.random.Generator, clusters: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns right and wrong at a true accuracy of 0.6, in clusters of 1 to 6 questions that resemble each other."""
    sizes = generator.integers(1, 7, clusters)
    easy = np.clip(0.6 + spread * generator.choice([-1, 1], clusters), 0, 1)
    labels = np.repeat(np.arange(clusters), sizes)
    return (generator.random(labels.size) < easy[labels]).astype(float), labels


def test_bootstrap_equals_scipy() -> None:
    """With clusters of unequal size, against scipy's draws of cluster sums and sizes."""
    scores, labels = clustered(np.random.default_rng(0), 150, 0.4)
    value, low, high = bootstrap_interval(scores, seed=1)
    plain = stats.bootstrap((scores,), np.mean, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    assert value == pytest.approx(scores.mean())
    assert (low, high) == pytest.approx((plain.low, plain.high), abs=3e-3)

    sums, sizes = np.bincount(labels, weights=scores), np.bincount(labels)
    expected = stats.bootstrap(
        (sums, sizes),
        lambda s, m, axis: s.sum(axis=axis) / m.sum(axis=axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    wide = bootstrap_interval(scores, clusters=labels, seed=1)
    assert wide.value == value
    assert (wide.low, wide.high) == pytest.approx((expected.low, expected.high), abs=4e-3)
    assert wide.high - wide.low > 1.3 * (high - low)


def test_all_draws_of_three_clusters() -> None:
    """Enumerated: 27 draws of clusters with means that are known, each a quantile of the interval."""
    scores, labels = [1.0, 1.0, 0.0, 0.5], [7, 7, 3, 5]
    sums, sizes = np.array([2.0, 0.0, 0.5]), np.array([2, 1, 1])
    draws = [sums[list(draw)].sum() / sizes[list(draw)].sum() for draw in itertools.product(range(3), repeat=3)]
    for confidence in (0.5, 0.7, 0.9):
        _, low, high = bootstrap_interval(scores, clusters=labels, seed=0, samples=50_000, confidence=confidence)
        tail = (1 - confidence) / 2
        assert (low, high) == pytest.approx(tuple(np.quantile(draws, [tail, 1 - tail], method="inverted_cdf")))


def test_macro_of_one_is_the_plain_interval_and_of_several_the_mean_of_draws() -> None:
    generator = np.random.default_rng(0)
    scores = {"large": generator.random(800) < 0.5, "small": generator.random(60) < 0.8}
    assert macro_interval({"large": scores["large"]}, seed=3) == bootstrap_interval(scores["large"], seed=3)
    value, low, high = macro_interval(scores, seed=3)
    expected = np.mean([given.mean() for given in scores.values()])
    deviation = np.sqrt(sum(given.var() / given.size for given in scores.values())) / 2
    assert value == pytest.approx(expected)
    assert (low, high) == pytest.approx((expected - 1.96 * deviation, expected + 1.96 * deviation), abs=4e-3)
    pairs = np.repeat(np.arange(400), 2)
    assert macro_interval(scores, clusters={"large": pairs}, seed=3) != macro_interval(scores, seed=3)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Accuracy 0.6 is known; clusters that are not drawn as clusters give bounds that are far too narrow."""
    generator = np.random.default_rng(0)
    runs, hits = 300, {"wilson": 0, "bootstrap": 0, "clustered": 0, "ignored": 0}

    def holds(low: float, high: float) -> bool:
        return low <= 0.6 <= high

    for _ in range(runs):
        scores = (generator.random(120) < 0.6).astype(float)
        hits["wilson"] += holds(*wilson_interval(int(scores.sum()), 120))
        hits["bootstrap"] += holds(*bootstrap_interval(scores, seed=0, samples=600)[1:])
        scores, labels = clustered(generator, 60, 0.4)
        hits["clustered"] += holds(*bootstrap_interval(scores, clusters=labels, seed=0, samples=600)[1:])
        hits["ignored"] += holds(*bootstrap_interval(scores, seed=0, samples=600)[1:])
    shares = {name: count / runs for name, count in hits.items()}
    assert all(0.915 <= shares[name] <= 0.98 for name in ("wilson", "bootstrap", "clustered")), shares
    assert shares["ignored"] < 0.85, shares


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_single_completions_of_independent_questions_are_wilsons(counts: tuple[int, int]) -> None:
    correct, total = counts
    found = effective_interval(np.arange(total) < correct, clusters=np.arange(total) * 3)
    assert found[1:] == pytest.approx(proportion_confint(correct, total, method="wilson"), abs=1e-12)
    assert found.value == correct / total


def test_effective_questions_by_hand() -> None:
    """Four questions, two pictures of two: sums 2 and 1, p = 3/4, v = 2 (0.5^2 + 0.5^2) / 16, p (1 - p) / 3 = v."""
    z, t = stats.norm.ppf(0.975), stats.t.ppf(0.975, 1)
    pairs = [0, 0, 1, 1]
    assert effective_questions([1, 1, 1, 0], clusters=pairs) == pytest.approx(4 * (1 / 16) / (1 / 16) * (z / t) ** 2)
    assert effective_questions([1, 0, 0, 1], clusters=pairs) == 2  # the variance is estimated as 0
    assert effective_questions([1, 1, 1, 1], clusters=pairs) == 2
    assert effective_questions([1, 0, 1], clusters=[0, 0, 0]) == 1
    # a pair and a single: without the pair the mean is 1, without the single 1/2; v is half the sum of squared shifts
    pair = [0, 0, 1]
    expected = 3 * (2 / 9 / 2) / ((1 / 3) ** 2 / 2 + (1 / 6) ** 2 / 2) * (z / t) ** 2
    assert effective_questions([1, 0, 1], clusters=pair) == pytest.approx(expected)
    assert effective_questions([1, 1, 1], clusters=pair) == pytest.approx(9 / 5)
    # two completions: v = (0.5^2 + 0.5^2) / 4 / 2 with sums 1, 0, 0.5, 0.5 about 1/2 each
    t = stats.t.ppf(0.975, 3)
    expected = 4 * (0.25 / 3) / (4 / 3 * 0.5 / 16) * (z / t) ** 2
    assert effective_questions([1, 0, 0.5, 0.5], completions=2) == pytest.approx(expected)
    # never more than there are: pictures on which each model is right half the time
    halves = np.tile([1.0, 0.0], 50)
    halves[:3] = 1
    assert effective_questions(halves, clusters=np.repeat(np.arange(50), 2)) == 100
    assert effective_questions(np.r_[np.full(99, 0.5), 1.0], completions=2) == 200
    with pytest.raises(DataError, match=r"scores in \[0, 1\]"):
        effective_interval([0.5, -0.5])


def test_neighbouring_accuracies_have_neighbouring_intervals() -> None:
    """One shared pair among 170 questions must not change the kind of interval, which a bootstrap by picture did."""
    clusters = np.r_[0, np.arange(169)]
    for wrong in (1, 3, 6):
        scores = np.arange(170) < 170 - wrong
        found = effective_interval(scores, clusters=clusters)
        low, high = wilson_interval(170 - wrong, 170)
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.003)
        assert found.high - found.low >= high - low


@pytest.mark.parametrize(
    ("sizes", "accuracy", "completions"),
    [
        ([2] + [1] * 168, 0.97, 1), ([5] * 10, 0.6, 1), ([5] * 10, 0.9, 1), ([4] * 60, 0.75, 1), ([1] * 80, 0.9, 3),
        ([100] + [1] * 30, 0.6, 1),
    ],
)  # fmt: skip
def test_the_interval_holds_the_truth_with_few_pictures_and_near_one(
    sizes: list[int], accuracy: float, completions: int
) -> None:
    """A bootstrap by picture holds it in 0.77 to 0.88 of the first three, one that ignores sizes in 0.3 of the last."""
    generator, hits = np.random.default_rng(0), 0
    labels = np.repeat(np.arange(len(sizes)), sizes)
    for _ in range(400):
        easy = accuracy if max(sizes) == 2 else generator.beta(accuracy * 2, (1 - accuracy) * 2, len(sizes))
        chance = np.broadcast_to(easy, len(sizes))[labels]
        scores = generator.binomial(completions, chance) / completions
        _, low, high = effective_interval(scores, clusters=labels, completions=completions)
        hits += low <= accuracy <= high
    assert 0.92 <= hits / 400 <= (1 if max(sizes) == 100 else 0.99)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 29, 168, 3361])
def test_quantiles_of_t_are_scipys(freedom: int) -> None:
    for confidence in (0.5, 0.95, 0.999):
        assert t_quantile(confidence, freedom) == pytest.approx(stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-9)


def test_the_mean_of_intervals_by_hand_and_its_coverage() -> None:
    found = mean_of_intervals([Interval(0.5, 0.2, 0.6), Interval(1.0, 0.6, 1.0)])
    assert found == pytest.approx((0.75, 0.75 - 0.25, 0.75 + 0.05))
    generator, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        right = generator.binomial(50, [0.98, 0.6, 0.3])
        _, low, high = mean_of_intervals([Interval(k / 50, *wilson_interval(k, 50)) for k in right.tolist()])
        hits += low <= np.mean([0.98, 0.6, 0.3]) <= high
    assert 0.93 <= hits / 1000 <= 0.97
    with pytest.raises(DataError, match="at least one benchmark"):
        mean_of_intervals([])


def test_result_is_a_function_of_the_seed_and_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = clustered(np.random.default_rng(0), 40, 0.4)
    whole = bootstrap_interval(scores, clusters=labels, seed=5, samples=100)
    assert bootstrap_interval(scores, clusters=labels, seed=6, samples=100) != whole
    monkeypatch.setattr(intervals, "_CHUNK", 50)
    assert bootstrap_interval(scores, clusters=labels, seed=5, samples=100) == whole


names = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=3), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(names)
def test_clusters_are_connected_components(pictures: list[list[str]]) -> None:
    edges = np.array([[bool(set(a) & set(b)) for b in pictures] for a in pictures])
    count, expected = connected_components(csr_array(edges), directed=False)
    found = picture_clusters(pictures)
    assert found.max() + 1 == count
    assert ((found[:, None] == found) == (expected[:, None] == expected)).all()
    firsts = [int(label) for place, label in enumerate(found) if label not in found[:place]]
    assert firsts == list(range(count))


def test_no_questions_have_no_clusters() -> None:
    assert picture_clusters([]).tolist() == []


@pytest.mark.parametrize("scores", [[], [[1.0]], [float("nan")], 1.0])
def test_bad_scores_are_refused(scores: list[float]) -> None:
    with pytest.raises(DataError, match="score"):
        bootstrap_interval(scores, seed=0)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        bootstrap_interval([1.0], seed=0, samples=0)
    with pytest.raises(DataError, match="a cluster for each of 2"):
        bootstrap_interval([1.0, 0.0], clusters=[0], seed=0)
    with pytest.raises(DataError, match="at least one benchmark"):
        macro_interval({}, seed=0)
