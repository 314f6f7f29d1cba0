# SPDX-License-Identifier: Apache-2.0
"""What the statistics accept: checks that they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from medvlt.errors import ConfigurationError, DataError, listed

Clusters: TypeAlias = Sequence[int] | npt.NDArray[np.int64]
"""Number of the cluster of each question, (Q,), as from `intervals.picture_clusters`."""


def as_scores(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Returns scores as a row of numbers, (Q,).

    Raises:
        DataError: If they are empty, of another shape, or not finite.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not scores.size:
        raise DataError(f"expected a row of at least one score, got shape {scores.shape}; give one score per question")
    if not np.isfinite(scores).all():
        raise DataError("expected finite scores, got NaN or infinity; a question that failed has the score 0")
    return scores


def as_differences(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Returns a - b of two systems on the same questions, (Q,).

    Raises:
        DataError: If the scores are empty, of different or wrong shape, or not finite.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise DataError(
            f"expected two equally long rows of scores, got shapes {first.shape} and {second.shape}; "
            "score both systems on the same questions"
        )
    return as_scores(first - second)


def as_correct(values: npt.ArrayLike, least: int = 1) -> npt.NDArray[np.bool_]:
    """Returns which completions are right as a table, (Q, n).

    Raises:
        DataError: If it is no table of booleans, has no question, or has fewer than `least` completions of each.
    """
    correct: npt.NDArray[Any] = np.asarray(values)
    if correct.dtype != np.bool_ or correct.ndim != 2 or not correct.size or correct.shape[1] < least:
        raise DataError(
            f"expected a table of right and wrong, (questions, completions), with at least {least} of each, got "
            f"{correct.dtype} of shape {correct.shape}"
        )
    return correct


def as_p_values(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Returns p-values as a row of numbers, (K,), perhaps none.

    Raises:
        DataError: If they are not a row, or not all in [0, 1].
    """
    p_values = np.asarray(values, dtype=np.float64)
    if p_values.ndim != 1 or not ((p_values >= 0) & (p_values <= 1)).all():  # NaN is refused too
        raise DataError(f"expected a row of p-values in [0, 1], got {values!r}")
    return p_values


def sum_clusters(
    scores: npt.NDArray[np.float64], clusters: Clusters | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns the sum of the scores in each cluster and its number of questions, (C,) each.

    Args:
        scores: Score of each question, (Q,).
        clusters: Number of the cluster of each question, (Q,); None makes each question its own.

    Raises:
        DataError: If there is not one cluster number per question.
    """
    if clusters is None:
        return scores, np.ones_like(scores)
    labels: npt.NDArray[Any] = np.asarray(clusters)
    if labels.shape != scores.shape:
        raise DataError(f"expected a cluster for each of {scores.size} questions, got shape {labels.shape}")
    numbers = np.unique(labels, return_inverse=True)[1]
    sums, sizes = np.bincount(numbers, weights=scores), np.bincount(numbers)
    return sums.astype(np.float64), sizes.astype(np.float64)


def check_same_benchmarks(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Raises DataError unless both have the same benchmarks, at least one."""
    if not a or set(a) != set(b):
        raise DataError(
            f"expected the same benchmarks of both systems, at least one, got {listed(list(a)) or 'none'} and "
            f"{listed(list(b)) or 'none'}; leave out what only one was asked"
        )


def check_counts(counts: Iterable[int]) -> None:
    """Raises DataError if a count is negative."""
    given = list(counts)
    if min(given) < 0:
        raise DataError(f"expected counts of at least 0, got {given}")


def check_samples(samples: int) -> None:
    """Raises ConfigurationError if there is nothing to draw."""
    if samples < 1:
        raise ConfigurationError(f"expected samples of at least 1, got {samples}; 10000 is usual")


def check_confidence(confidence: float) -> None:
    """Raises ConfigurationError unless `confidence` is inside (0, 1)."""
    if not 0 < confidence < 1:
        raise ConfigurationError(f"expected a confidence inside (0, 1), got {confidence}; 0.95 is usual")
