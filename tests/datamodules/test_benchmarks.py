# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import BenchmarkDataModule
from datamodules.benchmarks import EachOnceSampler
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.errors import ConfigurationError


@given(st.integers(0, 40), st.integers(1, 9))
def test_each_question_once_over_all_ranks(count: int, ranks: int) -> None:
    questions = list(range(count))
    shares = [list(EachOnceSampler(questions, ranks, rank)) for rank in range(ranks)]
    assert sorted(index for share in shares for index in share) == questions
    assert [len(EachOnceSampler(questions, ranks, rank)) for rank in range(ranks)] == [len(share) for share in shares]


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
