# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest

from medvlt.metrics.rollouts import rollout_statistics
from medvlt.rollout.iteration import Iteration, ScoredGroup
from medvlt.types import Completion, FinishReason, Reason, RolloutGroup, Sample, SamplingParams, Verdict

Row = tuple[int, FinishReason, bool, bool, float | None, float | None]
"""Tokens, why it ended, right, well-formed, rewards `accuracy` and `style`; their sum is the total, None without."""


def scored(index: int, rows: list[Row]) -> ScoredGroup:
    completions = tuple(
        # each token of a completion has the log-probability -tokens / 10
        Completion((7,) * length, "", (-length / 10,) * length, finish)
        for length, finish, *_ in rows
    )
    verdicts = tuple(Verdict(right, None, form, Reason.LABEL, "1") for _, _, right, form, *_ in rows)
    parts = {"accuracy": tuple(row[4] for row in rows), "style": tuple(row[5] for row in rows)}
    paid = [[value for value in row[4:] if value is not None] for row in rows]
    totals = tuple(sum(values) if values else None for values in paid)
    sample = Sample(f"q:{index}", "?", {"A": "a"}, "A", "a")
    return ScoredGroup(index, RolloutGroup(sample, (1, 2), completions), verdicts, totals, parts)


def statistics(*groups: list[Row]) -> dict[str, float]:
    made = tuple(scored(index, rows) for index, rows in enumerate(groups))
    return rollout_statistics(Iteration(0, made, SamplingParams(n=3)))


MIXED: list[Row] = [
    (2, "stop", True, True, 1.0, 0.5),
    (4, "stop", False, True, 0.0, None),
    (9, "length", False, False, None, None),
]
ALL_RIGHT: list[Row] = [(1, "stop", True, True, 1.0, None)] * 3
ALL_WRONG: list[Row] = [(3, "stop", False, False, 0.0, None), (3, "stop", False, True, 0.0, 1.0)] * 2
REFUSED: list[Row] = [(0, "error", False, False, None, None)] * 3


def test_by_hand() -> None:
    """Groups of 3, 3, 4 and 3 completions; 13 completions, of which 3 were never sampled."""
    found = statistics(MIXED, ALL_RIGHT, ALL_WRONG, REFUSED)
    expected = {
        # totals: 1.5, 0, none; 1, 1, 1; 0, 1, 0, 1; none
        "reward": (1.5 + 3 + 2) / 9,
        # deviations inside the groups with at least two rewards: of 1.5 and 0; of equal ones; of two 0 and two 1
        "reward_std": (1.5 / math.sqrt(2) + 0 + math.sqrt(1 / 3)) / 3,
        "frac_reward_zero_std": 2 / 4,  # the refused group teaches nothing either
        "frac_all_right": 1 / 4,
        "frac_all_wrong": 1 / 4,  # the refused group is neither
        "frac_no_verdict": 4 / 13,
        "accuracy": 4 / 13,
        "format_rate": 7 / 13,
        # of the 10 that were sampled
        "completions/mean_length": (2 + 4 + 9 + 3 * 1 + 4 * 3) / 10,
        "completions/min_length": 1.0,
        "completions/max_length": 9.0,
        "completions/mean_terminated_length": (2 + 4 + 3 * 1 + 4 * 3) / 9,
        "completions/clipped_ratio": 1 / 13,
        "completions/refused_ratio": 3 / 13,
        "entropy": (2 * 0.2 + 4 * 0.4 + 9 * 0.9 + 3 * 0.1 + 12 * 0.3) / 30,
        "rewards/accuracy/mean": 4 / 9,
        "rewards/accuracy/std": math.sqrt((4 * (5 / 9) ** 2 + 5 * (4 / 9) ** 2) / 8),
        "rewards/style/mean": 2.5 / 3,
        "rewards/style/std": math.sqrt((2 * (1 / 6) ** 2 + (1 / 3) ** 2) / 2),
    }
    assert found == pytest.approx(expected)


def test_nothing_sampled() -> None:
    """Zeros, and no error: the run that meets this has other things to say."""
    found = statistics(REFUSED, REFUSED)
    ones = {"frac_reward_zero_std", "frac_no_verdict", "completions/refused_ratio"}
    assert found == {name: float(name in ones) for name in found}


def test_one_reward_has_no_deviation() -> None:
    found = statistics([MIXED[0], MIXED[2]])
    assert (found["reward"], found["reward_std"], found["rewards/accuracy/std"]) == (1.5, 0.0, 0.0)
    assert found["frac_reward_zero_std"] == 1.0
