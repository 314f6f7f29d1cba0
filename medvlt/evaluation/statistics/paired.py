# SPDX-License-Identifier: Apache-2.0
"""Two systems on the same questions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from medvlt.evaluation.scores import Interval
from medvlt.evaluation.statistics.inputs import (
    Clusters,
    as_differences,
    as_scores,
    check_counts,
    check_same_benchmarks,
    check_samples,
    sum_clusters,
)
from medvlt.evaluation.statistics.intervals import bootstrap_interval, macro_interval

_ENUMERATED = 2**20
"""Outcomes of sign flips that are enumerated; 20 clusters of different sums have as many."""

_CHUNK = 2_000_000


def paired_bootstrap(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    clusters: Clusters | None = None,
    seed: int,
    samples: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """Returns mean(a) - mean(b) with its percentile bootstrap interval, (difference, low, high).

    Questions are drawn with replacement, the same ones for both systems, so that what makes a question hard cancels
    (Efron and Tibshirani 1993, chapter 13). The difference is significant at 1 - `confidence` if 0 lies outside.

    Args:
        a: Score of the first system on each question, (Q,); booleans, or means over repeats.
        b: Score of the second system on the same questions in the same order, (Q,).
        clusters: Number of the cluster of each question; clusters are drawn, not questions.
        seed: Seed of the draws; the result is a function of it and of the other arguments.
        samples: Draws, at least 1.
        confidence: Share of such intervals that hold the true difference, in (0, 1).

    Raises:
        DataError: If the scores are empty, of different or wrong shape, or not finite.
        ConfigurationError: If `samples` is below 1 or `confidence` is not inside (0, 1).
    """
    return bootstrap_interval(
        as_differences(a, b), clusters=clusters, seed=seed, samples=samples, confidence=confidence
    )


def paired_macro(
    a: Mapping[str, npt.ArrayLike],
    b: Mapping[str, npt.ArrayLike],
    *,
    clusters: Mapping[str, Clusters] | None = None,
    seed: int,
    samples: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """Returns the difference of two macro averages with its percentile bootstrap interval.

    Questions are drawn inside each benchmark, the same ones for both systems.

    Args:
        a: Benchmark to the scores of the first system, (Q,).
        b: The same of the second, on the same questions in the same order.
        clusters: Benchmark to the number of the cluster of each question.
        seed: Seed of the draws.
        samples: Draws, at least 1.
        confidence: Share of such intervals that hold the true difference, in (0, 1).

    Raises:
        DataError: If the benchmarks of the two differ, or for the reasons of `paired_bootstrap`.
        ConfigurationError: If `samples` is below 1 or `confidence` is not inside (0, 1).
    """
    check_same_benchmarks(a, b)
    differences = {name: as_differences(scores, b[name]) for name, scores in a.items()}
    return macro_interval(differences, clusters=clusters, seed=seed, samples=samples, confidence=confidence)


def mcnemar(only_a: int, only_b: int) -> float:
    """Returns the two-sided p-value of McNemar's exact test, in [0, 1].

    If neither system is better, each of the m = only_a + only_b questions on which they disagree favours either with
    probability 1/2: p = min(1, 2 P(X <= min(only_a, only_b))), X binomial of m and 1/2 (McNemar 1947). The sum is taken
    in whole numbers. Questions on which both are right or both are wrong say nothing.

    Args:
        only_a: Questions that only the first system has right.
        only_b: Questions that only the second has right.

    Raises:
        DataError: If a count is negative.

    Example:
        >>> mcnemar(1, 6)
        0.125
    """
    check_counts((only_a, only_b))
    total = only_a + only_b
    ways = term = 1
    for number in range(min(only_a, only_b)):
        term = term * (total - number) // (number + 1)  # total choose number + 1
        ways += term
    p_value: float = 2 * ways / 2**total
    return min(1.0, p_value)


def sign_flip(
    differences: npt.ArrayLike,
    *,
    clusters: Clusters | None = None,
    seed: int,
    samples: int = 100_000,
) -> float:
    """Returns the two-sided p-value of Fisher's randomisation test for paired scores, in [0, 1].

    If the systems are alike, the sign of each question's difference is a toss of a coin; p is the share of all signs
    that give a sum at least as far from 0 as the one seen. With clusters one coin is tossed for each, so that what its
    questions have in common does not count as evidence. Where at most 2^20 outcomes have to be told apart, p is exact:
    with 20 clusters or fewer, and with any number of questions where scores are right or wrong, when it equals
    `mcnemar`. Else signs are drawn and p = (1 + hits) / (1 + samples), which is never too small (Phipson and Smyth
    2010).

    Args:
        differences: Score of the first system minus score of the second on each question, (Q,).
        clusters: Number of the cluster of each question.
        seed: Seed of the draws, if there are any.
        samples: Draws, at least 1; the smallest p is 1 / (1 + samples).

    Raises:
        DataError: If the differences are empty, not a row or not finite, or there is not one cluster per question.
        ConfigurationError: If `samples` is below 1.
    """
    check_samples(samples)
    sums, _ = sum_clusters(as_scores(differences), clusters)
    # 0.1 + 0.2 and 0.3 are one size: rounding must not tell equal outcomes apart
    sums = sums / (np.abs(sums).max() or 1.0)
    sizes, counts = np.unique(np.round(np.abs(sums), 12), return_counts=True)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    least = abs(float(sums.sum())) - 1e-9 * (1 + float(sizes @ counts))
    if np.log2(counts + 1).sum() <= np.log2(_ENUMERATED):
        totals, weights = np.zeros(1), np.ones(1)
        for size, count in zip(sizes, counts, strict=True):
            plus = np.arange(count + 1)
            totals = np.add.outer(totals, size * (2 * plus - count)).ravel()
            weights = np.multiply.outer(weights, _fair_coin(int(count))).ravel()
        return min(1.0, float(weights[np.abs(totals) >= least].sum()))
    generator = np.random.default_rng(seed)
    hits, step = 0, max(1, _CHUNK // counts.size)
    for start in range(0, samples, step):
        plus = generator.binomial(counts, 0.5, size=(min(step, samples - start), counts.size))
        hits += int((np.abs((2 * plus - counts) @ sizes) >= least).sum())
    return (1 + hits) / (1 + samples)


def _fair_coin(tosses: int) -> npt.NDArray[np.float64]:
    """Returns the probability of 0, 1, ..., `tosses` heads, (tosses + 1,)."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, tosses + 1)))])  # of the factorials
    probabilities: npt.NDArray[np.float64] = np.exp(logs[-1] - logs - logs[::-1] - tosses * np.log(2))
    return probabilities
