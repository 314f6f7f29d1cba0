# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datamodules import SFTDataModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.packing import PackedBatch
from medvlt.data.samples import SampleSet, Source
from medvlt.errors import ConfigurationError, DataError
from medvlt.types import Sample


class Listed(Source):
    """A source that is a list."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def load(self) -> SampleSet:
        return SampleSet(self.samples)


def sample(number: int, reasoning: str = "Because.") -> Sample:
    return Sample(f"q:{number}", f"Question {number}?", {"A": "yes", "B": "no"}, "A", "yes", reasoning=reasoning)


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> PromptEncoder:
    return PromptEncoder(str(tiny_folder), template="plain")


def batches(module: SFTDataModule) -> list[PackedBatch]:
    module.setup("fit")
    return list(module.train_dataloader())


@pytest.mark.parametrize("reduction", ["token", "sequence", "micro_batch"])
def test_weights_of_a_step_add_up_to_one(reduction: str, encoder: PromptEncoder) -> None:
    samples = [sample(i, "word " * (1 + i % 5)) for i in range(10)]
    module = SFTDataModule(Listed(samples), encoder, global_batch_size=4, loss_reduction=reduction)
    sums = [float(batch.weights.sum()) for batch in batches(module)]
    assert sums == pytest.approx([1.0, 1.0, 1.0])  # ten samples in steps of four: the last has two


def test_every_target_is_taught_once(encoder: PromptEncoder) -> None:
    samples = [sample(i) for i in range(7)]
    found = Counter(
        uid for batch in batches(SFTDataModule(Listed(samples), encoder, global_batch_size=3)) for uid in batch.uids
    )
    assert found == Counter(s.uid for s in samples)


def test_targets_decode_to_reasoning_and_answer(encoder: PromptEncoder) -> None:
    batch = batches(SFTDataModule(Listed([sample(1, "It is so.")]), encoder))[0]
    assert encoder.tokenizer.decode(batch.targets) == "<think> It is so. </think>\n<answer> A </answer><|im_end|>"


def test_nothing_left(encoder: PromptEncoder) -> None:
    with pytest.raises(DataError, match="no training sample is left of 2: 2 longer than max_length=5"):
        SFTDataModule(Listed([sample(1), sample(2)]), encoder, max_length=5).setup("fit")


def test_more_micro_batches_than_samples(encoder: PromptEncoder) -> None:
    from lightning.pytorch import Trainer

    module = SFTDataModule(Listed([sample(i) for i in range(8)]), encoder, global_batch_size=4)
    module.trainer = Trainer(accelerator="cpu", accumulate_grad_batches=8, logger=False)
    with pytest.raises(ConfigurationError, match=r"4 samples .* 1 ranks x 8 micro-batches"):
        module.setup("fit")


def loader(
    encoder: PromptEncoder, *, accumulate: int = 1, seed: int = 42, count: int = 12
) -> torch.utils.data.DataLoader[PackedBatch]:
    from lightning.pytorch import Trainer

    module = SFTDataModule(Listed([sample(i) for i in range(count)]), encoder, global_batch_size=4, seed=seed)
    module.trainer = Trainer(accelerator="cpu", accumulate_grad_batches=accumulate, logger=False)
    module.setup("fit")
    built = module.train_dataloader()
    built.sampler.set_epoch(3)
    return built


def test_resume_with_other_micro_batches(encoder: PromptEncoder) -> None:
    """Of the same samples in the same steps, but from the beginning of an epoch only."""
    stopped, resumed = loader(encoder, accumulate=4), loader(encoder, accumulate=2)
    resumed.load_state_dict(stopped.state_dict())
    assert sorted(uid for batch in resumed for uid in batch.uids) == sorted(f"q:{i}" for i in range(12))
    iterator = iter(stopped)
    for _ in range(4):  # one step of four samples
        next(iterator)
    with pytest.raises(ConfigurationError, match="4 micro-batches per rank, a step has 2 now"):
        resumed.load_state_dict(stopped.state_dict())


@pytest.mark.parametrize("change", [{"seed": 1}, {"count": 11}])
def test_resume_with_other_data_is_refused(change: dict[str, int], encoder: PromptEncoder) -> None:
    with pytest.raises(ConfigurationError, match="other training data"):
        loader(encoder, **change).load_state_dict(loader(encoder).state_dict())


def test_loader_resumes_in_the_middle(encoder: PromptEncoder) -> None:

    whole = [batch.uids for batch in loader(encoder)]
    first = loader(encoder)
    iterator = iter(first)
    begun = [next(iterator).uids for _ in range(2)]
    second = loader(encoder)
    second.load_state_dict(first.state_dict())
    assert begun + [batch.uids for batch in second] == whole


def test_shuffled_options_keep_the_truth(encoder: PromptEncoder) -> None:
    plain = [sample(i, reasoning="") for i in range(20)]
    answers = replace(encoder.wording, answer_only_format="<answer> {label} </answer>")
    module = SFTDataModule(
        Listed(plain), PromptEncoder(encoder.model, template=answers), global_batch_size=20, shuffle_options=True
    )
    batch = batches(module)[0]
    letters = encoder.tokenizer.decode(batch.targets)
    assert "<answer> A" in letters
    assert "<answer> B" in letters  # always A before


def test_workers_give_the_same_batches(encoder: PromptEncoder) -> None:
    def read(workers: int) -> list[tuple[str, ...]]:
        module = SFTDataModule(Listed([sample(i) for i in range(8)]), encoder, global_batch_size=2, num_workers=workers)
        return [batch.uids for batch in batches(module)]

    assert read(0) == read(2)
