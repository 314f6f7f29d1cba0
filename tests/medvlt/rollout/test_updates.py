# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from medvlt.losses.reduce import StepTotals
from medvlt.rollout.updates import UpdatePlan, plan_updates

GROUPS = st.lists(
    st.tuples(st.integers(1, 500), st.lists(st.integers(0, 90), max_size=4), st.booleans()), min_size=1, max_size=30
)
"""Tokens, tokens of the counted completions, whether it is used; for each group."""


def planned(groups: list[tuple[int, list[int], bool]], steps: int, micro_batches: int) -> UpdatePlan:
    sizes, counted, used = zip(*groups, strict=True)
    return plan_updates(sizes, counted, used, steps=steps, micro_batches=micro_batches)


@given(GROUPS, st.integers(1, 6), st.integers(1, 6))
def test_each_used_group_is_trained_on_once(
    groups: list[tuple[int, list[int], bool]], steps: int, micro_batches: int
) -> None:
    plan = planned(groups, steps, micro_batches)
    assert len(plan.micro_batches) == len(plan.totals) == steps
    in_order = []
    for bins, totals in zip(plan.micro_batches, plan.totals, strict=True):
        members = sorted(itertools.chain(*bins))
        filled = [bin_ for bin_ in bins if bin_]
        assert len(bins) == micro_batches
        assert len(filled) == min(micro_batches, len(members))
        assert totals.micro_batches == max(1, len(filled))
        in_order += members
    assert in_order == [number for number, (_, _, used) in enumerate(groups) if used]


@given(GROUPS, st.integers(1, 6), st.integers(1, 6))
def test_totals_do_not_depend_on_what_is_used(
    groups: list[tuple[int, list[int], bool]], steps: int, micro_batches: int
) -> None:
    totals = planned(groups, steps, micro_batches).totals
    for same in (True, False):
        others = planned([(size, counted, same) for size, counted, _ in groups], steps, 1).totals
        assert [(t.tokens, t.completions) for t in totals] == [(t.tokens, t.completions) for t in others]
    assert sum(t.tokens for t in totals) == sum(sum(counted) for _, counted, _ in groups)
    assert sum(t.completions for t in totals) == sum(len(counted) for _, counted, _ in groups)


@given(st.integers(1, 60), st.integers(1, 8))
def test_steps_are_nearly_equal(count: int, steps: int) -> None:
    """One completion a group, so that the totals say how many groups a step has."""
    groups = [t.completions for t in planned([(1, [1], False)] * count, steps, 1).totals]
    assert sum(groups) == count
    assert max(groups) - min(groups) <= 1


def test_by_hand() -> None:
    """Five groups in two steps of two and three; in the second, one group is not used and one completion is masked."""
    plan = plan_updates(
        [10, 20, 90, 70, 30], [[4, 4], [8, 8], [30, 0], [5, 5], [7]], [True, True, True, False, True], steps=2,
        micro_batches=2,
    )  # fmt: skip
    assert plan.micro_batches == (((1,), (0,)), ((2,), (4,)))
    assert plan.totals == (StepTotals(24, 4, 2), StepTotals(47, 5, 2))


def test_tokens_are_balanced_inside_a_step() -> None:
    sizes = [50, 10, 20, 30, 60, 10]
    plan = plan_updates(sizes, [[1]] * 6, [True] * 6, steps=1, micro_batches=3)
    assert [sum(sizes[number] for number in members) for members in plan.micro_batches[0]] == [60, 60, 60]


def test_without_balance_groups_are_cut_in_order() -> None:
    """As the reference does: equal numbers of groups, whatever their tokens."""
    plan = plan_updates([9, 1, 1, 1, 9, 9], [[1]] * 6, [True] * 6, steps=1, micro_batches=3, balanced=False)
    assert plan.micro_batches == (((0, 1), (2, 3), (4, 5)),)
    balanced = plan_updates([9, 1, 1, 1, 9, 9], [[1]] * 6, [True] * 6, steps=1, micro_batches=3)
    assert balanced.micro_batches != plan.micro_batches
