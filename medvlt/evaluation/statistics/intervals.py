# SPDX-License-Identifier: Apache-2.0
"""Intervals of one system's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, pi, sin, sqrt, tan
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
    return wilson_of_share(correct / total if total else 0.0, total, confidence)


def wilson_of_share(share: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the Wilson interval of a share of a number of answers that need not be whole, such as an effective one.

    Args:
        share: In [0, 1].
        total: At 0 nothing is known, and the interval is (0, 1).
        confidence: Share of such intervals that hold the true one, in (0, 1).

    Raises:
        ConfigurationError: If `confidence` is not inside (0, 1).
    """
    check_confidence(confidence)
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = share + z * z / (2 * total)
    spread = z * sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    scale = 1 + z * z / total
    # rounding may leave a bound that is exactly 0 or 1 a hair outside
    low = 0.0 if share == 0 else (centre - spread) / scale
    high = 1.0 if share == 1 else (centre + spread) / scale
    return low, high


def effective_interval(
    scores: npt.ArrayLike, *, clusters: Clusters | None = None, completions: int = 1, confidence: float = 0.95
) -> Interval:
    """Returns the mean score with Wilson's interval for the effective number of questions.

    This is the one interval of an accuracy: of `effective_questions` questions in `wilson_interval` (Dean and Pagano
    2015). With one completion each and no clusters it is `wilson_interval` itself.

    Args:
        scores: Share of right completions of each question, (Q,).
        clusters: Number of the cluster of each question; None where all are independent.
        completions: Completions of each question.
        confidence: Share of such intervals that hold the true mean, in (0, 1).

    Raises:
        DataError: If scores are no row in [0, 1], or there is not one cluster per question.
        ConfigurationError: If `confidence` is not inside (0, 1).
    """
    given = as_scores(scores)
    if given.min() < 0 or given.max() > 1:
        raise DataError(f"expected scores in [0, 1], got {given.min()} to {given.max()}; give shares of right answers")
    share = float(given.mean())
    effective = effective_questions(given, clusters=clusters, completions=completions, confidence=confidence)
    return Interval(share, *wilson_of_share(share, effective, confidence))


def effective_questions(
    scores: npt.ArrayLike, *, clusters: Clusters | None = None, completions: int = 1, confidence: float = 0.95
) -> float:
    """Returns how many independent questions with one completion each would be as sure, above 0.

    With the mean score p of Q questions, of which C clusters have sums s_c and sizes m_c, the variance of p by leaving
    out a cluster each time is v = (C - 1) / C sum ((s_c - p m_c) / (Q - m_c))^2, of clusters of one size
    C / (C - 1) sum (s_c - p m_c)^2 / Q^2. The number is Q (p (1 - p) / (Q - 1)) / v: exactly Q for single completions
    of independent questions. Else v is an estimate, and the number is multiplied by (z / t)^2 (Korn and Graubard 1998),
    of as many degrees of freedom as there are clusters but one; these are counted as Q^2 / sum m_c^2 (Kish 1965), C
    where all have one size. It is at most Q with one completion each, since sharing a picture never makes surer, and at
    most Q n with n. Where v is 0, or of one cluster unknown, each cluster counts as one answer.

    Limits: by simulation intervals of 95% hold the truth in 90% of cases or more, mostly 93% to 97%, also near 0 and 1,
    with 10 clusters, and with sizes from 1 to 64, where a bootstrap holds it in 77% to 90%. With fewer clusters, or one
    that has most questions, they are wide.

    Args:
        scores: Score of each question, (Q,): shares of right completions, or differences of them.
        clusters: Number of the cluster of each question; None where all are independent.
        completions: Completions of each question, n.
        confidence: Of the interval to be made with the number, in (0, 1).

    Raises:
        DataError: If the scores are no row, or there is not one cluster per question.
        ConfigurationError: If `confidence` is not inside (0, 1).
    """
    check_confidence(confidence)
    given = as_scores(scores)
    sums, sizes = sum_clusters(given, clusters)
    if completions == 1 and sums.size == given.size:
        return float(given.size)
    if sums.size == 1:
        return 1.0
    mean = float(given.mean())
    shifts = (sums - mean * sizes) / (given.size - sizes)  # of the mean, without the cluster
    variance = float(np.square(shifts).sum()) * (sums.size - 1) / sums.size
    # of right and wrong alone this is p (1 - p)
    single = mean * (1 - mean) if completions > 1 else float(given.var())
    clustered = given.size**2 / float(np.square(sizes).sum())
    return effective_of_variance(single, variance, given.size, clustered, completions, confidence)


def effective_of_variance(
    single: float, variance: float, questions: int, clusters: float, completions: int, confidence: float = 0.95
) -> float:
    """Returns `effective_questions` where single scores are not at hand.

    Args:
        single: Variance of a single answer: p (1 - p).
        variance: Estimated variance of p, v.
        questions: Q.
        clusters: Number of clusters, need not be whole.
        completions: Completions of each question, n.
        confidence: Of the interval to be made with the number.
    """
    if questions < 2 or variance <= 1e-12 / questions:
        return clusters
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    t = t_quantile(confidence, max(1, int(clusters - 1 + 1e-9)))
    return min(questions * (single / (questions - 1)) / variance * (z / t) ** 2, float(questions * completions))


def t_quantile(confidence: float, freedom: int) -> float:
    """Returns the t below whose size Student's t stays with this probability (Abramowitz and Stegun 26.7.3 to 4).

    Args:
        confidence: The probability, in (0, 1).
        freedom: Degrees of freedom, at least 1.

    Example:
        >>> round(t_quantile(0.95, 4), 3)
        2.776
    """
    odd = freedom % 2
    places = np.arange(2 + odd, freedom, 2)
    weights = np.cumprod(np.concatenate([[1.0], (places - 1) / places]))[: (freedom - odd) // 2]
    powers = 2 * np.arange(weights.size) + odd

    def inside(angle: float) -> float:
        terms = sin(angle) * float(weights @ cos(angle) ** powers)
        return 2 / pi * (angle + terms) if odd else terms

    low, high = 0.0, pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < confidence else (low, middle)
    return sqrt(freedom) * tan(low)


def mean_of_intervals(intervals: Sequence[Interval]) -> Interval:
    """Returns the unweighted mean of independent estimates with the interval that follows from theirs (MOVER).

    With k estimates p_i in (l_i, u_i) and their mean m, the bounds are m - sqrt(sum (p_i - l_i)^2) / k and
    m + sqrt(sum (u_i - p_i)^2) / k (Zou and Donner 2008). It has width where one of them has.

    Args:
        intervals: At least one, all of one confidence.

    Raises:
        DataError: If there is none.
    """
    if not intervals:
        raise DataError("expected the interval of at least one benchmark, got none")
    count = len(intervals)
    mean = sum(one.value for one in intervals) / count
    below, above = (sqrt(sum((one.value - one[side]) ** 2 for one in intervals)) / count for side in (1, 2))
    return Interval(mean, mean - below, mean + above)


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
    clusters). Scores that are all equal, or a single cluster, give an interval without width, which says nothing;
    `effective_interval` does.

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
