# SPDX-License-Identifier: Apache-2.0
"""Do engine and trainer see the same prompts and compute the same probabilities? Asked before anything is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medvlt.data.encoder import PromptEncoder
from medvlt.data.packing import Group, pack
from medvlt.errors import ConfigurationError
from medvlt.models.policy import Policy
from medvlt.types import RolloutGroup, Sample

SCANNED = 256
"""How many questions are looked at to find short and long prompts."""


@dataclass(frozen=True)
class ParityGate:
    """Settings of the comparison.

    Attributes:
        prompts: Prompts of each modality, from the shortest to the longest of the first 256; at least 1.
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
    scanned = [samples[number] for number in range(min(len(samples), SCANNED))]
    for with_pictures in (False, True):
        some = sorted((s for s in scanned if bool(s.images) == with_pictures), key=encoder.prompt_length)
        count = min(prompts, len(some))
        chosen += [some[round(i * (len(some) - 1) / max(1, count - 1))] for i in range(count)]
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
