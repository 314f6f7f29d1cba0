# SPDX-License-Identifier: Apache-2.0
"""What the table holds is tested with the module that fills it, in `tests/lightning_modules/test_rollout.py`."""

from __future__ import annotations

import pytest

from callbacks.results import check_coverage, read_result
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


def test_what_was_logged_is_read() -> None:
    logged = {"accuracy": 0.5, "correct": 4.0, "count": 8.0, "questions": 2.0, "format_rate": 1.0}
    logged |= {"truncation_rate": 0.25, "mean_tokens": 9.0, "failed": 1.0}
    several = logged | {"majority": 0.5, "pass_at_4": 1.0}
    found = read_result({f"val/x/{name}": value for name, value in several.items()}, "val/x")
    assert found == BenchmarkResult("x", 2, 4, 8, 1.0, 0.25, 9.0, failed=1, majority=0.5, pass_at_n=1.0)
    single = read_result({f"val/x/{name}": value for name, value in (logged | {"count": 2.0}).items()}, "val/x")
    assert (single.failed, single.majority, single.pass_at_n) == (1, None, None)
