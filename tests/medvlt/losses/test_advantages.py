# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from math import isnan, nan
from statistics import mean, stdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medvlt.losses.advantages import AdvantageScale, Baseline, group_advantages, zero_variance


def loops(rewards: list[list[float]], scale: AdvantageScale, baseline: Baseline, eps: float) -> list[list[float]]:
    """The definitions with the standard library, one completion at a time."""
    valid = [reward for group in rewards for reward in group if not isnan(reward)]
    result = []
    for group in rewards:
        row = []
        for position, reward in enumerate(group):
            others = [r for j, r in enumerate(group) if j != position and not isnan(r)]
            if isnan(reward) or all(r == reward for r in others):
                row.append(0.0)
                continue
            centre = mean(others) if baseline == "leave_one_out" else mean([reward, *others])
            divisor = {"none": 1.0, "group": stdev([reward, *others]) + eps, "batch": stdev(valid) + eps}[scale]
            row.append((reward - centre) / divisor)
        result.append(row)
    return result


SCALES: list[AdvantageScale] = ["group", "batch", "none"]
BASELINES: list[Baseline] = ["mean", "leave_one_out"]
REWARD = st.sampled_from([0.0, 0.1, 0.3, 1.0, -0.5, nan]) | st.floats(-3, 3).map(lambda x: round(x, 3))
BATCH = st.integers(1, 6).flatmap(
    lambda size: st.lists(st.lists(REWARD, min_size=size, max_size=size), min_size=1, max_size=4)
)


def double(rewards: list[list[float]]) -> Tensor:
    return torch.tensor(rewards, dtype=torch.float64)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
@settings(max_examples=150, deadline=None)
@given(rewards=BATCH, eps=st.sampled_from([1e-4, 1e-6, 1e-9]))
def test_equals_the_definition(
    rewards: list[list[float]], eps: float, scale: AdvantageScale, baseline: Baseline
) -> None:
    result = group_advantages(double(rewards), scale=scale, baseline=baseline, eps=eps)
    for row, expected in zip(result.tolist(), loops(rewards, scale, baseline, eps), strict=True):
        assert row == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_one_right_of_eight() -> None:
    rewards = torch.zeros(1, 8, dtype=torch.float64)
    rewards[0, 3] = 1.0
    # mean 1/8 and, with Bessel's correction, deviation sqrt(1/8); without it the winner would have sqrt(7) = 2.6458
    advantages = group_advantages(rewards)[0]
    assert advantages[3].item() == pytest.approx(2.474867, abs=1e-5)
    assert advantages[0].item() == pytest.approx(-0.353552, abs=1e-5)
    assert group_advantages(rewards, eps=1e-4)[0, 3].item() == pytest.approx(2.474874 - 7.0e-4, abs=1e-5)
    assert group_advantages(rewards, scale="none")[0, 3].item() == 0.875


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 16), st.integers(0, 1000))
def test_leave_one_out_is_the_mean_baseline_times_n_over_n_minus_1(size: int, seed: int) -> None:
    rewards = torch.rand(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    centred = group_advantages(rewards, scale="none")
    others = (rewards.sum(1, keepdim=True) - rewards) / (size - 1)
    apart = group_advantages(rewards, scale="none", baseline="leave_one_out")
    torch.testing.assert_close(apart, rewards - others, rtol=0, atol=1e-12)
    torch.testing.assert_close(apart, centred * size / (size - 1), rtol=0, atol=1e-12)


def test_a_reward_without_verdict_is_as_if_the_completion_were_not_there() -> None:
    with_gap = group_advantages(double([[1.0, nan, 0.0, 0.0]]))
    without = group_advantages(double([[1.0, 0.0, 0.0]]))
    assert with_gap[0, 1] == 0
    torch.testing.assert_close(with_gap[:, [0, 2, 3]], without)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("group", [[0.1] * 8, [nan, *[0.7] * 7], [nan] * 8, [nan, 0.3, *[nan] * 6]])
def test_a_group_without_variance_has_exactly_zero(
    group: list[float], scale: AdvantageScale, baseline: Baseline
) -> None:
    """Eight times 0.1 in float32 is a group whose mean is not 0.1: centred and divided it would be anything."""
    rewards = torch.tensor([group, [1.0, 0.0] * 4], dtype=torch.float32)
    advantages = group_advantages(rewards, scale=scale, baseline=baseline, eps=1e-9)
    assert torch.equal(advantages[0], torch.zeros(8))
    assert (advantages[1] != 0).all()
    assert zero_variance(rewards).tolist() == [True, False]


def test_a_small_difference_is_variance() -> None:
    rewards = double([[0.5, 0.5, 0.5 + 1e-9]])
    assert zero_variance(rewards).tolist() == [False]
    assert group_advantages(rewards, eps=1e-12)[0, 2].item() == pytest.approx(2 / 3**0.5, rel=1e-2)


def test_batch_scale_keeps_the_size_of_the_differences() -> None:
    rewards = double([[0.0, 1.0], [0.0, 0.1]])
    of_group, of_batch = group_advantages(rewards), group_advantages(rewards, scale="batch")
    assert (of_group[0] / of_group[1]).tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    assert (of_batch[0] / of_batch[1]).tolist() == pytest.approx([10.0, 10.0])


@pytest.mark.parametrize("scale", SCALES)
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.sampled_from([-2.0, 1.0, 3.0]))
def test_groups_sum_to_zero_and_ignore_a_shift_and_the_order(seed: int, shift: float, scale: AdvantageScale) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 3, (4, 6), generator=generator).double()
    advantages = group_advantages(rewards, scale=scale)
    torch.testing.assert_close(advantages.sum(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(group_advantages(rewards + shift, scale=scale), advantages, rtol=0, atol=1e-12)
    order = torch.randperm(6, generator=generator)
    torch.testing.assert_close(group_advantages(rewards[:, order], scale=scale), advantages[:, order])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_type_is_kept(dtype: torch.dtype, baseline: Baseline) -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0]], dtype=dtype)
    assert group_advantages(rewards, baseline=baseline).dtype == dtype
