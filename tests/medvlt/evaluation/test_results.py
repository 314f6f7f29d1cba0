# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from medvlt.errors import DataError
from medvlt.evaluation.results import BenchmarkResult, read_correct, read_results, results_table
from medvlt.evaluation.statistics import wilson_interval

RESULT = BenchmarkResult("vqa_rad", 272, 193, 272, 0.98, 0.01, 120.0)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"benchmarks": [RESULT.to_json()]}))
    assert read_results(path) == [RESULT]


def test_interval_counts_questions_not_completions() -> None:
    """Sixteen completions of a question are not sixteen questions."""
    repeated = replace(RESULT, correct=16 * 193, count=16 * 272)
    assert repeated.accuracy == RESULT.accuracy
    assert repeated.interval == RESULT.interval == wilson_interval(193, 272)


@pytest.mark.parametrize("content", ["", "{}", '{"benchmarks": [{"benchmark": "x"}]}', "[1]"])
def test_other_files_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match="expected a results file"):
        read_results(tmp_path / "x.json")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json"):
        read_results(tmp_path / "none.json")


def test_table_has_counts_intervals_and_the_mean() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(results_table({"SFT": [RESULT, replace(RESULT, benchmark="pathvqa", correct=136)]}))
    text = console.export_text()
    low, high = RESULT.interval
    assert "193" in text
    assert f"{low:.1%} to {high:.1%}" in text
    assert f"{(193 + 136) / 2 / 272:.1%}" in text
    assert "not for clinical use" in text


def test_correct_answers_are_read_by_benchmark_and_question(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    rows = [{"benchmark": b, "uid": u, "correct": c} for b, u, c in (("x", "1", True), ("y", "1", False))]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_correct(path) == {("x", "1"): True, ("y", "1"): False}
    path.write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    with pytest.raises(DataError, match="3 of 2 questions"):
        read_correct(path)
    for content in ("", "{}", "nonsense"):
        path.write_text(content)
        with pytest.raises(DataError, match="completion"):
            read_correct(path)
