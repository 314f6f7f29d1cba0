# SPDX-License-Identifier: Apache-2.0
"""Several completions of a question taken together: is one of them right, is their most frequent answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb, fsum

import numpy as np
import numpy.typing as npt

from medvlt.errors import DataError
from medvlt.evaluation.statistics.inputs import as_correct


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Returns the unbiased estimate of the probability that one of k completions is right, in [0, 1].

    It is 1 - C(n - correct, k) / C(n, k), the share of all choices of k of the n completions that have a right one
    (Chen et al. 2021, arXiv 2107.03374); computed in whole numbers and rounded once.

    Args:
        n: Completions.
        correct: How many of them are right, from 0 to `n`.
        k: From 1 to `n`.

    Raises:
        DataError: If a number is out of range.

    Example:
        >>> pass_at_k(4, 1, 2)
        0.5
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise DataError(f"expected 0 <= correct <= n and 1 <= k <= n, got n={n}, correct={correct} and k={k}")
    choices = comb(n, k)
    return (choices - comb(n - correct, k)) / choices


def pass_curve(correct: npt.ArrayLike) -> dict[int, float]:
    """Returns k to the mean of `pass_at_k` over questions, for k = 1, 2, 4, ... up to n, and n.

    Args:
        correct: Whether each completion is right, (Q, n), bool.

    Raises:
        DataError: If it is no such table, or empty.
    """
    table = as_correct(correct)
    questions, n = table.shape
    counts = np.bincount(table.sum(axis=1), minlength=n + 1).tolist()
    ks = sorted({2**power for power in range(n.bit_length())} | {n})
    return {k: fsum(count * pass_at_k(n, right, k) for right, count in enumerate(counts)) / questions for k in ks}


def majority_label(labels: Sequence[str | None]) -> str | None:
    """Returns the most frequent letter; of equally frequent ones the first seen, as the reference does.

    A completion without a letter casts no vote; without any vote the result is None.

    Example:
        >>> majority_label(["B", None, "A", "A", None, None])
        'A'
    """
    votes = Counter(label for label in labels if label is not None)
    return votes.most_common(1)[0][0] if votes else None  # equal counts stay in the order of insertion


def majority_correct(
    labels: Sequence[Sequence[str | None]], answer_labels: Sequence[str | None]
) -> npt.NDArray[np.bool_]:
    """Returns whether the majority vote on each question is its right letter, (Q,).

    Args:
        labels: The letters that the completions of each question chose.
        answer_labels: The right letter of each; a question without one cannot be right by vote.

    Raises:
        DataError: If there are not as many right letters as questions.
    """
    if len(labels) != len(answer_labels):
        raise DataError(f"expected as many right letters as questions, got {len(answer_labels)} and {len(labels)}")
    right = [
        answer is not None and majority_label(given) == answer
        for given, answer in zip(labels, answer_labels, strict=True)
    ]
    return np.array(right, dtype=np.bool_)
