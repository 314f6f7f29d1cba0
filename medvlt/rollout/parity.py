# SPDX-License-Identifier: Apache-2.0
"""Do engine and trainer see the same prompts and compute the same probabilities? Asked before anything is learned."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from medvlt.data.encoder import PromptEncoder
from medvlt.data.packing import Group, pack
from medvlt.distributed import gather
from medvlt.errors import ConfigurationError, EngineError
from medvlt.models.policy import Policy
from medvlt.types import RolloutGroup, Sample, SamplingParams

logger = logging.getLogger(__name__)

SCANNED = 256
"""How many questions are looked at to find short and long prompts."""


@dataclass(frozen=True)
class ParityGate:
    """Settings of the comparison.

    Attributes:
        prompts: Prompts of each modality, from the shortest to the longest of 256 all over the data; at least 1.
        max_tokens: Longest completion that is compared.
        tolerance: Largest mean of |trainer - engine| over the log-probabilities of a completion, in nats. None allows
            0.001 in full precision and 0.05 otherwise: bfloat16 rounds to 3 digits, and a mean forgives single tokens
            but no wrong picture (0.3 and more).

    Raises:
        ConfigurationError: If nothing would be compared, or no rounding is allowed.
    """

    prompts: int = 2
    max_tokens: int = 32
    tolerance: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompts", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigurationError(
                    f"parity.{name} must be at least 1, got {getattr(self, name)}; parity: null turns the gate off"
                )
        if self.tolerance is not None and not self.tolerance > 0:
            raise ConfigurationError(f"parity.tolerance must be above 0 or null, got {self.tolerance}")

    def sampling(self, training: SamplingParams) -> SamplingParams:
        """Returns how the compared completions are drawn: two per prompt, from the whole distribution of training."""
        shortest = min(self.max_tokens, training.max_tokens)
        return replace(training, n=2, top_p=1.0, top_k=0, max_tokens=shortest)


@dataclass(frozen=True)
class Comparison:
    """Engine against trainer on one completion.

    Attributes:
        uid: The question.
        pictures: How many it has.
        prompt_tokens: Tokens of the prompt as the trainer, and as the engine has it.
        same_prompt: Whether they are equal token by token.
        mean_difference: Mean of |trainer - engine| over the tokens of the completion, in nats.
        max_difference: The largest of them.
    """

    uid: str
    pictures: int
    prompt_tokens: tuple[int, int]
    same_prompt: bool
    mean_difference: float
    max_difference: float

    def agrees(self, tolerance: float) -> bool:
        """Whether both saw the same prompt and computed the same probabilities."""
        return self.same_prompt and self.mean_difference <= tolerance  # false for NaN

    def __str__(self) -> str:
        ours, engines = self.prompt_tokens
        prompt = f"{ours} prompt tokens" if self.same_prompt else f"{ours} prompt tokens here, {engines} in the engine"
        return (
            f"question {self.uid} ({self.pictures} pictures, {prompt}): log-probabilities differ by "
            f"{self.mean_difference:.2g} on average, {self.max_difference:.2g} at most"
        )


def choose_samples(samples: Sequence[Sample], encoder: PromptEncoder, *, prompts: int) -> list[Sample]:
    """Returns `prompts` questions with and as many without pictures, evenly spread over prompt lengths."""
    chosen: list[Sample] = []
    count = min(len(samples), SCANNED)
    scanned = [samples[i * len(samples) // count] for i in range(count)]
    for with_pictures in (False, True):
        some = sorted((s for s in scanned if bool(s.images) == with_pictures), key=encoder.prompt_length)
        wanted = min(prompts, len(some))
        chosen += [some[round(i * (len(some) - 1) / max(1, wanted - 1))] for i in range(wanted)]
    return chosen


@torch.no_grad()
def compare(
    groups: Sequence[RolloutGroup], policy: Policy, encoder: PromptEncoder, *, temperature: float
) -> list[Comparison]:
    """Recomputes the log-probabilities of sampled completions with the training forward.

    Args:
        groups: What the engine sampled, each with at least one completion.
        policy: The policy whose weights the engine has.
        encoder: The trainer's.
        temperature: At which they were sampled.
    """
    device = policy.base.device
    unsampled = encoder.unsampled_token_ids(policy.base.config.text_config.vocab_size)
    results = []
    for group in groups:
        prompt = encoder.encode(group.sample)
        completions = [torch.tensor(completion.token_ids) for completion in group.completions]
        batch = pack([Group(prompt, completions, [1.0] * len(completions), group.sample.uid)]).to(device)
        ours = policy(batch, temperature=temperature, banned=torch.tensor(unsampled, device=device)).cpu()
        engines = torch.tensor([x for completion in group.completions for x in completion.sampler_logprobs])
        differences = torch.split((ours - engines).abs(), [len(ids) for ids in completions])
        expected = tuple(prompt.token_ids.tolist())
        results += [
            Comparison(
                group.sample.uid,
                len(group.sample.images),
                (len(expected), len(group.prompt_token_ids)),
                expected == group.prompt_token_ids,
                float(difference.mean()),
                float(difference.max()),
            )
            for difference in differences
        ]
    return results


def check(
    groups: Sequence[RolloutGroup], policy: Policy, encoder: PromptEncoder, *, temperature: float, tolerance: float
) -> None:
    """Raises if engine and trainer disagree on any completion of any rank; logs the worst otherwise.

    Args:
        groups: The same questions on every rank, sampled by its engine; refused ones are left out.
        policy: The policy whose weights the engine has.
        encoder: The trainer's.
        temperature: At which they were sampled.
        tolerance: Largest mean difference of a completion, in nats.

    Raises:
        EngineError: On every rank, quoting the worst completion; or if the engine refused all prompts with pictures, or
            all without.
    """
    comparisons: list[Comparison] = []
    sampled = [group for group in groups if group.completions and all(c.token_ids for c in group.completions)]
    if sampled:
        comparisons = compare(sampled, policy, encoder, temperature=temperature)
    # NaN compares with nothing, so disagreement comes first
    worst = max(comparisons, key=lambda c: (not c.agrees(tolerance), c.mean_difference), default=None)
    beyond = sum(not comparison.agrees(tolerance) for comparison in comparisons)
    reports = gather((len(comparisons), beyond, str(worst), {comparison.pictures > 0 for comparison in comparisons}))
    compared, failed = sum(report[0] for report in reports), sum(report[1] for report in reports)
    seen: set[bool] = set().union(*(report[3] for report in reports))
    refused = [group for group in groups if bool(group.sample.images) not in seen]
    if refused:
        kind = "" if not seen else " with pictures" if True not in seen else " without pictures"
        raise EngineError(
            f"the engine refused all {len(refused)} prompts{kind} of the comparison; its warnings say why. Mend "
            "that, or compare nothing (parity: null)"
        )
    if failed:
        example = next(report[2] for report in reports if report[1])
        raise EngineError(
            f"engine and trainer disagree, learning from its samples would be wrong. {failed} of {compared} "
            f"completions are beyond the tolerance of {tolerance:g}, the worst: {example}. Likely causes: another "
            "precision in the engine (its dtype), other pixel limits, a stale cache. parity.tolerance of the rollout "
            "callback sets the bound"
        )
    logger.info("engine and trainer agree on %d completions, the worst: %s", compared, worst)
