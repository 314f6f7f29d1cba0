# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from statistics import stdev

import numpy as np
import pytest

from medvlt.errors import DataError
from medvlt.evaluation.statistics.repeats import flip_rate, repeat_accuracies, repeat_std

CORRECT = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 1]], dtype=bool)


def test_numbers_by_hand() -> None:
    assert repeat_accuracies(CORRECT) == pytest.approx([0.5, 0.5, 0.75])
    assert repeat_std(CORRECT) == pytest.approx(stdev([0.5, 0.5, 0.75]))
    assert flip_rate(CORRECT) == 0.5
    assert flip_rate(CORRECT[:, :1]) == 0


def test_bad_tables_are_refused() -> None:
    with pytest.raises(DataError, match="at least 2"):
        repeat_std(CORRECT[:, :1])
    for bad in (CORRECT[:0], CORRECT[0], CORRECT.astype(float)):
        for function in (repeat_accuracies, repeat_std, flip_rate):
            with pytest.raises(DataError, match="table of right and wrong"):
                function(bad)
