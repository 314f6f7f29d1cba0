# SPDX-License-Identifier: Apache-2.0
"""Reasoning to learn from: optimizer steps planned ahead, cut into packed micro-batches."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from datamodules.benchmarks import BenchmarkDataModule
from datamodules.loader import ResumableLoader
from medvlt.data.encoder import PromptEncoder
from medvlt.data.options import shuffle_options
from medvlt.data.packing import Group, PackedBatch, balance, pack
from medvlt.data.sources import Source
from medvlt.errors import ConfigurationError, DataError
from medvlt.losses.reduce import LossReduction, StepTotals, completion_weights
from medvlt.types import Sample

logger = logging.getLogger(__name__)


class SFTDataModule(BenchmarkDataModule):
    """Questions with reasoning, for `fit`, and benchmarks for its validation.

    An optimizer step is planned as a whole: `global_batch_size` samples of the epoch's shuffled order are spread over
    ranks x `accumulate_grad_batches` micro-batches balanced by tokens, and each item of the loader is one of them.
    The samples of a step are the same whatever the number of ranks and micro-batches. The last step of an epoch may
    have fewer samples, as in the reference; all its micro-batches still exist.

    Samples without reasoning (unless the template has a form for them), longer than `max_length`, or that cannot be
    encoded are set aside when the data are read, counted
    and logged; nothing is truncated.

    Args:
        train: Samples with reasoning.
        encoder: How a question becomes a prompt and its answer a target.
        benchmarks: Questions to answer in validation; none means no validation.
        global_batch_size: Samples of one optimizer step over all ranks; the reference has 16.
        max_length: Longest prompt and target together, in tokens, visual tokens included.
        loss_reduction: How the token losses of a step become one number.
        shuffle_options: Reorder the options of every question anew in every epoch; the label follows.
        seed: Of the order and of the option shuffling.
        num_workers: Processes that encode micro-batches ahead of the training loop.
        batch_size: Questions handed to the engine at a time in validation.

    Raises:
        ConfigurationError: At setup, if a step has fewer samples than micro-batches.
        DataError: At setup, if no sample is left.
    """

    def __init__(
        self,
        train: Source,
        encoder: PromptEncoder,
        benchmarks: dict[str, Source] | None = None,
        global_batch_size: int = 16,
        max_length: int = 32_768,
        loss_reduction: LossReduction = "token",
        shuffle_options: bool = False,
        seed: int = 42,
        num_workers: int = 0,
        batch_size: int = 128,
    ) -> None:
        super().__init__(encoder, benchmarks, batch_size)
        self.train = train
        self.global_batch_size = global_batch_size
        self.max_length = max_length
        self.loss_reduction = loss_reduction
        self.shuffle_options = shuffle_options
        self.seed = seed
        self.num_workers = num_workers
        self.accumulate_grad_batches: int | None = None  # as it was when the steps were planned
        self._plan: StepPlan | None = None

    @property
    def optimizer_steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the data; known after `setup("fit")`."""
        if self._plan is None:
            raise ConfigurationError('the number of steps is known only after setup("fit")')
        return self._plan.steps

    def setup(self, stage: str) -> None:
        """Reads the data, measures every sample and plans the steps."""
        super().setup(stage)
        if stage != "fit" or self._plan is not None:
            return
        trainer = self.trainer
        ranks, accumulate = (trainer.world_size, trainer.accumulate_grad_batches) if trainer else (1, 1)
        if ranks * accumulate > self.global_batch_size:
            raise ConfigurationError(
                f"an optimizer step has {self.global_batch_size} samples (data.global_batch_size) and must fill "
                f"{ranks} ranks x {accumulate} micro-batches (trainer.accumulate_grad_batches); lower "
                "accumulate_grad_batches or raise global_batch_size"
            )
        self.accumulate_grad_batches = accumulate
        samples = self.train.load()
        quiet = trainer is not None and trainer.global_rank > 0
        lengths = measure(samples, self.encoder, max_length=self.max_length, quiet=quiet)
        self._plan = StepPlan(
            indices=tuple(lengths),
            prompt_tokens=tuple(prompt for prompt, _ in lengths.values()),
            target_tokens=tuple(target for _, target in lengths.values()),
            global_batch_size=self.global_batch_size,
            micro_batches=ranks * accumulate,
            seed=self.seed,
        )
        self._samples = samples

    def train_dataloader(self) -> DataLoader[PackedBatch]:
        """A loader of packed micro-batches that can be resumed at any of them."""
        if self._plan is None:
            raise ConfigurationError('train_dataloader() needs setup("fit") first')
        trainer = self.trainer
        ranks, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        dataset = MicroBatches(
            self._samples, self._plan, self.encoder, self.loss_reduction, self.max_length, ranks, rank,
            self.seed if self.shuffle_options else None,
        )  # fmt: skip
        # on resume Lightning asks for the iterator before it sets the epoch
        epoch = cast(Any, trainer.fit_loop.epoch_progress.current).processed if trainer else 0
        return ResumableLoader(
            dataset,
            epoch=epoch,
            seed=self.seed,
            num_workers=self.num_workers,
            per_step=dataset.per_step,
            fingerprint=self._plan.fingerprint,
        )


