# SPDX-License-Identifier: Apache-2.0
"""One rollout iteration: the scored groups of all ranks, and what is known of their tokens.

Every rank holds the whole iteration (token ids and a few numbers per token, no pictures), so statistics need no
exchange, any rank can train on any group, and a checkpoint holds it whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medvlt.types import Completion, Reason, RolloutGroup, Sample, SamplingParams, Verdict

NO_VERDICT = float("nan")


@dataclass(frozen=True)
class ScoredGroup:
    """A group of completions and what was said of each.

    Attributes:
        index: Position of the question in the training data.
        group: Question and completions.
        verdicts: The grader's, one per completion.
        rewards: Total reward of each completion; None where no reward has anything to say.
        parts: Name of each reward to its values before weighting.
    """

    index: int
    group: RolloutGroup
    verdicts: tuple[Verdict, ...]
    rewards: tuple[float | None, ...]
    parts: Mapping[str, tuple[float | None, ...]]

    @property
    def has_variance(self) -> bool:
        """Whether the group teaches anything: at least two rewards, not all equal."""
        return len({reward for reward in self.rewards if reward is not None}) > 1

    def to_state(self) -> dict[str, Any]:
        """Returns the group without its question, in types that `torch.load(weights_only=True)` reads."""
        completions = self.group.completions
        return {
            "index": self.index,
            "uid": self.group.sample.uid,
            "prompt_token_ids": torch.tensor(self.group.prompt_token_ids, dtype=torch.int32),
            "lengths": [len(c.token_ids) for c in completions],
            "token_ids": torch.tensor([t for c in completions for t in c.token_ids], dtype=torch.int32),
            "sampler_logprobs": torch.tensor([x for c in completions for x in c.sampler_logprobs], dtype=torch.float64),
            "texts": [c.text for c in completions],
            "finish_reasons": [c.finish_reason for c in completions],
            "versions": [c.version for c in completions],
            "verdicts": [asdict(verdict) | {"reason": str(verdict.reason)} for verdict in self.verdicts],
            "rewards": list(self.rewards),
            "parts": {name: list(values) for name, values in self.parts.items()},
        }

    @staticmethod
    def from_state(state: Mapping[str, Any], sample: Sample) -> ScoredGroup:
        """Returns the group that `to_state` described.

        Args:
            state: Result of `to_state`.
            sample: The question at `state["index"]`.
        """
        tokens = torch.split(state["token_ids"], state["lengths"])
        logprobs = torch.split(state["sampler_logprobs"], state["lengths"])
        columns = zip(tokens, state["texts"], logprobs, state["finish_reasons"], state["versions"], strict=True)
        completions = tuple(
            Completion(tuple(ids.tolist()), text, tuple(values.tolist()), finish, version)
            for ids, text, values, finish, version in columns
        )
        return ScoredGroup(
            state["index"],
            RolloutGroup(sample, tuple(state["prompt_token_ids"].tolist()), completions),
            tuple(Verdict(**(verdict | {"reason": Reason(verdict["reason"])})) for verdict in state["verdicts"]),
            tuple(state["rewards"]),
            {name: tuple(values) for name, values in state["parts"].items()},
        )


@dataclass(frozen=True)
class Iteration:
    """All groups of one iteration in the order of their prompts.

    Attributes:
        number: Which iteration, from 0.
        groups: B groups of G completions.
        sampling: How they were drawn.
        advantages: (B, G), once they are formed.
        masked: Completions that are left out of the loss, (B, G), bool.
        used: Groups that take part in the update, (B,), bool; the others contribute nothing and are not computed.
        old_logprobs: Log-probabilities of the completions of each group under the weights that sampled them, flat,
            where they were computed. A group that no update uses has none.
        ref_logprobs: The same under the reference policy.
    """

    number: int
    groups: tuple[ScoredGroup, ...]
    sampling: SamplingParams
    advantages: Tensor | None = None
    masked: Tensor | None = None
    used: Tensor | None = None
    old_logprobs: Mapping[int, Tensor] | None = None
    ref_logprobs: Mapping[int, Tensor] | None = None

    @property
    def lengths(self) -> list[list[int]]:
        """Tokens of every completion, group by group."""
        return [[len(completion.token_ids) for completion in group.group.completions] for group in self.groups]

    @property
    def rewards(self) -> Tensor:
        """Rewards, (B, G), float64, NaN where there is no verdict."""
        rows = [[NO_VERDICT if reward is None else reward for reward in group.rewards] for group in self.groups]
        return torch.tensor(rows, dtype=torch.float64)

    def updated(self, **values: Any) -> Iteration:
        """Returns a copy with some attributes set."""
        return replace(self, **values)

    def to_state(self) -> dict[str, Any]:
        """Returns the iteration in types that `torch.load(weights_only=True)` reads."""
        return {
            "number": self.number,
            "groups": [group.to_state() for group in self.groups],
            "sampling": asdict(self.sampling),
            "advantages": self.advantages,
            "masked": self.masked,
            "used": self.used,
            "old_logprobs": None if self.old_logprobs is None else dict(self.old_logprobs),
            "ref_logprobs": None if self.ref_logprobs is None else dict(self.ref_logprobs),
        }

    @staticmethod
    def from_state(state: Mapping[str, Any], sample_at: Callable[[int, str], Sample]) -> Iteration:
        """Returns the iteration that `to_state` described.

        Args:
            state: Result of `to_state`.
            sample_at: Gives the question at an index and checks its uid.
        """
        groups = tuple(ScoredGroup.from_state(g, sample_at(g["index"], g["uid"])) for g in state["groups"])
        return Iteration(
            state["number"],
            groups,
            SamplingParams(**state["sampling"]),
            *(state[name] for name in ("advantages", "masked", "used", "old_logprobs", "ref_logprobs")),
        )
