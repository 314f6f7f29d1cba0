# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import BenchmarkDataModule
from datamodules.benchmarks import EachOnceSampler
from medvlt.data.controls import Control
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.data.samples import SampleSet, Source
from medvlt.errors import ConfigurationError, DataError
from medvlt.types import Sample


def batches(count: int, ranks: int, batch_size: int) -> list[list[list[int]]]:
    """The batches of every rank."""
    samplers = [EachOnceSampler(range(count), ranks, rank, batch_size) for rank in range(ranks)]  # type: ignore[arg-type]
    assert all(len(sampler) == len(list(sampler)) for sampler in samplers)
    return [[list(block) for block in sampler] for sampler in samplers]


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 12))
def test_each_question_once_over_all_ranks(count: int, ranks: int, batch_size: int) -> None:
    shares = batches(count, ranks, batch_size)
    assert sorted(index for share in shares for batch in share for index in batch) == list(range(count))
    assert all(batch == list(range(batch[0], batch[-1] + 1)) for share in shares for batch in share if batch)
    assert all(len(batch) <= batch_size for share in shares for batch in share)


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 12))
def test_every_rank_has_as_many_batches(count: int, ranks: int, batch_size: int) -> None:
    """They sample together; what there is of it is spread over no more rounds than are needed."""
    assert {len(share) for share in batches(count, ranks, batch_size)} == {-(-count // (ranks * batch_size))}


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 12))
def test_batches_do_not_depend_on_the_ranks(count: int, ranks: int, batch_size: int) -> None:
    """Unless there is less than a batch for each."""
    spread = sorted(batch for share in batches(count, ranks, batch_size) for batch in share if batch)
    if count > ranks * batch_size:
        assert spread == batches(count, 1, batch_size)[0]
    else:
        assert max(map(len, spread)) - min(map(len, spread)) <= 1


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 12))
def test_every_rank_gets_a_question_if_there_are_enough(count: int, ranks: int, batch_size: int) -> None:
    idle = sum(not any(share) for share in batches(count, ranks, batch_size))
    assert idle == max(0, ranks - count)


def test_batches_name_their_benchmark(tiny_folder: Path) -> None:
    sources = {"one": Phantom("test", 5, modality="text"), "two": Phantom("test", 3, modality="picture")}
    module = BenchmarkDataModule(PromptEncoder(str(tiny_folder)), sources, batch_size=2)
    module.setup("validate")
    batches = [batch for loader in module.val_dataloader() for batch in loader]
    assert [(batch.benchmark, len(batch.samples)) for batch in batches] == [
        ("one", 2), ("one", 2), ("one", 1), ("two", 2), ("two", 1)
    ]  # fmt: skip
    assert module.benchmark_names == ("one", "two")


def test_nothing_to_ask(tiny_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"at least one source under data\.benchmarks"):
        BenchmarkDataModule(PromptEncoder(str(tiny_folder))).setup("validate")


class Noise(Control):
    """Its settings are nowhere to be found."""

    name = "noise"

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    def __call__(self, sample: Sample) -> Sample:
        return sample


class Odd(Source):
    def load(self) -> SampleSet:
        return SampleSet([replace(sample, uid="odd:\ud83d") for sample in Phantom("test", 1).load()])


def test_what_could_not_be_written_down(tiny_folder: Path) -> None:
    encoder = PromptEncoder(str(tiny_folder))
    with pytest.raises(ConfigurationError, match=r"data\.control: Noise is no dataclass"):
        BenchmarkDataModule(encoder, control=Noise(2.0))
    with pytest.raises(DataError, match=r"data\.benchmarks\.odd: the uid 'odd:\\ud83d' has half of a surrogate pair"):
        BenchmarkDataModule(encoder, {"odd": Odd()}).setup("validate")
