# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from medvlt.evaluation.published import BENCHMARKS, FEWER_QUESTIONS, IMPOSSIBLE_PMC, PUBLISHED, QUESTIONS, PublishedRow
from medvlt.metrics.macro import macro_average

ROWS = pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.model)


def fits(percent: float, questions: int) -> bool:
    """Whether some number of right answers in one run or the mean of three rounds to `percent`."""
    right = round(percent * 3 * questions / 100)  # three equal runs are one run
    return any(abs(100 * count / (3 * questions) - percent) <= 0.005 + 1e-9 for count in (right - 1, right, right + 1))


@ROWS
def test_average_is_the_plain_mean(row: PublishedRow) -> None:
    assert tuple(row.scores) == BENCHMARKS == tuple(QUESTIONS)
    assert abs(macro_average(row.scores) - row.average) <= 0.005 + 1e-9


@ROWS
def test_columns_are_counts_of_their_questions_unless_the_note_says_otherwise(row: PublishedRow) -> None:
    misfits = {name for name, percent in row.scores.items() if not fits(percent, QUESTIONS[name])}
    expected = {FEWER_QUESTIONS: {"MedXpertQA-MM"}, IMPOSSIBLE_PMC: {"pmc_vqa"}, "": set()}
    assert misfits == expected[row.note]
    if row.note == FEWER_QUESTIONS:
        assert fits(row.scores["MedXpertQA-MM"], 1996)


def test_all_rows_are_there() -> None:
    recipes = [row for row in PUBLISHED if row.kind == "recipe"]
    assert len({row.model for row in PUBLISHED}) == len(PUBLISHED) == 25
    assert [sum(row.size == size for row in recipes) for size in ("3B", "7B", "32B")] == [6, 6, 1]
    assert sum(row.note == FEWER_QUESTIONS for row in PUBLISHED) == 9


def test_stated_findings() -> None:
    """Differences in the text of the paper and its README, which were not typed from the tables."""
    average = {row.model: row.average for row in PUBLISHED}
    base = {size: average[f"Qwen2.5-VL-{size}-Instruct"] for size in ("3B", "7B", "32B")}
    gains = [average[f"MedVLThinker-{size}-RL_m23k"] - base[size] for size in base]
    assert gains == pytest.approx([4.05, 1.38, 2.92], abs=0.005)
    losses = [average[f"MedVLThinker-{size}-SFT_m23k"] - base[size] for size in ("3B", "7B")]
    assert losses == pytest.approx([-16.3, -9.7], abs=0.05)
    assert average["MedVLThinker-32B-RL_m23k"] - average["GPT-4o"] == pytest.approx(-0.6, abs=0.05)
