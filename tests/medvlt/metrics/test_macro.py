# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from medvlt.errors import DataError
from medvlt.metrics.macro import macro_average


def test_published_row() -> None:
    # 3B RL(m23k) in the README of the reference: six accuracies and the average it states
    row = {"pmc_vqa": 47.32, "MMMU": 52.16, "MedXpertQA": 22.90, "pathvqa": 62.28, "slake": 63.38, "vqa_rad": 71.08}
    assert round(macro_average(row), 2) == 53.19


def test_one_data_set() -> None:
    assert macro_average({"slake": 0.25}) == 0.25


def test_no_data_set() -> None:
    with pytest.raises(DataError, match="at least one data set"):
        macro_average({})
