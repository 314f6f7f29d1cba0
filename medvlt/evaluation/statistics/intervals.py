# SPDX-License-Identifier: Apache-2.0
"""Intervals of one system's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from medvlt.errors import DataError
from medvlt.evaluation.scores import Interval
from medvlt.evaluation.statistics.inputs import Clusters, as_scores, check_confidence, check_samples, sum_clusters

_CHUNK = 2_000_000
"""Numbers drawn at once: 16 MB, whatever the number of questions."""


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the Wilson score interval of a proportion, (low, high) in [0, 1].

    With p = correct / total, n = total and z the normal quantile of (1 + confidence) / 2, the bounds are
    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) (Wilson 1927). It stays inside [0, 1] and has
    width above zero at 0 and at `total`, where the usual interval p -+ z s has none.

    Args:
        correct: Right answers, from 0 to `total`.
        total: Answers. At 0 nothing is known, and the interval is (0, 1).
        confidence: Share of such intervals that hold the true proportion, in (0, 1).

    Raises:
        DataError: If the counts are negative or `correct` is above `total`.
        ConfigurationError: If `confidence` is not inside (0, 1).

    Example:
        >>> [round(bound, 3) for bound in wilson_interval(85, 170)]
        [0.426, 0.574]
    """
    if not 0 <= correct <= total:
        raise DataError(f"expected 0 <= correct <= total, got correct={correct} and total={total}; check the counts")
    check_confidence(confidence)
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    scale = 1 + z * z / total
    # rounding may leave a bound that is exactly 0 or 1 a hair outside
    low = 0.0 if correct == 0 else (centre - spread) / scale
    high = 1.0 if correct == total else (centre + spread) / scale
    return low, high


def bootstrap_interval(
    scores: npt.ArrayLike,
    *,
    clusters: Clusters | None = None,
    seed: int,
    samples: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """Returns the mean score with its percentile bootstrap interval.

    Clusters are drawn with replacement, as many as there are, and a draw is worth the sum of its scores over the number
    of its questions, a ratio estimate (Efron and Tibshirani 1993, chapters 8 and 13; Field and Welsh 2007 for
    clusters). Scores that are all equal, or a single cluster, give an interval without width, which says nothing; the
    Wilson interval does.

    Args:
        scores: Score of each question, (Q,).
        clusters: Number of the cluster of each question, as from `picture_clusters`; None draws single questions.
        seed: Seed of the draws; the result is a function of it and of the other arguments.
        samples: Draws, at least 1.
        confidence: Share of such intervals that hold the true mean, in (0, 1).

    Raises:
        DataError: If the scores are empty, not a row or not finite, or there is not one cluster per question.
        ConfigurationError: If `samples` is below 1 or `confidence` is not inside (0, 1).
    """
    return macro_interval(
        {"": scores},
        clusters=None if clusters is None else {"": clusters},
        seed=seed,
        samples=samples,
        confidence=confidence,
    )


def macro_interval(
    scores: Mapping[str, npt.ArrayLike],
    *,
    clusters: Mapping[str, Clusters] | None = None,
    seed: int,
    samples: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """Returns the unweighted mean over benchmarks of the mean score with its percentile bootstrap interval.

    Draws are made inside each benchmark and apart from those of the others: the benchmarks are fixed, their questions
    are a sample. Clusters are those of `bootstrap_interval`.

    Args:
        scores: Benchmark to the score of each of its questions, (Q,).
        clusters: Benchmark to the number of the cluster of each question; None, or a benchmark that is not there, draws
            single questions.
        seed: Seed of the draws.
        samples: Draws, at least 1.
        confidence: Share of such intervals that hold the true mean, in (0, 1).

    Raises:
        DataError: If there is no benchmark, or for the reasons of `bootstrap_interval`.
        ConfigurationError: If `samples` is below 1 or `confidence` is not inside (0, 1).
    """
    if not scores:
        raise DataError("expected the scores of at least one benchmark, got none")
    check_samples(samples)
    check_confidence(confidence)
    generator = np.random.default_rng(seed)
    value = 0.0
    draws = np.zeros(samples)
    for name, given in scores.items():
        sums, sizes = sum_clusters(as_scores(given), (clusters or {}).get(name))
        value += float(sums.sum() / sizes.sum())
        draws += _resampled_means(sums, sizes, generator, samples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws / len(scores), [tail, 1 - tail])
    return Interval(value / len(scores), float(low), float(high))


def picture_clusters(pictures: Sequence[Sequence[str]]) -> npt.NDArray[np.int64]:
    """Returns the number of the cluster of each question, (Q,): questions that share a picture are in one.

    Two questions are in one cluster also if a chain of others links their pictures; a question without a picture is a
    cluster of its own. Numbers go from 0 in the order in which the clusters first appear.

    Args:
        pictures: Ids of each question's pictures.

    Example:
        >>> picture_clusters([["p"], [], ["q"], ["p", "r"], [], ["r"]]).tolist()
        [0, 1, 2, 0, 3, 0]
    """
    first = list(range(len(pictures)))  # an earlier question of the same cluster, or itself

    def root(question: int) -> int:
        while first[question] != question:
            first[question] = first[first[question]]
            question = first[question]
        return question

    shown: dict[str, int] = {}
    for question, names in enumerate(pictures):
        for name in names:
            ours, theirs = root(question), root(shown.setdefault(name, question))
            first[max(ours, theirs)] = min(ours, theirs)
    roots = np.array([root(question) for question in range(len(pictures))], dtype=np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def _resampled_means(
    sums: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], generator: np.random.Generator, samples: int
) -> npt.NDArray[np.float64]:
    """Returns the mean score of each draw of clusters, (samples,).

    Clusters of equal sum and size cannot be told apart, and how often each kind is drawn is multinomial: a few numbers
    per draw in place of one per question.
    """
    kinds, first, counts = np.unique(np.stack([sums, sizes]), axis=1, return_index=True, return_counts=True)
    order = np.argsort(first)  # not by value: negated scores then give the negated draws
    (kind_sums, kind_sizes), shares = kinds[:, order], counts[order] / sums.size
    means = np.empty(samples)
    step = max(1, _CHUNK // shares.size)
    for start in range(0, samples, step):
        chunk = means[start : start + step]
        drawn = generator.multinomial(sums.size, shares, size=chunk.size)
        chunk[:] = (drawn @ kind_sums) / (drawn @ kind_sizes)
    return means
