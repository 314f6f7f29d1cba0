# SPDX-License-Identifier: Apache-2.0
"""The numbers in the figures, and what is left out when there is nothing to draw."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from toy_runs import toy_run

from medvlt.evaluation.analysis import analyse
from medvlt.evaluation.page.curves import length_bins, lengths, mean_curve, pass_counts, pass_curves
from medvlt.evaluation.page.figures import forest, radar
from medvlt.evaluation.page.svg import inline
from medvlt.evaluation.page.tables import in_words, sections
from medvlt.evaluation.published import BENCHMARKS, PUBLISHED, QUESTIONS
from medvlt.evaluation.runs import read_run
from medvlt.evaluation.scores import BenchmarkScore, Comparison, Interval, ReportData, RunScores


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were drawn since, as matplotlib has them."""
    found: list[Figure] = []

    def keep(figure: Figure, name: str) -> str:
        found.append(figure)
        return inline(figure, name)

    for module in ("figures", "svg"):
        monkeypatch.setattr(f"medvlt.evaluation.page.{module}.inline", keep)
    return found


def score(name: str, accuracy: float, n: int = 1, questions: int = 10) -> BenchmarkScore:
    at_k = {k: 1 - (1 - accuracy) ** k for k in (1, 2, 4) if k <= n}
    interval = Interval(accuracy, accuracy - 0.1, accuracy + 0.1)
    counts = tuple([questions] + [0] * n)
    return BenchmarkScore(
        name, questions, n, 5, interval, None, 0.25, 1.0, 0.0, 0, 12.0, None, at_k, None, counts, 0.2
    )  # fmt: skip


def data(*runs: dict[str, float], n: int = 1, questions: dict[str, int] | None = None) -> ReportData:
    scored = tuple(
        RunScores(
            f"run {number}", "", tuple(score(k, v, n, (questions or {}).get(k, 10)) for k, v in run.items()),
            Interval(0.5, 0.4, 0.6),
        )
        for number, run in enumerate(runs)
    )  # fmt: skip
    return ReportData(scored, None, tuple(dict.fromkeys(name for run in runs for name in run)))


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=80), st.integers(1, 6))
def test_length_bins_hold_every_completion_once(rows: list[tuple[int, bool]], bins: int) -> None:
    tokens, correct = np.array([t for t, _ in rows], int), np.array([c for _, c in rows], bool)
    found = length_bins(tokens, correct, bins)
    assert sum(b.completions for b in found) == len(rows)
    assert len(found) <= bins
    for b in found:  # each bin against a plain count of what lies between its ends
        inside = [c for t, c in rows if b.shortest <= t <= b.longest]
        assert len(inside) == b.completions
        assert math.isclose(b.accuracy, sum(inside) / len(inside))


def test_length_bins_of_distinct_lengths_are_of_equal_size() -> None:
    assert [b.completions for b in length_bins(np.arange(100), np.ones(100, bool))] == [20] * 5


def test_mean_curve_is_over_benchmarks_that_have_one() -> None:
    run = data({"a": 0.2, "b": 0.4}, n=4).runs[0]
    assert mean_curve(run) == {k: (2 - 0.8**k - 0.6**k) / 2 for k in (1, 2, 4)}
    assert mean_curve(RunScores("x", "", (score("a", 0.1, 4), score("b", 0.1, 1)), Interval(0, 0, 0))) == {}


def test_figures_of_groups_need_groups(tmp_path: Path) -> None:
    one = data({"a": 0.5})
    assert pass_curves(one) is None
    assert pass_counts(one) is None
    run = read_run(toy_run(tmp_path / "run", "r", {"a": 12}, n=4))
    found = analyse([run], baseline=None, samples=50)
    curves, counts = pass_curves(found), pass_counts(found)
    assert curves is not None
    assert counts is not None
    right = run.benchmarks["a"].correct.sum(axis=1)
    assert counts.rows == tuple(("r", "a", str(k), str(int((right == k).sum()))) for k in range(5))
    first = f"{100 * right.mean() / 4:.1f}"
    assert curves.rows[0] == ("r", "a", "1", first)


def test_lengths_count_what_came_in_groups_of_ten_or_more(tmp_path: Path, drawn: list[Figure]) -> None:
    failed = {("a", number, 0) for number in range(5)}
    run = read_run(toy_run(tmp_path / "run", "r", {"a": 42, "b": 9}, failed=failed))
    found = lengths(analyse([run], baseline=None, samples=50), [run])
    assert found is not None
    assert {row[1] for row in found.rows} == {"a"}, "nine completions are too few"
    sizes = [int(row[3]) for row in found.rows]
    assert len(sizes) > 1
    assert min(sizes) >= 10
    assert sum(sizes) <= 42 - 5
    assert found.rows[0][2].startswith("10 "), "what never came has no length"
    assert [axes.get_xlabel() for axes in drawn[-1].axes] == [f"mean tokens of groups of {min(sizes)} to {max(sizes)}"]


