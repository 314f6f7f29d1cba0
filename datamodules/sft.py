# SPDX-License-Identifier: Apache-2.0
"""Reasoning to learn from: optimizer steps planned ahead, cut into packed micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset

from datamodules.benchmarks import BenchmarkDataModule
from datamodules.loader import ResumableLoader
from datamodules.record import data_record
from medvlt.data.encoder import PromptEncoder
from medvlt.data.options import shuffle_options
from medvlt.data.packing import Group, PackedBatch, pack
from medvlt.data.sources import Source
from medvlt.data.steps import StepPlan, measure
from medvlt.errors import ConfigurationError
from medvlt.losses.reduce import LossReduction, completion_weights
from medvlt.types import Sample


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

    def record(self) -> dict[str, Any]:
        """Returns what checkpoints say about the training data; complete after `setup("fit")`."""
        plan = self._plan
        if plan is None:
            return data_record(self, self.train, samples=0, fingerprint="")
        return data_record(self, self.train, samples=len(plan.indices), fingerprint=plan.fingerprint)

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
        samples = [self._sample(position, epoch) for position in chosen]
        targets = [self.encoder.encode_target(sample) for sample in samples]
        weights = completion_weights(
            [len(target) for target in targets], totals, reduction=self.reduction, max_tokens=self.max_length
        )
        return pack(
            [
                Group(self.encoder.encode(sample), [target], [weight if members else 0.0], sample.uid)
                for sample, target, weight in zip(samples, targets, weights, strict=True)
            ]
        )

    def _sample(self, position: int, epoch: int) -> Sample:
        sample = self.samples[self.plan.indices[position]]
        return sample if self.shuffle_seed is None else shuffle_options(sample, self.shuffle_seed + epoch)
