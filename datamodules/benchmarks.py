# SPDX-License-Identifier: Apache-2.0
"""Questions to be answered: one loader per benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from medvlt.data.batches import PromptBatch
from medvlt.data.controls import Control, controlled
from medvlt.data.encoder import PromptEncoder
from medvlt.data.samples import SampleSet
from medvlt.data.sources import Source
from medvlt.errors import ConfigurationError, DataError
from medvlt.types import ImageSource, Sample


class BenchmarkDataModule(LightningDataModule):
    """Benchmarks, each its own loader; for `validate`, `test` and `predict`.

    Every question is asked exactly once, whatever the number of ranks: nothing is repeated to fill a batch, nothing
    is dropped. All ranks get the same number of batches, as they sample together; a rank without a question gets a
    batch without one. Batches hold samples, not tensors; `callbacks.RolloutCallback` attaches completions.

    Args:
        encoder: How a question becomes a prompt.
        benchmarks: Name to source; the names head the metrics. May be empty where a subclass has other data.
        batch_size: Questions handed to the engine at a time, per rank.
        control: A change made to every question (`medvlt.data.controls`), such as taking its pictures away; uids stay,
            so that the answers can be compared question by question with those of a run without it.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        benchmarks: dict[str, Source] | None = None,
        batch_size: int = 128,
        control: Control | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigurationError(f"batch_size must be at least 1 question, got {batch_size}")
        for name in benchmarks or {}:
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
                raise ConfigurationError(
                    f"data.benchmarks: the name {name!r} heads the metrics; it may hold letters, digits, '_', '-', '.'"
                )
        if control is not None and not is_dataclass(control):
            raise ConfigurationError(
                f"data.control: {type(control).__name__} is no dataclass, so its settings could not be noted, and "
                "completions of other settings would be taken for its own; put @dataclass(frozen=True) above the class"
            )
        self.encoder = encoder
        self.benchmark_sources = dict(benchmarks or {})
        self.batch_size = batch_size
        self.control = control
        self._benchmarks: dict[str, SampleSet] = {}
        self._before_control: dict[str, tuple[SampleSet, dict[str, int]]] = {}

    @property
    def benchmark_names(self) -> tuple[str, ...]:
        """Names in the order of the loaders, the same on every rank."""
        return tuple(self.benchmark_sources)

    def setup(self, stage: str) -> None:
        """Reads the benchmarks.

        Raises:
            ConfigurationError: If `validate`, `test` or `predict` has nothing to ask.
            DataError: If a uid cannot be written down.
        """
        if stage != "fit" and not self.benchmark_sources:
            raise ConfigurationError(f"`{stage}` has no questions: name at least one source under data.benchmarks")
        for name, source in self.benchmark_sources.items():
            if name not in self._benchmarks:
                self._benchmarks[name] = found = source.load()
                check_uids(name, found.uids)
                if self.control is not None:
                    self._benchmarks[name] = controlled(found, self.control)
                    self._before_control[name] = found, {uid: place for place, uid in enumerate(found.uids)}

    @property
    def benchmark_sets(self) -> dict[str, SampleSet]:
        """Questions of each benchmark as they are asked; known after `setup`."""
        return {name: self._benchmarks[name] for name in self.benchmark_names}

    @property
    def benchmark_sizes(self) -> dict[str, int]:
        """Number of questions of each benchmark; known after `setup`."""
        return {name: len(samples) for name, samples in self._benchmarks.items()}

    def pictures_before_control(self, benchmark: str, uid: str) -> tuple[ImageSource, ...]:
        """Returns the pictures of a question as they were before the control, which must be set."""
        samples, places = self._before_control[benchmark]
        return samples[places[uid]].images

    @property
    def control_settings(self) -> dict[str, Any] | None:
        """Name and settings of the control; None without one."""
        if self.control is None:
            return None
        return {"name": self.control.name, **asdict(self.control)}

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


def check_uids(name: str, uids: Sequence[str]) -> None:
    """Raises DataError if the uid of a question of this benchmark is no text that UTF-8 can hold."""
    for uid in uids:
        try:
            uid.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"data.benchmarks.{name}: the uid {uid!a} has half of a surrogate pair, which no file can hold; rename "
                "the data set or the record (dataset_name, dataset_index)"
            ) from error


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
