# SPDX-License-Identifier: Apache-2.0
"""What one iteration of rollouts was like. Names are TRL's where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from medvlt.rollout.iteration import Iteration, ScoredGroup
from medvlt.types import Completion


def rollout_statistics(iteration: Iteration) -> dict[str, float]:
    """Returns the statistics of an iteration, the same on every rank.

    - `reward`, `reward_std`: mean reward, and mean over groups of the deviation inside a group (Bessel).
    - `frac_reward_zero_std`: share of groups that teach nothing, and of these `frac_all_right` and `frac_all_wrong`,
      shares of all groups whose completions are all right or all wrong; a refused group is neither.
    - `rewards/{name}/mean|std`: each reward before weighting, over completions for which it has a value.
    - `accuracy`, `format_rate`: shares of completions. `frac_no_verdict`: share without a reward.
    - `completions/mean_length|min_length|max_length`, `mean_terminated_length` in tokens, `clipped_ratio`: share cut at
      the token limit.
    - `completions/refused_ratio`: share that the engine refused to sample.
    - `entropy`: -mean sampler log-probability, an unbiased estimate in nats of the mean entropy per token.

    Args:
        iteration: With at least one completion.
    """
    groups = iteration.groups
    by_group = [group.group.completions for group in groups]
    completions = [completion for group in by_group for completion in group]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    rewards = [[reward for reward in group.rewards if reward is not None] for group in groups]
    sampled = [completion for completion in completions if is_sampled(completion)]
    lengths = [len(completion.token_ids) for completion in sampled]
    right = [sum(verdict.correct for verdict in group.verdicts) for group in groups]
    result = {
        "reward": mean([reward for row in rewards for reward in row]),
        "reward_std": mean([stdev(row) for row in rewards if len(row) > 1]),
        "frac_reward_zero_std": mean([not group.has_variance for group in groups]),
        "frac_all_right": mean([n == len(g.verdicts) for n, g in zip(right, groups, strict=True)]),
        "frac_all_wrong": mean([n == 0 and any(map(is_sampled, c)) for n, c in zip(right, by_group, strict=True)]),
        "frac_no_verdict": mean([reward is None for group in groups for reward in group.rewards]),
        "accuracy": mean([verdict.correct for verdict in verdicts]),
        "format_rate": mean([verdict.format_ok for verdict in verdicts]),
        "completions/mean_length": mean(lengths),
        "completions/min_length": float(min(lengths, default=0)),
        "completions/max_length": float(max(lengths, default=0)),
        "completions/mean_terminated_length": mean([len(c.token_ids) for c in sampled if c.finish_reason == "stop"]),
        "completions/clipped_ratio": mean([completion.finish_reason == "length" for completion in completions]),
        "completions/refused_ratio": mean([completion.finish_reason == "error" for completion in completions]),
        "entropy": mean([-logprob for completion in sampled for logprob in completion.sampler_logprobs]),
    }
    for name in groups[0].parts:
        values = [value for group in groups for value in group.parts[name] if value is not None]
        result[f"rewards/{name}/mean"] = mean(values)
        result[f"rewards/{name}/std"] = stdev(values) if len(values) > 1 else 0.0
    return result


def discarded_statistics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Returns how many groups dynamic sampling replaced: `resampling/discarded_all_right|all_wrong|other`."""
    sampled = [group for group in groups if any(map(is_sampled, group.group.completions))]
    right = sum(all(verdict.correct for verdict in group.verdicts) for group in sampled)
    wrong = sum(not any(verdict.correct for verdict in group.verdicts) for group in sampled)
    return {
        "resampling/discarded_all_right": float(right),
        "resampling/discarded_all_wrong": float(wrong),
        "resampling/discarded_other": float(len(groups) - right - wrong),
    }


def is_sampled(completion: Completion) -> bool:
    """Whether the engine sampled it; it may refuse a prompt."""
    return completion.finish_reason != "error"


def mean(values: Sequence[float]) -> float:
    """Returns the mean; 0 of nothing."""
    return fmean(values) if values else 0.0
