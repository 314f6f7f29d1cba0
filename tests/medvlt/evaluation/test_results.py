# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from medvlt.errors import DataError
from medvlt.evaluation.results import BenchmarkResult, print_results, read_results, results_table
from medvlt.evaluation.statistics.intervals import wilson_interval

RESULT = BenchmarkResult("vqa_rad", 272, 193, 272, 0.98, 0.01, 120.0)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results = [RESULT, replace(RESULT, count=544, failed=3, majority=0.75, pass_at_n=0.875)]
    path.write_text(json.dumps({"benchmarks": [result.to_json() for result in results]}))
    assert read_results(path) == results


def test_interval_counts_effective_questions_not_completions() -> None:
    """Sixteen completions of a question are not sixteen questions."""
    repeated = replace(RESULT, correct=16 * 193, count=16 * 272, effective_questions=272.0)
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


def test_several_completions_and_failures_show(capsys: pytest.CaptureFixture[str]) -> None:
    """Into a file, which has no width, nothing is cut, also no long name."""
    several = replace(RESULT, count=4 * 272, failed=37, majority=0.7123, pass_at_n=0.9345)
    runs = {
        "MedVLThinker-32B-RL_m23k, T=0.5": [several, replace(RESULT, benchmark="another_benchmark_with_a_long_name")]
    }
    print_results(runs)
    text = capsys.readouterr().out
    for shown in (*runs, "another_benchmark_with_a_long_name", "failed", "37", "majority", "71.2%", "pass@n", "93.5%"):
        assert shown in text
    assert "…" not in text
    print_results({"": [RESULT]})
    assert "pass@n" not in capsys.readouterr().out
