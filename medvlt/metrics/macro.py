# SPDX-License-Identifier: Apache-2.0
"""One number for several data sets."""

from __future__ import annotations

from collections.abc import Mapping

from medvlt.errors import DataError


def macro_average(accuracies: Mapping[str, float]) -> float:
    """Returns the unweighted mean over data sets, in [0, 1]: a small one counts as much as a large one.

    This is how the paper averages its six benchmarks (arXiv 2508.02669; every row of its tables agrees).

    Args:
        accuracies: Accuracy of each data set, in [0, 1].

    Raises:
        DataError: If there is no data set.

    Example:
        >>> macro_average({"pmc_vqa": 0.5, "slake_closed": 1.0})
        0.75
    """
    if not accuracies:
        raise DataError("expected the accuracy of at least one data set, got none; check that the benchmarks have rows")
    return sum(accuracies.values()) / len(accuracies)
