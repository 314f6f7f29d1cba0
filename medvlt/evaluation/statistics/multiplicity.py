# SPDX-License-Identifier: Apache-2.0
"""Correction of p-values for the number of tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medvlt.evaluation.statistics.inputs import as_p_values


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Returns p-values after Holm's correction, in the order given.

    With p_(1) <= ... <= p_(K), the j-th becomes max over i <= j of min(1, (K - i + 1) p_(i)) (Holm 1979). Calling those
    below alpha significant makes one false claim or more with probability alpha at most, however the tests depend on
    each other.

    Args:
        p_values: In [0, 1], (K,); perhaps none.

    Raises:
        DataError: If they are not a row of numbers in [0, 1].

    Example:
        >>> holm([0.5, 0.01, 0.03]).tolist()
        [0.5, 0.03, 0.06]
    """
    given = as_p_values(p_values)
    order = np.argsort(given, kind="stable")
    adjusted = np.empty_like(given)
    adjusted[order] = np.maximum.accumulate(given[order] * np.arange(given.size, 0, -1))
    return np.minimum(adjusted, 1)