def test_forest_draws_intervals_and_chance_where_they_are(drawn: list[Figure]) -> None:
    named = data({"a": 0.5})
    assert forest(named, PUBLISHED, (), with_mean=False).legend == ()
    (axes,) = drawn[-1].axes
    assert [np.asarray(line.get_xdata()).tolist() for line in axes.lines] == [[40, 60], [50], [25, 25]]
    without = replace(named.runs[0], benchmarks=(replace(named.runs[0].benchmarks[0], chance=None),))
    forest(replace(named, runs=(without,)), PUBLISHED, (), with_mean=False)
    assert len(drawn[-1].axes[0].lines) == 2
    long = tuple(replace(run, label=f"{'m' * 60} {run.label} {'m' * 60}") for run in named.runs)
    (entry,) = forest(replace(named, runs=long), PUBLISHED, (), with_mean=False).legend
    assert entry.label == long[0].label, "names that are cut in the figure stand above it"


def test_no_name_can_break_a_figure() -> None:
    names = ("a\x01b", "a\0b", "\x1b[31m", "a\uffffb", "a\u202eb", "$x", "x" * 300)
    found = data(dict.fromkeys(names, 0.5), n=2)
    for shown in (forest(found, PUBLISHED, (), with_mean=False), radar(found), pass_curves(found), pass_counts(found)):
        assert shown is not None
        texts = "".join(ElementTree.fromstring(shown.svg).itertext())
        assert "a[U+0001]b" in texts
        assert "x" * 61 not in texts
        assert "x" * 10 + "\u2026" in texts


def test_radar_is_relative_to_the_best_run_and_needs_three_axes(drawn: list[Figure]) -> None:
    assert radar(data({"a": 0.5, "b": 0.5})) is None
    assert radar(data({"a": 0.5, "b": 0.5, "c": 0.0})) is None, "an axis whose best is 0 cannot be divided by"
    shown = radar(data({"a": 0.5, "b": 0.4, "c": 0.2}, {"a": 0.25, "b": 0.8, "c": 0.2}))
    assert shown is not None
    for text in ("50.0", "80.0", "20.0"):
        assert f">{text}</text>" in shown.svg
    (axes,) = drawn[-1].axes
    assert [np.asarray(line.get_ydata()).tolist() for line in axes.lines] == [[1, 0.5, 1, 1], [0.5, 1, 1, 0.5]]


def test_published_scores_stand_only_beside_the_same_questions() -> None:
    found = data(dict.fromkeys(BENCHMARKS, 0.5), questions=dict(QUESTIONS))
    own, recipes, others = sections(found, PUBLISHED, BENCHMARKS, with_mean=True)
    assert len(own.rows) == 1
    assert len(recipes.rows) == 13
    assert all(section.title.startswith("Published: ") for section in (recipes, others))
    best = next(row for row in recipes.rows if row.label == "MedVLThinker-3B-RL_m23k")
    assert [cell.main for cell in best.cells] == ["47.32", "52.16", "22.90", "62.28", "63.38", "71.08", "53.19"]
    assert len(sections(found, PUBLISHED, (), with_mean=False)) == 1
    (_, some, _) = sections(found, PUBLISHED, BENCHMARKS[:2], with_mean=False)
    assert [cell.main for cell in some.rows[0].cells][2:] == [""] * 5
    assert "published" in forest(found, PUBLISHED, BENCHMARKS, with_mean=True).svg
    assert "published" not in forest(found, PUBLISHED, (), with_mean=False).svg


def test_words_claim_no_more_than_the_test() -> None:
    shown = Comparison("a", "b", "x", 100, Interval(-0.05, -0.08, -0.02), 3, 8, "McNemar", 0.001, 0.01, 0.03)
    assert in_words(shown) == "5.0 points worse than the baseline."
    unsure = Comparison("a", "b", "x", 100, Interval(0.05, 0.0, 0.1), 8, 3, "McNemar", 0.03, 0.2, 0.07)
    assert in_words(unsure) == "No difference shown; 7.0 points would be found 4 times in 5, before correction."


def test_a_run_that_was_not_asked_a_benchmark_has_no_mark_there() -> None:
    found = data({"a": 0.5, "b": 0.4}, {"b": 0.3})
    svg = forest(found, PUBLISHED, (), with_mean=False).svg
    assert svg.count(">run 0</text>") == 3  # a, b and the mean
    assert svg.count(">run 1</text>") == 2
    ((_, second),) = [section.rows for section in sections(found, PUBLISHED, (), with_mean=False)]
    assert [cell.main for cell in second.cells] == ["", "30.0", "50.0"]
    assert second.small == "mean of only 1 of 2 benchmarks"
