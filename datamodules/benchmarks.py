# SPDX-License-Identifier: Apache-2.0
"""Questions to be answered: one loader per benchmark."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler

from medvlt.data.batches import PromptBatch
from medvlt.data.encoder import PromptEncoder
from medvlt.data.sources import Source
from medvlt.errors import ConfigurationError
from medvlt.types import Sample


class BenchmarkDataModule(LightningDataModule):
    """Benchmarks, each its own loader; for `validate`, `test` and `predict`.

    Every question is asked exactly once, whatever the number of ranks: nothing is repeated to fill a batch, nothing
    is dropped. Batches hold samples, not tensors; `callbacks.RolloutCallback` attaches completions.

    Args:
        encoder: How a question becomes a prompt.
        benchmarks: Name to source; the names head the metrics. May be empty where a subclass has other data.
        batch_size: Questions handed to the engine at a time, per rank.
    """

    def __init__(
        self, encoder: PromptEncoder, benchmarks: dict[str, Source] | None = None, batch_size: int = 128
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigurationError(f"batch_size must be at least 1 question, got {batch_size}")
        for name in benchmarks or {}:
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
                raise ConfigurationError(
                    f"data.benchmarks: the name {name!r} heads the metrics; it may hold letters, digits, '_', '-', '.'"
                )
        # a rank may get no question of a small benchmark; it takes part in the reduction all the same
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.encoder = encoder
        self.benchmark_sources = dict(benchmarks or {})
        self.batch_size = batch_size
        self._benchmarks: dict[str, Sequence[Sample]] = {}

    @property
    def benchmark_names(self) -> tuple[str, ...]:
        """Names in the order of the loaders, the same on every rank."""
        return tuple(self.benchmark_sources)

    def setup(self, stage: str) -> None:
        """Reads the benchmarks.

        Raises:
            ConfigurationError: If `validate`, `test` or `predict` has nothing to ask, or some rank has.
        """
        if stage != "fit" and not self.benchmark_sources:
            raise ConfigurationError(f"`{stage}` has no questions: name at least one source under data.benchmarks")
        for name, source in self.benchmark_sources.items():
            if name not in self._benchmarks:
                self._benchmarks[name] = source.load()
        ranks = self.trainer.world_size if self.trainer else 1
        if self._benchmarks and max(map(len, self._benchmarks.values())) < ranks:
            raise ConfigurationError(
                f"no benchmark has a question for each of the {ranks} ranks; a rank without any would leave the others "
                "waiting: evaluate with fewer devices"
            )

    @property
    def benchmark_sizes(self) -> dict[str, int]:
        """Questions of each benchmark; known after `setup`."""
        return {name: len(samples) for name, samples in self._benchmarks.items()}

    def val_dataloader(self) -> list[DataLoader[PromptBatch]]:
        """One loader per benchmark."""
        return [self._loader(name) for name in self.benchmark_names]

    def test_dataloader(self) -> list[DataLoader[PromptBatch]]:
        """One loader per benchmark."""
        return self.val_dataloader()

    def predict_dataloader(self) -> list[DataLoader[PromptBatch]]:
        """One loader per benchmark."""
        return self.val_dataloader()

    def _loader(self, name: str) -> DataLoader[PromptBatch]:
        trainer = self.trainer
        ranks, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        samples = self._benchmarks[name]
        collate: Callable[[list[Sample]], PromptBatch] = partial(_prompt_batch, name)
        return DataLoader(
            samples,  # type: ignore[arg-type]  # a sequence is all that a DataLoader needs of a Dataset
            batch_size=self.batch_size,
            sampler=EachOnceSampler(samples, ranks, rank, self.batch_size),
            collate_fn=collate,
        )


class EachOnceSampler(DistributedSampler[Sample]):
    """Blocks of neighbouring questions, dealt out to the ranks in turn: over all ranks each question once.

    A block is a batch, so that batches are the same for any number of ranks: what is decoded together decides how an
    engine rounds. Where there is less than a batch for each rank, every rank gets one block, as even as can be.

    It is a DistributedSampler only so that Lightning leaves it in place.

    Args:
        samples: The questions.
        ranks: Number of ranks.
        rank: This one.
        batch_size: Questions in a batch.
    """

    def __init__(self, samples: Sequence[Sample], ranks: int, rank: int, batch_size: int) -> None:
        super().__init__(samples, num_replicas=ranks, rank=rank, shuffle=False)  # type: ignore[arg-type]
        count = len(samples)
        if count <= ranks * batch_size:
            self.blocks = [range(rank * count // ranks, (rank + 1) * count // ranks)]
        else:
            starts = range(rank * batch_size, count, ranks * batch_size)
            self.blocks = [range(start, min(start + batch_size, count)) for start in starts]

    def __iter__(self):  # type: ignore[no-untyped-def] # noqa: ANN204
        return chain.from_iterable(self.blocks)

    def __len__(self) -> int:
        return sum(map(len, self.blocks))


def _prompt_batch(name: str, samples: list[Sample]) -> PromptBatch:
    return PromptBatch(name, samples)
