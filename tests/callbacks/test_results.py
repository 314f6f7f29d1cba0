# SPDX-License-Identifier: Apache-2.0
"""What the table holds is tested with the module that fills it, in `tests/lightning_modules/test_rollout.py`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from callbacks.results import ResultsTable, check_coverage, read_result
from medvlt.errors import DataError
from medvlt.evaluation.results import BenchmarkResult
from medvlt.evaluation.statistics.intervals import wilson_interval, wilson_of_share


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
    several = logged | {"majority": 0.5, "pass_at_4": 1.0, "effective_questions": 1.5}
    found = read_result({f"val/x/{name}": value for name, value in several.items()}, "val/x")
    assert found == BenchmarkResult(
        "x", 2, 4, 8, 1.0, 0.25, 9.0, failed=1, majority=0.5, pass_at_n=1.0, effective_questions=1.5
    )
    assert found.interval == pytest.approx(wilson_of_share(0.5, 1.5))
    single = read_result({f"val/x/{name}": value for name, value in (logged | {"count": 2.0}).items()}, "val/x")
    assert (single.failed, single.majority, single.pass_at_n) == (1, None, None)
    assert replace(single, correct=1).interval == wilson_interval(1, 2)


def evaluated(folder: Path, limit: float | None) -> SimpleNamespace:
    """Stands for a Trainer that has asked two of three questions."""
    metrics = dict.fromkeys(("correct", "format_rate", "truncation_rate", "mean_tokens", "failed"), 0.0)
    return SimpleNamespace(
        callback_metrics={f"test/x/{name}": value for name, value in (metrics | {"count": 2, "questions": 2}).items()},
        limit_val_batches=1.0,
        limit_test_batches=limit,
        datamodule=SimpleNamespace(benchmark_sizes={"x": 3}),
        is_global_zero=True,
        default_root_dir=folder,
        lightning_module=None,
        ckpt_path=None,
        global_step=0,
        state=SimpleNamespace(fn="test"),
    )


@pytest.mark.parametrize("limit", [0.5, 1, 2])
def test_a_limited_evaluation_says_so_and_a_whole_one_is_checked(limit: float, tmp_path: Path) -> None:
    ResultsTable().on_test_end(evaluated(tmp_path, limit), None)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "results.json").read_text())["limited_to"] == limit
    whole = evaluated(tmp_path, 1.0)
    with pytest.raises(DataError, match="'x': '2 of 3'"):
        ResultsTable().on_test_end(whole, None)  # type: ignore[arg-type]
    whole.datamodule = None
    ResultsTable().on_test_end(whole, None)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "results.json").read_text())["limited_to"] is None
