# SPDX-License-Identifier: Apache-2.0
"""Comparisons and controls against scipy, statsmodels and counts made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests
from toy_runs import toy_run

from medvlt.evaluation.analysis import analyse
from medvlt.evaluation.comparing import MCNEMAR, SIGN_FLIP, SIGN_FLIP_PICTURES
from medvlt.evaluation.runs import EvaluationRun, read_run
from medvlt.evaluation.scores import MEAN, Comparison

SAMPLES = 500


def run(folder: Path, label: str, benchmarks: dict[str, int], **settings: Any) -> EvaluationRun:
    return read_run(toy_run(folder / label, label, benchmarks, **settings))


def against(folder: Path, base: dict[str, Any], *others: dict[str, Any], **shared: Any) -> tuple[Comparison, ...]:
    baseline = run(folder, "base", **{**shared, **base})
    runs = [run(folder, f"run{number}", **{**shared, **one}) for number, one in enumerate(others)]
    return analyse(runs, baseline=baseline, samples=SAMPLES).comparisons


def test_one_completion_each_is_mcnemar_and_holm_goes_over_all_rows(tmp_path: Path) -> None:
    questions = {"x": 40, "y": 60}
    tables = [
        {name: np.random.default_rng(seed).random(count) < share for name, count in questions.items()}
        for seed, share in ((1, 0.4), (2, 0.7), (3, 0.5))
    ]
    base, *others = ({"correct": table} for table in tables)
    found = against(tmp_path, base, *others, benchmarks=questions)
    assert [(one.run, one.benchmark) for one in found] == [
        (run, name) for run in ("run0", "run1") for name in ("x", "y", MEAN)
    ]
    for one, table in zip(found[::3] + found[1::3], [tables[1], tables[2]] * 2, strict=True):
        ours, theirs = table[one.benchmark], tables[0][one.benchmark]
        only = [int((ours & ~theirs).sum()), int((theirs & ~ours).sum())]
        assert [one.only_run, one.only_baseline] == only
        assert one.test == MCNEMAR
        assert one.p_value == one.mcnemar == pytest.approx(binomtest(only[0], sum(only)).pvalue)
        assert one.difference.value == pytest.approx(ours.mean() - theirs.mean())
        assert one.difference.low <= one.difference.value <= one.difference.high
    adjusted = multipletests([one.p_value for one in found], method="holm")[1]
    assert [one.p_adjusted for one in found] == pytest.approx(adjusted)


def test_the_mean_weighs_benchmarks_alike_in_difference_and_test(tmp_path: Path) -> None:
    """Six questions against two: all signs enumerated by hand."""
    ours = {"x": [1, 1, 1, 0, 0, 1], "y": [1, 0]}
    theirs = {"x": [0, 0, 1, 0, 1, 0], "y": [0, 0]}
    found = against(tmp_path, {"correct": theirs}, {"correct": ours}, benchmarks={"x": 6, "y": 2})
    mean = found[-1]
    weighted = np.concatenate([(np.array(ours[name]) - theirs[name]) / len(ours[name]) / 2 for name in ours])
    assert mean.benchmark == MEAN
    assert mean.difference.value == pytest.approx(weighted.sum())
    signs = np.array(np.meshgrid(*[[-1, 1]] * weighted.size)).reshape(weighted.size, -1)
    hits = np.abs(weighted @ signs) >= weighted.sum() - 1e-12
    assert (mean.test, mean.p_value) == (SIGN_FLIP, pytest.approx(hits.mean()))
    assert (mean.only_run, mean.only_baseline, mean.questions) == (4, 1, 8)


def test_questions_of_one_picture_count_as_one_piece_of_evidence(tmp_path: Path) -> None:
    """Five pictures with four questions each, all in favour of the run: p is 2/2^5, not 2/2^20."""
    found = against(
        tmp_path, {"correct": {"x": [False] * 20}}, {"correct": {"x": [True] * 20}}, benchmarks={"x": 20}, share=4
    )
    (one,) = found
    assert one.test == SIGN_FLIP_PICTURES
    assert one.p_value == pytest.approx(2 / 2**5)
    assert one.mcnemar == pytest.approx(2 / 2**20)
    assert one.minimum_detectable == 1.0  # five signs never give p < 0.05


def test_what_could_be_found_counts_shared_pictures(tmp_path: Path) -> None:
    ours, theirs = (np.repeat(np.random.default_rng(seed).random(50) < 0.5, 4) for seed in (0, 1))
    apart, shared = (
        against(
            tmp_path / str(share),
            {"correct": {"x": theirs}},
            {"correct": {"x": ours}},
            benchmarks={"x": 200},
            share=share,
        )[0].minimum_detectable
        for share in (1, 4)
    )
    assert apart is not None
    assert shared == pytest.approx(2 * apart, rel=0.1)  # the root of 4


def test_several_completions_compare_the_means_of_questions(tmp_path: Path) -> None:
    theirs = {"x": [[1, 0], [0, 0], [1, 1], [0, 1]]}
    ours = {"x": [1, 1, 1, 1]}
    (one,) = against(tmp_path, {"correct": theirs, "n": 2}, {"correct": ours}, benchmarks={"x": 4})
    assert one.difference.value == pytest.approx(0.5)
    assert (one.test, one.mcnemar, one.only_run, one.only_baseline) == (SIGN_FLIP, None, 3, 0)
    assert one.p_value == pytest.approx(2 / 2**3)


def test_only_shared_benchmarks_are_compared_and_the_rest_is_noted(tmp_path: Path) -> None:
    baseline = run(tmp_path, "base", {"x": 4, "y": 4})
    data = analyse([run(tmp_path, "A", {"y": 4, "z": 4})], baseline=baseline, samples=SAMPLES)
    assert [one.benchmark for one in data.comparisons] == ["y"]  # a mean of one benchmark would be the same row twice
    assert data.benchmarks == ("y", "z", "x")
    assert any("are compared on what both were asked: y." in note for note in data.notes)
    assert any("their means are of different things" in note for note in data.notes)


def test_a_control_is_compared_with_its_own_run_and_not_with_the_baseline(tmp_path: Path) -> None:
    plain = run(tmp_path, "A", {"x": 8}, correct={"x": [1, 1, 1, 1, 1, 1, 0, 0]}, share=2)
    # the toy model, when wrong, prefers the same text wherever it stands
    rotated = run(
        tmp_path, "B", {"x": 8}, correct={"x": [1, 1, 1, 0, 0, 0, 0, 0]}, rotate=1, control={"name": "rotated"}, share=2
    )
    other = run(tmp_path, "C", {"x": 8}, about={"model": "another"})
    data = analyse([plain, rotated], baseline=other, samples=SAMPLES)
    assert [one.run for one in data.comparisons] == ["A"]
    (result,) = data.controls
    assert (result.run, result.control_run, result.control, result.questions) == ("A", "B [rotated]", "rotated", 8)
    assert result.difference.value == pytest.approx(3 / 8)
    assert result.difference.low <= 3 / 8 <= result.difference.high
    assert result.consistency == pytest.approx(5 / 8)  # right both times or wrong both times, by text, never by letter
    alone = analyse([rotated], baseline=None, samples=SAMPLES)
    assert not alone.controls
    assert any("no run of the same model, checkpoint, prompt and grader" in note for note in alone.notes)


def test_the_run_of_a_control_has_its_grader_and_if_possible_its_sampling(tmp_path: Path) -> None:
    other_grader = run(tmp_path, "A", {"x": 4}, about={"grader": {"policy": "reference_eval", "version": "1"}})
    other_sampling = run(tmp_path, "B", {"x": 4}, n=2)
    same = run(tmp_path, "C", {"x": 4})
    control = run(tmp_path, "D", {"x": 4}, control={"name": "blind"})
    for runs, partner in (((other_grader, other_sampling, same), "C"), ((other_grader, other_sampling), "B")):
        (result,) = analyse([*runs, control], baseline=None, samples=50).controls
        assert result.run == partner
    assert not analyse([other_grader, control], baseline=None, samples=50).controls


def test_runs_without_pictures_are_resampled_by_those_of_the_others(tmp_path: Path) -> None:
    plain = run(tmp_path, "A", {"x": 8}, correct={"x": [1, 1, 0, 0] * 2}, share=2)
    blind = run(tmp_path, "B", {"x": 8}, correct={"x": [1, 1, 0, 0] * 2}, pictures=False, control={"name": "blind"})
    foreign = run(tmp_path, "C", {"x": 8}, correct={"x": [1, 1, 0, 0] * 2}, pictures=False)
    scores = analyse([foreign, blind, plain], baseline=None, samples=SAMPLES).runs
    assert len({score.benchmarks[0].clustered for score in scores}) == 1
    assert scores[0].benchmarks[0].clustered is not None
