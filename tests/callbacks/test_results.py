# SPDX-License-Identifier: Apache-2.0
"""What the table holds is tested with the module that fills it, in `tests/lightning_modules/test_rollout.py`."""

from __future__ import annotations

import pytest

from callbacks.results import check_coverage
from medvlt.errors import DataError
from medvlt.evaluation.results import BenchmarkResult


def result(name: str, questions: int) -> BenchmarkResult:
    return BenchmarkResult(name, questions, 0, questions, 0.0, 0.0, 0.0)


def test_whole_benchmarks_pass() -> None:
    check_coverage([result("a", 3), result("b", 5)], {"a": 3, "b": 5})
    check_coverage([result("a", 3)], {})  # loaders without a data module


@pytest.mark.parametrize("results", [[result("a", 2)], [result("a", 4)], []])
def test_a_lost_question_is_an_error(results: list[BenchmarkResult]) -> None:
    with pytest.raises(DataError, match=r"'a': '[024] of 3'"):
        check_coverage(results, {"a": 3})
