# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from medvlt.curation.biases import BiasCounts, Rate, letter_balance
from medvlt.data.phantom import Phantom
from medvlt.evaluation.statistics.intervals import wilson_interval


@settings(deadline=None)  # the first call imports torch
@given(st.lists(st.integers(0, 300), min_size=2, max_size=10).filter(lambda counts: sum(counts) > 0))
def test_chi_square_is_that_of_scipy(counts: list[int]) -> None:
    letters = "ABCDEFGHIJ"[: len(counts)]
    found = letter_balance(letters, Counter(dict(zip(letters, counts, strict=True))))
    expected = chisquare(counts)
    assert found.chi_square == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-12)
    assert found.questions == sum(counts)


def test_letters_that_are_never_right_count() -> None:
    counts = BiasCounts()
    for _ in range(20):
        counts.add({"A": "yes", "B": "no"}, "A")
    balance = counts.letter_balances()[0]
    assert balance.counts == {"A": 20, "B": 0}
    assert balance.p_value < 1e-4
    assert (counts.letter_majority().share, counts.letter_majority().chance) == (1.0, 0.5)


def test_questions_with_other_letters_are_counted_apart() -> None:
    counts = BiasCounts()
    for right in "AAB":
        counts.add({"A": "1", "B": "2"}, right)
    for right in "CCCD":
        counts.add({"A": "1", "B": "2", "C": "3", "D": "4"}, right)
    assert [balance.counts for balance in counts.letter_balances()] == [
        {"A": 0, "B": 0, "C": 3, "D": 1},
        {"A": 2, "B": 1},
    ]
    majority = counts.letter_majority()
    assert (majority.holds, majority.of) == (5, 7)
    assert majority.chance == pytest.approx((3 / 2 + 4 / 4) / 7)


def test_lengths_count_only_where_one_option_is_the_extreme() -> None:
    counts = BiasCounts()
    counts.add({"A": "long one", "B": "x", "C": " y "}, "A")  # the longest is alone, the shortest are two
    counts.add({"A": "longest of all", "B": "mid", "C": "z"}, "C")
    counts.add({"A": "ab", "B": "cd"}, "A")
    longest, shortest = counts.length_rate("longest"), counts.length_rate("shortest")
    assert (longest.holds, longest.of, longest.chance) == (1, 2, pytest.approx(1 / 3))
    assert (shortest.holds, shortest.of) == (1, 1)
    assert longest.interval == wilson_interval(1, 2)


def test_nothing_counted_is_no_error() -> None:
    counts = BiasCounts()
    assert counts.length_rate("longest").share == 0.0
    assert not counts.letter_majority().differs
    assert counts.to_json()["letters"] == []


def test_a_rate_differs_if_chance_is_outside_the_interval() -> None:
    assert Rate(60, 100, 0.25).differs
    assert not Rate(27, 100, 0.25).differs


def test_phantom_gives_nothing_away_until_it_is_planted() -> None:
    samples = Phantom("train", 600, modality="text").load()
    fair, planted = BiasCounts(), BiasCounts()
    for index in range(len(samples)):
        sample = samples.light(index)
        right = str(sample.answer_label)
        fair.add(dict(sample.options), right)
        options = {**sample.options, right: sample.answer + " by far"}  # the longest one is right, and half stand first
        planted.add(options, "A" if index % 2 else right)
    assert min(balance.p_value for balance in fair.letter_balances() if balance.questions > 100) > 1e-3
    assert min(balance.p_value for balance in planted.letter_balances() if balance.questions > 100) < 1e-9
    assert planted.length_rate("longest").differs
    assert planted.length_rate("longest").share > 0.5
    assert planted.letter_majority().share > fair.letter_majority().share
