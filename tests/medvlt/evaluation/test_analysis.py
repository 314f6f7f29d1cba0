# SPDX-License-Identifier: Apache-2.0
"""Scores against scipy, statsmodels and counts made by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint
from toy_runs import toy_run

from medvlt.evaluation.analysis import analyse, comparable_benchmarks, comparable_means
from medvlt.evaluation.published import BENCHMARKS, QUESTIONS
from medvlt.evaluation.runs import read_run
from medvlt.evaluation.scores import ReportData
from medvlt.evaluation.statistics.intervals import effective_interval

SAMPLES = 500


def analysed(folder: Path, *, baseline: None = None, **settings: object) -> ReportData:
    settings = {"label": "A", "benchmarks": {"x": 4}, **settings}
    return analyse([read_run(toy_run(folder, **settings))], baseline=baseline, samples=SAMPLES)  # type: ignore[arg-type]


def test_one_completion(tmp_path: Path) -> None:
    right = np.random.default_rng(0).random(50) < 0.6
    (score,) = analysed(tmp_path / "a", benchmarks={"x": 50}, correct={"x": right}).runs[0].benchmarks
    assert (score.questions, score.n, score.correct) == (50, 1, int(right.sum()))
    assert score.accuracy.value == pytest.approx(right.mean())
    wilson = proportion_confint(int(right.sum()), 50, method="wilson")
    assert score.accuracy[1:] == pytest.approx(wilson)
    assert (score.clustered, score.majority, score.repeat_std, score.flip_rate) == (None, None, None, None)
    assert score.pass_at_k == {1: pytest.approx(right.mean())}
    assert score.pass_counts == (50 - int(right.sum()), int(right.sum()))
    assert score.chance == 0.25
    assert (score.format_rate, score.truncation_rate, score.failed) == (1.0, 0.0, 0)


def test_several_completions_and_failures(tmp_path: Path) -> None:
    table = np.array([[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]], dtype=bool)
    data = analysed(tmp_path / "a", n=3, correct={"x": table}, failed=[("x", 0, 2), ("x", 2, 1)])
    right = table.copy()
    right[0, 2] = False  # it never came
    (score,) = data.runs[0].benchmarks
    assert (score.correct, score.failed) == (int(right.sum()), 2)
    assert score.accuracy.value == pytest.approx(right.mean())
    assert score.accuracy == effective_interval(right.mean(axis=1), completions=3)
    assert score.pass_counts == (1, 1, 2, 0)
    assert score.repeat_std == pytest.approx(np.std(right.mean(axis=0), ddof=1))
    assert score.flip_rate == pytest.approx(3 / 4)
    assert score.majority is not None
    assert score.majority.value == pytest.approx(2 / 4)
    for k, found in score.pass_at_k.items():
        choices = list(combinations(range(3), k))
        assert found == pytest.approx(np.mean([[right[q, list(c)].any() for c in choices] for q in range(4)]))
    assert list(score.pass_at_k) == [1, 2, 3]
    came = [10 + q + s for q in range(4) for s in range(3) if (q, s) not in {(0, 2), (2, 1)}]
    assert score.mean_tokens == pytest.approx(np.mean(came))
    message = "HTTP 500: no answer"
    assert data.failures == (("A", "x", "x/0", 2, message), ("A", "x", "x/2", 1, message))
    assert any("completions that never came: 2" in note for note in data.notes)


def test_warnings_come_first(tmp_path: Path) -> None:
    runs = [
        read_run(toy_run(tmp_path / name, name, {"x": 4}, n=n, failed=failed))
        for name, n, failed in (("A", 1, [("x", 0, 0)]), ("B", 2, []))
    ]
    first, second = analyse(runs, baseline=None, samples=50).notes
    assert first.startswith("Warning: A: completions that never came: 1")
    assert second.startswith("The runs sampled differently")


def test_shared_pictures_widen_the_interval_also_of_equal_scores(tmp_path: Path) -> None:
    right = np.repeat(np.random.default_rng(1).random(25) < 0.5, 4)  # alike within a picture
    settings = {"benchmarks": {"x": 100, "y": 8}, "correct": {"x": right, "y": [True] * 8}}
    shared = analysed(tmp_path / "a", share=4, **settings).runs[0]
    x, y = shared.benchmarks
    apart = analysed(tmp_path / "b", **settings).runs[0].benchmarks[0]
    for wide, narrow in ((x.accuracy, apart.accuracy), (x.clustered, apart.accuracy)):
        assert wide is not None
        assert 1.6 < (wide.high - wide.low) / (narrow.high - narrow.low) < 2.3  # about 2, the root of 4
    twice = analysed(tmp_path / "c", share=4, n=2, benchmarks={"x": 100}, correct={"x": np.stack([right] * 2, axis=1)})
    assert twice.runs[0].benchmarks[0].majority == x.accuracy
    assert x.minimum_detectable == pytest.approx(2 * apart.minimum_detectable, rel=0.1)
    assert y.clustered is not None
    assert y.clustered.low == y.clustered.high
    assert y.accuracy[1:] == pytest.approx(proportion_confint(2, 2, method="wilson"))  # two pictures, two answers


def test_the_mean_is_unweighted_and_its_interval_holds_it(tmp_path: Path) -> None:
    run = analysed(tmp_path / "a", benchmarks={"x": 10, "y": 40}, accuracy={"x": 1.0, "y": 0.5}).runs[0]
    assert run.macro.value == pytest.approx(np.mean([score.accuracy.value for score in run.benchmarks]))
    low, high = (
        np.sqrt(sum((s.accuracy.value - s.accuracy[side]) ** 2 for s in run.benchmarks)) / 2 for side in (1, 2)
    )
    assert run.macro[1:] == pytest.approx((run.macro.value - low, run.macro.value + high))
    assert run.folder == "a"


def test_lengths_that_are_not_stored_are_not_shown_as_zero(tmp_path: Path) -> None:
    assert analysed(tmp_path / "a", about={"lengths": False}).runs[0].benchmarks[0].mean_tokens is None
    failed = [("x", number, 0) for number in range(4)]
    assert analysed(tmp_path / "b", failed=failed).runs[0].benchmarks[0].mean_tokens is None


def test_published_numbers_stand_only_beside_as_many_questions(tmp_path: Path) -> None:
    small = {name: QUESTIONS[name] for name in ("MMMU-medical", "vqa_rad_closed")}
    data = analysed(tmp_path / "a", benchmarks={"x": 3, **small, "slake_closed": 415})
    assert comparable_benchmarks(data) == ("MMMU-medical", "vqa_rad_closed")
    assert not comparable_means(data)
    six = analysed(tmp_path / "b", benchmarks={name: QUESTIONS[name] for name in BENCHMARKS}, pictures=False)
    assert comparable_benchmarks(six) == BENCHMARKS
    assert comparable_means(six)
    fewer = replace(six.runs[0], benchmarks=six.runs[0].benchmarks[:2])
    assert not comparable_means(replace(six, runs=(*six.runs, fewer)))


def test_the_same_runs_give_the_same_numbers_and_the_seed_matters(tmp_path: Path) -> None:
    runs = [read_run(toy_run(tmp_path / name, name, {"x": 60, "y": 30}, seed=i, n=3)) for i, name in enumerate("ab")]
    one, again, other = (analyse(runs[:1], baseline=runs[1], samples=SAMPLES, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one.comparisons[0].difference != other.comparisons[0].difference
    assert one.runs == other.runs
