# SPDX-License-Identifier: Apache-2.0
"""Optimizer steps planned ahead: which samples can be trained on, and which of them make which micro-batch."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.progress import track

from medvlt.data.encoder import PromptEncoder
from medvlt.data.packing import balance
from medvlt.distributed import gather, together, world
from medvlt.errors import DataError
from medvlt.losses.reduce import StepTotals
from medvlt.types import Sample

logger = logging.getLogger(__name__)


def measure(
    samples: Sequence[Sample],
    encoder: PromptEncoder,
    *,
    max_length: int,
    setting: str = "max_length",
    with_target: bool = True,
    quiet: bool = False,
) -> dict[int, tuple[int, int]]:
    """Returns index -> (prompt tokens, target tokens) of the samples that can be trained on.

    In a distributed run each rank measures its share, which opens every picture once and not once per rank, and all get
    the result. What is left out is logged: each with its reason at level INFO, the counts as one warning.

    Args:
        samples: What the source gave, the same on every rank.
        encoder: How they become prompts and targets.
        max_length: Longest prompt and target together, in tokens.
        setting: Name of that limit in the configuration.
        with_target: Whether there is a target to learn. Without one (RL) it has 0 tokens, and the question must have
            options and a right answer, or no completion could be graded.
        quiet: No progress bar and no warning; for all ranks but one.

    Raises:
        DataError: If none is left.
    """
    ranks, rank = world()
    hidden = quiet or len(samples) < 2000  # a progress bar only where there is something to wait for
    mine = track(range(rank, len(samples), ranks), description="measuring samples", disable=hidden, transient=True)
    share = together(lambda: {index: _length(samples[index], encoder, with_target) for index in mine})
    found = {index: length for part in gather(share) for index, length in part.items()}
    lengths: dict[int, tuple[int, int]] = {}
    refused: Counter[str] = Counter()
    first: dict[str, str] = {}
    for index in range(len(samples)):
        length = found[index]
        if isinstance(length, str):
            reason, detail = "cannot be used", length
        elif sum(length) > max_length:
            reason = f"longer than {setting}={max_length}"
            detail = f"question {samples[index].uid} has {sum(length)} tokens"
        else:
            lengths[index] = length
            continue
        refused[reason] += 1
        first.setdefault(reason, detail)
        logger.info("left out: %s (%s)", detail, reason)
    summary = "; ".join(f"{count} {reason}, the first: {first[reason]}" for reason, count in refused.most_common())
    if not lengths:
        raise DataError(f"no training sample is left of {len(samples)}: {summary}. Raise {setting}, or mend these")
    if refused and not quiet:
        logger.warning("%d of %d training samples are left out: %s", refused.total(), len(samples), summary)
    return lengths


def _length(sample: Sample, encoder: PromptEncoder, with_target: bool) -> tuple[int, int] | str:
    """Tokens of prompt and target, or why the sample cannot be used."""
    try:
        encoder.check_text(sample)
        if not with_target and sample.answer_label not in sample.options:
            raise DataError(f"question {sample.uid}: it has no right option, so no completion can be graded")
        return encoder.prompt_length(sample), len(encoder.encode_target(sample)) if with_target else 0
    except DataError as error:
        return str(error)


@dataclass(frozen=True)
class StepPlan:
    """Which samples make up which micro-batch: a pure function of (seed, epoch, step).

    Attributes:
        indices: Positions of the usable samples in the source.
        prompt_tokens: Prompt length of each.
        target_tokens: Target length of each.
        global_batch_size: Samples of a step.
        micro_batches: Micro-batches of a step over all ranks.
        seed: Of the shuffling.
    """

    indices: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    target_tokens: tuple[int, ...]
    global_batch_size: int
    micro_batches: int
    seed: int

    @property
    def steps(self) -> int:
        """Optimizer steps of one epoch, the last one possibly smaller."""
        return -(-len(self.indices) // self.global_batch_size)

    @property
    def fingerprint(self) -> str:
        """Short hash of what decides which samples make which step; ranks and micro-batches do not."""
        parts = (self.indices, self.prompt_tokens, self.target_tokens, self.global_batch_size, self.seed)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def order(self, epoch: int) -> list[int]:
        """The epoch's order of positions in `indices`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.indices), generator=generator).tolist()

    def step(self, order: Sequence[int], step: int) -> tuple[list[list[int]], StepTotals]:
        """Returns the positions of each micro-batch of a step and the sizes of the step.

        A last step with fewer samples than micro-batches leaves some of them empty.
        """
        chosen = order[step * self.global_batch_size : (step + 1) * self.global_batch_size]
        tokens = [self.prompt_tokens[i] + self.target_tokens[i] for i in chosen]
        bins = balance(tokens, min(self.micro_batches, len(chosen)))
        bins += [[] for _ in range(self.micro_batches - len(bins))]
        totals = StepTotals(
            sum(self.target_tokens[i] for i in chosen), len(chosen), min(self.micro_batches, len(chosen))
        )
        return [[chosen[i] for i in members] for members in bins], totals
