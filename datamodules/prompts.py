# SPDX-License-Identifier: Apache-2.0
"""Prompts for RL: a cursor over them, and the buffer that holds one iteration of rollouts."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from datamodules.benchmarks import BenchmarkDataModule
from datamodules.loader import ResumableLoader
from datamodules.record import data_record
from medvlt.data.batches import RolloutBatch
from medvlt.data.encoder import PromptEncoder
from medvlt.data.sources import Source
from medvlt.data.steps import measure
from medvlt.errors import ConfigurationError
from medvlt.losses.reduce import LossReduction
from medvlt.rollout.buffer import RolloutBuffer, Share
from medvlt.rollout.iteration import Iteration
from medvlt.types import Sample


class PromptDataModule(BenchmarkDataModule):
    """Questions to be answered and learned from, for `fit` with GRPO, and benchmarks for its validation.

    One Trainer epoch is one rollout iteration: `callbacks.RolloutCallback` takes the next prompts and hands over their
    scored completions, `lightning_modules.GRPOModule` forms advantages and fills the buffer, and the loader yields the
    iteration as `updates_per_iteration` optimizer steps of `accumulate_grad_batches` packed micro-batches per rank.

    Prompts and completions of an iteration do not depend on the number of ranks. A pass goes over all prompts in an
    order of its own; a rest too small for an iteration is left out, as in the reference. The state is the cursor and
    the iteration in progress, so training goes on exactly where a checkpoint was made.

    Questions without a right option, with prompts longer than `max_prompt_tokens`, or that cannot be encoded are set
    aside when the data are read, counted and logged; nothing is truncated.

    Args:
        train: Questions with their right answers.
        encoder: How a question becomes a prompt.
        benchmarks: Questions to answer in validation; none means no validation.
        prompts_per_iteration: B, prompts of one iteration over all ranks; the reference has 256.
        updates_per_iteration: Optimizer steps that use the completions of one iteration, each its own share of them;
            the reference has 2.
        max_prompt_tokens: Longest prompt, visual tokens included; the reference has 2,048.
        loss_reduction: How the token losses of a step become one number.
        shuffle: Give each pass a random order; without it every pass goes through the source in its own order.
        seed: Of the order.
        batch_size: Questions handed to the engine at a time in validation.

    Raises:
        ConfigurationError: At setup, if an iteration has more prompts than there are, or fewer than its micro-batches.
        DataError: At setup, if no question is left.
    """

    def __init__(
        self,
        train: Source,
        encoder: PromptEncoder,
        benchmarks: dict[str, Source] | None = None,
        prompts_per_iteration: int = 256,
        updates_per_iteration: int = 1,
        max_prompt_tokens: int = 2048,
        loss_reduction: LossReduction = "token",
        shuffle: bool = True,
        seed: int = 42,
        batch_size: int = 128,
    ) -> None:
        super().__init__(encoder, benchmarks, batch_size)
        if not 1 <= updates_per_iteration <= prompts_per_iteration:
            raise ConfigurationError(
                f"updates_per_iteration={updates_per_iteration} must be at least 1 and at most "
                f"prompts_per_iteration={prompts_per_iteration}: every optimizer step has prompts of its own"
            )
        self.train = train
        self.prompts_per_iteration = prompts_per_iteration
        self.updates_per_iteration = updates_per_iteration
        self.max_prompt_tokens = max_prompt_tokens
        self.loss_reduction = loss_reduction
        self.shuffle = shuffle
        self.seed = seed
        self.accumulate_grad_batches: int | None = None  # as it was when the steps were planned
        self.rollouts: Iteration | None = None  # of the present iteration, before advantages are formed
        self.longest_prompt_tokens = 0
        """Longest usable prompt; known after `setup("fit")`."""
        self.cursor = 0
        """Prompts passed over by finished rollouts, over all passes; `commit` moves it."""
        self._ahead = 0  # the same while an iteration is sampled
        self._samples: Sequence[Sample] = ()
        self._indices: tuple[int, ...] = ()
        self._buffer: RolloutBuffer | None = None
        self._pass_order: tuple[int, list[int]] = (-1, [])

    @property
    def optimizer_steps_per_epoch(self) -> int:
        """Optimizer steps of one iteration."""
        return self.updates_per_iteration

    @property
    def buffer(self) -> RolloutBuffer:
        """The micro-batches of the present iteration; known after `setup("fit")`."""
        if self._buffer is None:
            raise ConfigurationError('the rollout buffer exists only after setup("fit")')
        return self._buffer

    @property
    def train_samples(self) -> Sequence[Sample]:
        """The usable questions in the order of the source; known after `setup("fit")`."""
        return UsableSamples(self._samples, self._indices)

    def setup(self, stage: str) -> None:
        """Reads the questions and sets aside those that cannot be used."""
        super().setup(stage)
        if stage != "fit" or self._buffer is not None:
            return
        trainer = self.trainer
        ranks, rank, accumulate = (
            (trainer.world_size, trainer.global_rank, trainer.accumulate_grad_batches) if trainer else (1, 0, 1)
        )
        if ranks * accumulate * self.updates_per_iteration > self.prompts_per_iteration:
            raise ConfigurationError(
                f"an iteration has {self.prompts_per_iteration} prompts (data.prompts_per_iteration) and must fill "
                f"{self.updates_per_iteration} optimizer steps (data.updates_per_iteration) x {ranks} ranks x "
                f"{accumulate} micro-batches (trainer.accumulate_grad_batches); lower one of these"
            )
        samples = self.train.load()
        usable = measure(
            samples,
            self.encoder,
            max_length=self.max_prompt_tokens,
            setting="max_prompt_tokens",
            with_target=False,
            quiet=rank > 0,
        )
        if len(usable) < self.prompts_per_iteration:
            raise ConfigurationError(
                f"data.train has {len(usable)} usable questions and an iteration takes {self.prompts_per_iteration} "
                "different ones; lower data.prompts_per_iteration or give more questions"
            )
        self.accumulate_grad_batches = accumulate
        self.longest_prompt_tokens = max(prompt for prompt, _ in usable.values())
        self._samples, self._indices = samples, tuple(usable)
        self._buffer = RolloutBuffer(
            self.encoder,
            steps=self.updates_per_iteration,
            share=Share(ranks, rank, accumulate),
            reduction=self.loss_reduction,
        )

    def take_prompts(self, count: int, *, excluding: Collection[int] = ()) -> list[tuple[int, Sample]]:
        """Returns the next prompts with their positions in the data.

        The same on every rank. If the present pass has fewer left, the next one begins. An iteration begins at the
        cursor, which stays where it is until `commit`: what fails on the way is sampled again.

        Args:
            count: How many, all different.
            excluding: Positions that the iteration already has, which are passed over; none begins an iteration.

        Raises:
            ConfigurationError: If there are not `count` others.
        """
        size, seen = len(self._indices), set(excluding)
        if count > size - len(seen):
            raise ConfigurationError(
                f"the iteration asks for {count} prompts besides {len(seen)} it already has, and there are {size}; "
                "lower data.prompts_per_iteration or the callback's resampling_rounds"
            )
        if not seen:
            self._ahead = self.cursor
            if count > size - self._ahead % size:
                self._ahead += -self._ahead % size
        taken: list[tuple[int, Sample]] = []
        while len(taken) < count:
            number, offset = divmod(self._ahead, size)
            index = self._indices[self._order(number)[offset]]
            self._ahead += 1
            if index not in seen:
                seen.add(index)
                taken.append((index, self._samples[index]))
        return taken

    def commit(self) -> None:
        """Moves the cursor past the prompts of the iteration, whose rollouts are complete and in the buffer."""
        self.cursor = self._ahead

    def train_dataloader(self) -> DataLoader[RolloutBatch]:
        """A loader over the buffer that can be resumed at any micro-batch."""
        trainer = self.trainer
        return ResumableLoader(
            self.buffer,
            # on resume Lightning asks for the iterator before it sets the epoch
            epoch=cast(Any, trainer.fit_loop.epoch_progress.current).processed if trainer else 0,
            seed=self.seed,
            num_workers=0,  # worker processes would hold an old buffer
            per_step=self.accumulate_grad_batches or 1,
            fingerprint=f"{self._fingerprint}/{self.updates_per_iteration}",  # which groups make which step
        )

    def record(self) -> dict[str, Any]:
        """Returns what checkpoints say about the training data; complete after `setup("fit")`."""
        return data_record(
            self, self.train, samples=len(self._indices), fingerprint=self._fingerprint if self._indices else ""
        )

    def sample_at(self, index: int, uid: str) -> Sample:
        """Returns the question at a position of the data.

        Raises:
            ConfigurationError: If it is another question than `uid`.
        """
        sample = self._samples[index]
        if sample.uid != uid:
            raise ConfigurationError(
                f"question {index} of data.train is {sample.uid!r}, the rollouts of the checkpoint are of {uid!r}; "
                "resume with the data of the checkpoint"
            )
        return sample

    def state_dict(self) -> dict[str, Any]:
        """Returns the cursor and the iteration in progress; the same on every rank."""
        iteration = None if self._buffer is None else self._buffer.iteration
        return {
            "cursor": self.cursor,
            "fingerprint": self._fingerprint,
            "iteration": None if iteration is None else iteration.to_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken; called after `setup`.

        Raises:
            ConfigurationError: If the data or their order are others.
        """
        if self._buffer is None:  # validation of a checkpoint: Lightning restores this state there too
            return
        if state_dict["fingerprint"] != self._fingerprint:
            raise ConfigurationError(
                "the checkpoint is of other training prompts or another order of them (source, encoder, "
                "max_prompt_tokens, shuffle or seed differ), so its place in them means nothing here; resume with the "
                "settings of the checkpoint, or start a new run from its weights"
            )
        self.cursor = self._ahead = state_dict["cursor"]
        if state_dict["iteration"] is not None:
            self.buffer.fill(Iteration.from_state(state_dict["iteration"], self.sample_at))

    @property
    def _fingerprint(self) -> str:
        uids = [self._samples[index].uid for index in self._indices[:100]]
        parts = (self._indices, uids, self.shuffle, self.seed)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def _order(self, number: int) -> list[int]:
        if self._pass_order[0] != number:
            order = list(range(len(self._indices)))
            if self.shuffle:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
                order = torch.randperm(len(order), generator=generator).tolist()
            self._pass_order = (number, order)
        return self._pass_order[1]


class UsableSamples(Sequence[Sample]):
    """The questions at some positions, made when they are asked for."""

    def __init__(self, samples: Sequence[Sample], indices: Sequence[int]) -> None:
        self.samples, self.indices = samples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Sample:  # type: ignore[override]  # no slices
        return self.samples[self.indices[number]]
