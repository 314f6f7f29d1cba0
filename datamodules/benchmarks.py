# SPDX-License-Identifier: Apache-2.0
"""Questions to be answered: one loader per benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from medvlt.data.batches import PromptBatch
from medvlt.data.encoder import PromptEncoder
from medvlt.data.sources import Source
from medvlt.errors import ConfigurationError
from medvlt.types import Sample


class BenchmarkDataModule(LightningDataModule):
    """Benchmarks, each its own loader; for `validate`, `test` and `predict`.

    Every question is asked exactly once, whatever the number of ranks: nothing is repeated to fill a batch, nothing
    is dropped. All ranks get the same number of batches, as they sample together; a rank without a question gets a
    batch without one. Batches hold samples, not tensors; `callbacks.RolloutCallback` attaches completions.

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
            ConfigurationError: If `validate`, `test` or `predict` has nothing to ask.
        """
        if stage != "fit" and not self.benchmark_sources:
            raise ConfigurationError(f"`{stage}` has no questions: name at least one source under data.benchmarks")
        for name, source in self.benchmark_sources.items():
            if name not in self._benchmarks:
                self._benchmarks[name] = source.load()

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
        blocks = QuestionBlocks(name, self._benchmarks[name])
        sampler = EachOnceSampler(blocks.questions, ranks, rank, self.batch_size)
        return DataLoader(blocks, batch_size=None, sampler=sampler)


class QuestionBlocks(Dataset[PromptBatch]):
    """The questions of a benchmark, read by the block: the item for a range of positions is a batch.

    A plain DataLoader cannot make a batch without a sample.

    Args:
        name: Of the benchmark.
        questions: All of them, as every rank has them.
    """

    def __init__(self, name: str, questions: Sequence[Sample]) -> None:
        self.name = name
        self.questions = questions

    def __getitem__(self, block: range) -> PromptBatch:
        return PromptBatch(self.name, [self.questions[position] for position in block])


class EachOnceSampler(DistributedSampler[range]):
    """Blocks of neighbouring questions, dealt out to the ranks in turn: over all ranks each question once.

    A block is a batch, so that batches are the same for any number of ranks: what is decoded together decides how an
    engine rounds. Where there is less than a batch for each rank, every rank gets one block, as even as can be.
    Every rank gets the same number of blocks, the last of which may be empty.

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
        if 0 < count <= ranks * batch_size:
            self.blocks = [range(rank * count // ranks, (rank + 1) * count // ranks)]
        else:
            rounds = range(0, count, ranks * batch_size)
            starts = [min(first + rank * batch_size, count) for first in rounds]
            self.blocks = [range(start, min(start + batch_size, count)) for start in starts]

    def __iter__(self) -> Iterator[range]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)
