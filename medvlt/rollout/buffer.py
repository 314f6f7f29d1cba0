# SPDX-License-Identifier: Apache-2.0
"""The buffer of one iteration: packed micro-batches of this rank, made when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from medvlt.data.batches import RolloutBatch
from medvlt.data.encoder import PromptEncoder
from medvlt.data.packing import EncodedPrompt, Group, pack
from medvlt.errors import MissingRolloutError
from medvlt.losses.reduce import LossReduction, completion_weights
from medvlt.rollout.iteration import Iteration
from medvlt.rollout.updates import UpdatePlan, plan_updates

NO_ROLLOUTS = (
    "there are no rollouts to train on: add callbacks.RolloutCallback or callbacks.VLLMRolloutCallback to "
    "trainer.callbacks (in YAML: `- class_path: VLLMRolloutCallback`)"
)
"""What to tell a user whose run has no callback that samples."""


@dataclass(frozen=True)
class Share:
    """Which part of every optimizer step is this rank's.

    Attributes:
        ranks: Number of ranks.
        rank: This one.
        micro_batches: Micro-batches of a step on each rank.
    """

    ranks: int = 1
    rank: int = 0
    micro_batches: int = 1


class RolloutBuffer(Dataset[RolloutBatch]):
    """Micro-batches of this rank, indexed by (epoch, number); the length is known before there are any rollouts.

    Args:
        encoder: Turns questions into prompts; each is encoded once per iteration and kept until it was trained on.
        steps: Optimizer steps of an iteration.
        share: This rank's part of a step.
        reduction: How the token losses of a step become one number.
    """

    def __init__(self, encoder: PromptEncoder, *, steps: int, share: Share, reduction: LossReduction) -> None:
        self.encoder, self.steps, self.share, self.reduction = encoder, steps, share, reduction
        self.iteration: Iteration | None = None
        self._plan: UpdatePlan | None = None
        self._lengths: list[list[int]] = []  # of `trained_lengths`, for the whole iteration
        self._prompts: dict[int, EncodedPrompt] = {}

    def fill(self, iteration: Iteration) -> None:
        """Takes an iteration whose advantages are known and plans its optimizer steps."""
        self.iteration = iteration
        self._lengths = trained_lengths(iteration)
        self._plan = plan(
            iteration,
            steps=self.steps,
            micro_batches=self.share.ranks * self.share.micro_batches,
            balanced=self.reduction != "micro_batch",
        )
        self._prompts = {}

    def add_logprobs(self, *, old: Mapping[int, Tensor] | None = None, ref: Mapping[int, Tensor] | None = None) -> None:
        """Adds log-probabilities of the completions, by group number; those given replace earlier ones."""
        iteration, _ = self._filled()
        self.iteration = iteration.updated(
            old_logprobs=iteration.old_logprobs if old is None else old,
            ref_logprobs=iteration.ref_logprobs if ref is None else ref,
        )

    def __len__(self) -> int:
        return self.steps * self.share.micro_batches

    def __getitem__(self, key: tuple[int, int]) -> RolloutBatch:
        _, number = key
        batch = self.micro_batch(number)
        for group in self.members(number)[1]:
            self._prompts.pop(group, None)  # training is the last to need it, and pictures take memory
        return batch

    def micro_batch(self, number: int) -> RolloutBatch:
        """Returns a micro-batch and keeps its encoded prompts for the next time.

        Args:
            number: In [0, len(self)).

        Raises:
            MissingRolloutError: If the buffer is not filled.
        """
        iteration, plan = self._filled()
        step, members = self.members(number)
        if not members:
            return self._stand_in(iteration)
        lengths = self._lengths
        flat = [length for group in members for length in lengths[group] if length]
        weights = iter(
            completion_weights(
                flat, plan.totals[step], reduction=self.reduction, max_tokens=iteration.sampling.max_tokens
            )
        )
        return self._pack(iteration, members, [[next(weights) if n else 0.0 for n in lengths[g]] for g in members])

    def members(self, number: int) -> tuple[int, tuple[int, ...]]:
        """Returns the step of a micro-batch and the numbers of its groups; none if it only stands in."""
        _, plan = self._filled()
        step, position = divmod(number, self.share.micro_batches)
        return step, plan.micro_batches[step][self.share.rank * self.share.micro_batches + position]

    def _filled(self) -> tuple[Iteration, UpdatePlan]:
        if self.iteration is None or self._plan is None:
            raise MissingRolloutError(NO_ROLLOUTS)
        return self.iteration, self._plan

    def _stand_in(self, iteration: Iteration) -> RolloutBatch:
        """A small group of weight zero; an empty micro-batch runs too, as every rank takes part in every exchange."""
        sizes = {number: size for number, size in enumerate(group_sizes(iteration)) if any(iteration.lengths[number])}
        smallest = min(sizes, key=lambda number: sizes[number])
        # it may be a group that no update uses, of which the log-probabilities below were not computed
        bare = iteration.updated(old_logprobs=None, ref_logprobs=None)
        return self._pack(bare, [smallest], [[0.0] * len(iteration.lengths[smallest])])

    def _pack(self, iteration: Iteration, chosen: Sequence[int], weights: Sequence[Sequence[float]]) -> RolloutBatch:
        assert iteration.advantages is not None
        groups = [iteration.groups[number] for number in chosen]
        packed = pack(
            [
                Group(
                    self._prompt(number),
                    [torch.tensor(c.token_ids) for c in group.group.completions],
                    row,
                    group.group.sample.uid,
                )
                for number, group, row in zip(chosen, groups, weights, strict=True)
            ]
        )
        advantages = torch.cat([iteration.advantages[number] for number in chosen])
        sampler = [x for group in groups for c in group.group.completions for x in c.sampler_logprobs]
        old, ref = iteration.old_logprobs, iteration.ref_logprobs
        return RolloutBatch(
            packed,
            advantages.repeat_interleave(packed.completion_lengths).float(),
            torch.tensor(sampler),
            None if old is None else torch.cat([old[number] for number in chosen]),
            None if ref is None else torch.cat([ref[number] for number in chosen]),
        )

    def _prompt(self, number: int) -> EncodedPrompt:
        iteration, _ = self._filled()
        if number not in self._prompts:
            self._prompts[number] = self.encoder.encode(iteration.groups[number].group.sample)
        return self._prompts[number]


def plan(iteration: Iteration, *, steps: int, micro_batches: int, balanced: bool) -> UpdatePlan:
    """Plans the optimizer steps of an iteration over all ranks; see `plan_updates`."""
    assert iteration.used is not None
    counted = [
        [kept for kept, length in zip(row, lengths, strict=True) if length]  # refused prompts count nowhere
        for row, lengths in zip(trained_lengths(iteration), iteration.lengths, strict=True)
    ]
    return plan_updates(
        group_sizes(iteration),
        counted,
        iteration.used.tolist(),
        steps=steps,
        micro_batches=micro_batches,
        balanced=balanced,
    )


def trained_lengths(iteration: Iteration) -> list[list[int]]:
    """Returns the tokens of every completion that take part in the loss: 0 where it is masked."""
    assert iteration.masked is not None
    return [
        [0 if masked else length for length, masked in zip(lengths, row, strict=True)]
        for lengths, row in zip(iteration.lengths, iteration.masked.tolist(), strict=True)
    ]


def group_sizes(iteration: Iteration) -> list[int]:
    """Returns the tokens of every group, prompt included."""
    return [
        len(group.group.prompt_token_ids) + sum(lengths)
        for group, lengths in zip(iteration.groups, iteration.lengths, strict=True)
    ]