def measure(
    samples: Sequence[Sample], encoder: PromptEncoder, *, max_length: int, quiet: bool = False
) -> dict[int, tuple[int, int]]:
    """Returns index -> (prompt tokens, target tokens) of the samples that can be trained on.

    What is left out is logged: each with its reason at level INFO, the counts as one warning.

    Args:
        samples: What the source gave.
        encoder: How they become prompts and targets.
        max_length: Longest prompt and target together, in tokens.
        quiet: No progress bar and no warning; for all ranks but one.

    Raises:
        DataError: If none is left.
    """
    lengths: dict[int, tuple[int, int]] = {}
    refused: Counter[str] = Counter()
    first: dict[str, str] = {}
    hidden = quiet or len(samples) < 2000  # a progress bar only where there is something to wait for
    for index in track(range(len(samples)), description="measuring samples", disable=hidden, transient=True):
        sample = samples[index]
        try:
            encoder.check_text(sample)
            prompt, target = encoder.prompt_length(sample), len(encoder.encode_target(sample))
        except DataError as error:
            reason, detail = "cannot be encoded", str(error)
        else:
            if prompt + target <= max_length:
                lengths[index] = prompt, target
                continue
            reason = f"longer than max_length={max_length}"
            detail = f"question {sample.uid} has {prompt + target} tokens"
        refused[reason] += 1
        first.setdefault(reason, detail)
        logger.info("left out: %s (%s)", detail, reason)
    summary = "; ".join(f"{count} {reason}, the first: {first[reason]}" for reason, count in refused.most_common())
    if not lengths:
        raise DataError(f"no training sample is left of {len(samples)}: {summary}. Raise max_length, or mend these")
    if refused and not quiet:
        logger.warning("%d of %d training samples are left out: %s", refused.total(), len(samples), summary)
    return lengths


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


class MicroBatches(Dataset[PackedBatch]):
    """Encodes and packs one micro-batch of this rank; the key is (epoch, number in the epoch)."""

    def __init__(
        self,
        samples: Sequence[Sample],
        plan: StepPlan,
        encoder: PromptEncoder,
        reduction: LossReduction,
        max_length: int,
        ranks: int,
        rank: int,
        shuffle_seed: int | None,
    ) -> None:
        self.samples, self.plan, self.encoder = samples, plan, encoder
        self.reduction, self.max_length, self.shuffle_seed = reduction, max_length, shuffle_seed
        self.rank, self.per_step = rank, plan.micro_batches // ranks
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.plan.steps * self.per_step

    def __getitem__(self, key: tuple[int, int]) -> PackedBatch:
        epoch, number = key
        if self._order[0] != epoch:
            self._order = (epoch, self.plan.order(epoch))
        step, micro_batch = divmod(number, self.per_step)
        bins, totals = self.plan.step(self._order[1], step)
        members = bins[self.rank * self.per_step + micro_batch]
        # an empty micro-batch still has to run, as every rank takes part in every exchange: some sample, weight zero
        chosen = members or bins[0][:1]
        targets = [self._encode(index, epoch) for index in chosen]
        weights = completion_weights(
            [len(target) for _, _, target in targets], totals, reduction=self.reduction, max_tokens=self.max_length
        )
        return pack(
            [
                Group(self.encoder.encode(sample), [target], [weight if members else 0.0], uid)
                for (sample, uid, target), weight in zip(targets, weights, strict=True)
            ]
        )

    def _encode(self, position: int, epoch: int) -> tuple[Sample, str, torch.Tensor]:
        sample = self.samples[self.plan.indices[position]]
        if self.shuffle_seed is not None:
            sample = shuffle_options(sample, self.shuffle_seed + epoch)
        return sample, sample.uid, self.encoder.encode_target(sample)
