# SPDX-License-Identifier: Apache-2.0
"""How sure a score is."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from medvlt.errors import ConfigurationError, DataError

_CHUNK = 2_000_000
"""Indices drawn at once: 16 MB, whatever the number of questions."""


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
    _check_confidence(confidence)
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


def paired_bootstrap(
    a: npt.ArrayLike, b: npt.ArrayLike, *, seed: int, samples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Returns mean(a) - mean(b) with its percentile bootstrap interval, (difference, low, high).

    Questions are drawn with replacement, the same ones for both systems, so that what makes a question hard cancels
    (Efron and Tibshirani 1993, chapter 13). The difference is significant at 1 - `confidence` if 0 lies outside.

    Args:
        a: Score of the first system on each question, (N,); booleans, or means over repeats.
        b: Score of the second system on the same questions in the same order, (N,).
        seed: Seed of the draws; the result is a function of it and of the scores.
        samples: Draws, at least 1. Takes about 10 ns per draw and question.
        confidence: Share of such intervals that hold the true difference, in (0, 1).

    Raises:
        DataError: If the scores are empty, of different or wrong shape, or not finite.
        ConfigurationError: If `samples` is below 1 or `confidence` is not inside (0, 1).
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise DataError(
            f"expected two equally long rows of scores, got shapes {first.shape} and {second.shape}; "
            "score both systems on the same questions"
        )
    if samples < 1:
        raise ConfigurationError(f"expected samples of at least 1, got {samples}; 10000 is usual")
    _check_confidence(confidence)
    differences = first - second
    if not np.isfinite(differences).all():
        raise DataError("expected finite scores, got NaN or infinity; leave those questions out of both systems")
    generator = np.random.default_rng(seed)
    size = differences.size
    means = np.empty(samples)
    step = max(1, _CHUNK // size)
    for start in range(0, samples, step):
        chunk = means[start : start + step]
        chunk[:] = differences[generator.integers(0, size, (chunk.size, size))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(differences.mean()), float(low), float(high)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigurationError(f"expected a confidence inside (0, 1), got {confidence}; 0.95 is usual")
