# SPDX-License-Identifier: Apache-2.0
"""Advantages: how much better a completion is than the others of its group."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

AdvantageScale: TypeAlias = Literal["group", "batch", "none"]
"""What a centred reward is divided by.

- `group`: the standard deviation of its group (GRPO, arXiv 2402.03300). A group in which one of many differs weighs
  most, and a difference of 0.001 counts as much as one of 1.
- `batch`: the standard deviation of all rewards of the batch (arXiv 2508.08221). The size of the differences counts.
- `none`: nothing (Dr. GRPO, arXiv 2503.20783).
"""

Baseline: TypeAlias = Literal["mean", "leave_one_out"]
"""What a reward is compared with.

- `mean`: the mean of its group, itself included (GRPO).
- `leave_one_out`: the mean of the others (RLOO, arXiv 2402.14740). The baseline does not depend on the completion, so
  the gradient is unbiased. It equals n/(n-1) times the centred reward, n the rewards of the group: at a fixed n it only
  changes the step size.
"""


def group_advantages(
    rewards: Tensor, *, scale: AdvantageScale = "group", baseline: Baseline = "mean", eps: float = 1e-6
) -> Tensor:
    """Returns A = (r - b) / (s + eps), with the baseline b of the group and the deviation s of the group or the batch.

    The deviation has Bessel's correction, 1 / (n - 1), as in TRL and verl; numpy's default has none and makes every
    advantage of a group of 8 larger by 7%. It is that of the group's own rewards with either baseline: the deviation of
    the others alone is zero, and the advantage huge, where a single completion differs. With `none` nothing is divided,
    and eps is not used.

    A reward of NaN means no verdict: it leaves baseline and deviation, and its advantage is 0. So is every advantage of
    a group without variance, exactly: centring equal floats leaves noise that the division would blow up.

    Args:
        rewards: One row per prompt, (B, G), floating point, finite or NaN. `batch` needs the batch of all ranks.
        scale: See `AdvantageScale`.
        baseline: See `Baseline`.
        eps: Added to the deviation, above 0. verl has 1e-6, TRL 1e-4.

    Returns:
        (B, G), in the type of the rewards.

    Example:
        >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])).round(decimals=3)
        tensor([[ 1.5000, -0.5000, -0.5000, -0.5000],
                [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    mean, deviation, count = _moments(rewards)
    advantages = rewards - mean
    if baseline == "leave_one_out":
        advantages = advantages * count / (count - 1)  # in this order: the quotient of whole numbers is a float32
    if scale == "batch":
        _, deviation, _ = _moments(rewards.flatten())
    if scale != "none":
        advantages = advantages / (deviation + eps)
    return advantages.masked_fill(rewards.isnan() | zero_variance(rewards)[:, None], 0.0)


def zero_variance(rewards: Tensor) -> Tensor:
    """Returns True for the groups from which nothing is learned: fewer than two rewards, or all of them equal.

    Equal means equal as floats. A threshold on the deviation would drop groups with small but real differences.

    Args:
        rewards: One row per prompt, (B, G), NaN where there is no verdict.

    Returns:
        (B,), bool.
    """
    missing = rewards.isnan()
    highest = rewards.masked_fill(missing, -torch.inf).amax(-1)
    lowest = rewards.masked_fill(missing, torch.inf).amin(-1)
    return highest <= lowest


def _moments(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, deviation with Bessel's correction and number of what is not NaN in each row, the last axis kept."""
    count = (~values.isnan()).sum(-1, keepdim=True)
    mean = values.nansum(-1, keepdim=True) / count.clamp(min=1)
    squares = (values - mean).square().nansum(-1, keepdim=True)
    return mean, (squares / (count - 1).clamp(min=1)).sqrt(), count
