# SPDX-License-Identifier: Apache-2.0
"""How much the same evaluation changes when it is run again. Repeat i is completion i of every question."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medvlt.evaluation.statistics.inputs import as_correct


def repeat_accuracies(correct: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Returns the accuracy of each repeat, (n,).

    Args:
        correct: Whether each completion is right, (Q, n), bool.

    Raises:
        DataError: If it is no such table, or empty.
    """
    accuracies: npt.NDArray[np.float64] = as_correct(correct).mean(axis=0, dtype=np.float64)
    return accuracies


def repeat_std(correct: npt.ArrayLike) -> float:
    """Returns the sample standard deviation (n - 1 below) of the accuracies of the repeats.

    It is what running again changes, not how sure the accuracy is: the questions stay the same.

    Args:
        correct: Whether each completion is right, (Q, n), bool; n at least 2.

    Raises:
        DataError: If it is no such table, or has fewer than two repeats.
    """
    return float(repeat_accuracies(as_correct(correct, least=2)).std(ddof=1))


def flip_rate(correct: npt.ArrayLike) -> float:
    """Returns the share of questions that are right in some repeats and wrong in others; 0 with one repeat.

    Args:
        correct: Whether each completion is right, (Q, n), bool.

    Raises:
        DataError: If it is no such table, or empty.
    """
    table = as_correct(correct)
    return float((table.any(axis=1) & ~table.all(axis=1)).mean())
