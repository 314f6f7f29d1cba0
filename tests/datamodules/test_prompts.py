# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import PromptDataModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.data.samples import SampleSet, Source
from medvlt.errors import ConfigurationError, DataError
from medvlt.rollout.iteration import Iteration, ScoredGroup
from medvlt.types import Completion, Reason, RolloutGroup, Sample, SamplingParams, Verdict

WRONG = Verdict(False, None, False, Reason.NO_ANSWER, "1")


class Listed(Source):
    """A source that is a list."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def load(self) -> SampleSet:
        return SampleSet(self.samples)


def sample(number: int) -> Sample:
    return Sample(f"q:{number}", f"Question {number}?", {"A": "yes", "B": "no"}, "A", "yes")


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> PromptEncoder:
    return PromptEncoder(str(tiny_folder), template="plain")


def prepared(
    encoder: PromptEncoder,
    samples: list[Sample] | None = None,
    *,
    prompts: int = 4,
    ranks: int = 1,
    rank: int = 0,
    accumulate: int = 1,
    **arguments: Any,
) -> PromptDataModule:
    """A data module after `setup("fit")` in a trainer of this size; ten questions unless there are others."""
    samples = [sample(i) for i in range(10)] if samples is None else samples
    module = PromptDataModule(Listed(samples), encoder, prompts_per_iteration=prompts, **arguments)
    fit_loop = SimpleNamespace(epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)))
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=ranks, global_rank=rank, accumulate_grad_batches=accumulate, fit_loop=fit_loop
    )
    module.setup("fit")
    return module


def taken(module: PromptDataModule, count: int = 4, excluding: tuple[int, ...] = ()) -> list[int]:
    prompts = module.take_prompts(count, excluding=excluding)
    module.commit()
    assert [question.uid for _, question in prompts] == [f"q:{index}" for index, _ in prompts]
    return [index for index, _ in prompts]


def test_prompts_do_not_depend_on_the_number_of_ranks(encoder: PromptEncoder) -> None:
    def three_iterations(ranks: int, rank: int) -> list[list[int]]:
        module = prepared(encoder, ranks=ranks, rank=rank)
        drawn = []
        for _ in range(3):
            first = taken(module)
            drawn += [first, taken(module, 2, tuple(first))]  # with a round of resampling
        return drawn

    alone = three_iterations(1, 0)
    for ranks, rank in ((2, 0), (2, 1), (4, 3)):
        assert three_iterations(ranks, rank) == alone


def test_each_pass_has_an_order_of_its_own_and_leaves_the_rest_out(encoder: PromptEncoder) -> None:
    """Ten prompts, four an iteration: two iterations a pass."""
    module = prepared(encoder)
    passes = []
    for number in range(3):
        passes.append(taken(module) + taken(module))
        assert len(set(passes[-1])) == 8
        assert module.cursor == 10 * number + 8
    assert len({tuple(order) for order in passes}) == 3
    assert len({frozenset(order) for order in passes}) > 1  # it is not always the same two that are left out
    again = prepared(encoder)
    assert [taken(again) + taken(again) for _ in range(3)] == passes
    other = prepared(encoder, seed=7)
    assert taken(other) + taken(other) != passes[0]


def test_prompts_of_a_failed_iteration_are_taken_again(encoder: PromptEncoder) -> None:
    """Only a commit moves the cursor, also in the state: what was sampled and lost is no progress."""
    module = prepared(encoder)
    first = [index for index, _ in module.take_prompts(4)]
    further = [index for index, _ in module.take_prompts(2, excluding=first)]
    assert module.state_dict()["cursor"] == 0
    assert [index for index, _ in module.take_prompts(4)] == first
    assert [index for index, _ in module.take_prompts(2, excluding=first)] == further
    module.commit()
    assert module.state_dict()["cursor"] == 6
    assert not {index for index, _ in module.take_prompts(4)} & {*first, *further}


def test_an_iteration_that_fits_exactly_begins_no_new_pass(encoder: PromptEncoder) -> None:
    module = prepared(encoder, prompts=5)
    assert sorted(taken(module, 5) + taken(module, 5)) == list(range(10))
    assert sorted(taken(module, 5) + taken(module, 5)) == list(range(10))


def test_without_shuffling_each_pass_follows_the_source(encoder: PromptEncoder) -> None:
    module = prepared(encoder, shuffle=False)
    assert [taken(module) for _ in range(4)] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


@pytest.fixture(scope="module")
def endless(encoder: PromptEncoder) -> PromptDataModule:
    return prepared(encoder)


@settings(deadline=None)
@given(cursor=st.integers(0, 45), rounds=st.lists(st.integers(0, 6), min_size=1, max_size=8))
def test_no_prompt_twice_in_an_iteration(cursor: int, rounds: list[int], endless: PromptDataModule) -> None:
    """Resampling goes over the end of a pass, where the next one may begin with prompts that the iteration has."""
    endless.cursor = cursor
    seen: list[int] = []
    for count in rounds:
        if len(seen) + count > 10:
            break
        before = endless.cursor
        new = taken(endless, count, tuple(seen))
        assert len(new) == count
        assert endless.cursor >= before + count
        seen += new
    assert len(set(seen)) == len(seen)


def test_resampling_takes_what_is_left_of_the_pass(encoder: PromptEncoder) -> None:
    module = prepared(encoder, shuffle=False)
    taken(module)
    first = taken(module)
    assert first == [4, 5, 6, 7]
    assert taken(module, 5, tuple(first)) == [8, 9, 0, 1, 2]
    assert taken(module) == [3, 4, 5, 6]  # of the pass that has begun
    assert taken(module, 6, (3, 4, 5, 6)) == [7, 8, 9, 0, 1, 2]


def test_more_than_there_are(encoder: PromptEncoder) -> None:
    module = prepared(encoder)
    assert len(taken(module, 6, (0, 1, 2, 3))) == 6
    cursor = module.cursor
    with pytest.raises(ConfigurationError, match="asks for 7 prompts besides 4 it already has, and there are 10"):
        module.take_prompts(7, excluding=(0, 1, 2, 3))
    assert module.cursor == cursor


def rollouts(module: PromptDataModule, number: int = 0) -> Iteration:
    """An iteration as the callback and the module leave it; one group is not used."""
    generator = torch.Generator().manual_seed(number)
    groups = []
    for index, question in module.take_prompts(module.prompts_per_iteration):
        lengths = torch.randint(1, 6, (2,), generator=generator).tolist()
        completions = tuple(
            Completion(
                tuple(torch.randint(3, 99, (length,), generator=generator).tolist()),
                "text",
                tuple((-torch.rand(length, generator=generator)).tolist()),
                "stop",
            )
            for length in lengths
        )
        prompt = tuple(module.encoder.encode(question).token_ids.tolist())
        group = RolloutGroup(question, prompt, completions)
        groups.append(ScoredGroup(index, group, (WRONG,) * 2, (1.0, 0.0), {"accuracy": (1.0, 0.0)}))
    count = len(groups)
    lengths_of = [sum(len(c.token_ids) for c in group.group.completions) for group in groups]
    used = torch.arange(count) != 1
    return Iteration(
        number,
        tuple(groups),
        SamplingParams(n=2, max_tokens=6),
        torch.randn(count, 2, generator=generator, dtype=torch.float64),
        torch.zeros(count, 2, dtype=torch.bool),
        used,
        {g: -torch.rand(lengths_of[g], generator=generator) for g in range(count) if used[g]},
    )


def assert_same_batches(ours: PromptDataModule, theirs: PromptDataModule) -> None:
    assert len(ours.buffer) == len(theirs.buffer)
    for number in range(len(ours.buffer)):
        one, two = ours.buffer[(0, number)], theirs.buffer[(0, number)]
        assert one.packed.uids == two.packed.uids
        for name in ("targets", "weights", "input_ids"):
            assert torch.equal(getattr(one.packed, name), getattr(two.packed, name)), name
        for name in ("advantages", "sampler_logprobs", "old_logprobs"):
            assert torch.equal(getattr(one, name), getattr(two, name)), name


def saved(module: PromptDataModule, folder: Path) -> dict[str, Any]:
    torch.save(module.state_dict(), folder / "state.pt")
    state: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
    return state


def test_resumed_inside_an_iteration(encoder: PromptEncoder, tmp_path: Path) -> None:
    stopped = prepared(encoder, updates_per_iteration=2)
    stopped.buffer.fill(rollouts(stopped))
    resumed = prepared(encoder, updates_per_iteration=2)
    resumed.load_state_dict(saved(stopped, tmp_path))
    assert_same_batches(resumed, stopped)
    assert [taken(resumed) for _ in range(4)] == [taken(stopped) for _ in range(4)]


def test_resumed_before_the_first_iteration(encoder: PromptEncoder, tmp_path: Path) -> None:
    stopped = prepared(encoder)
    taken(stopped, 3)
    resumed = prepared(encoder)
    resumed.load_state_dict(saved(stopped, tmp_path))
    assert resumed.buffer.iteration is None
    assert taken(resumed) == taken(stopped)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"shuffle": False},
        {"max_prompt_tokens": 90},  # leaves a question out
        {"samples": [sample(i) for i in range(11)]},
        {"samples": [sample(i) for i in (1, 0, *range(2, 10))]},
    ],
    ids=str,
)
def test_resume_with_other_prompts_is_refused(change: dict[str, Any], encoder: PromptEncoder, tmp_path: Path) -> None:
    long = replace(sample(9), question="word " * 20)
    given = {"samples": [*[sample(i) for i in range(9)], long]} | change
    stopped = prepared(encoder, [*[sample(i) for i in range(9)], long])
    other = prepared(encoder, **given)
    with pytest.raises(ConfigurationError, match="other training prompts"):
        other.load_state_dict(saved(stopped, tmp_path))


def test_rollouts_of_another_question_are_refused(encoder: PromptEncoder, tmp_path: Path) -> None:
    """Beyond the first hundred questions the fingerprint knows how many there are, not which; the rollouts do."""
    samples = [sample(i) for i in range(105)]
    stopped = prepared(encoder, samples, prompts=105)
    stopped.buffer.fill(rollouts(stopped))
    with pytest.raises(ConfigurationError, match="other training prompts"):
        prepared(encoder, samples[:104]).load_state_dict(saved(stopped, tmp_path))
    samples[103] = sample(999)
    with pytest.raises(ConfigurationError, match=r"question 103 of data.train is 'q:999', the rollouts .* of 'q:103'"):
        prepared(encoder, samples, prompts=105).load_state_dict(saved(stopped, tmp_path))


def test_validation_of_a_checkpoint_needs_no_place_in_the_prompts(encoder: PromptEncoder, tmp_path: Path) -> None:
    """Lightning restores the data module in `validate` and `test` too, where the training questions are not read."""
    stopped = prepared(encoder)
    stopped.buffer.fill(rollouts(stopped))
    module = PromptDataModule(Listed([sample(1)]), encoder, {"b": Phantom("test", 2, modality="text")})
    module.setup("validate")
    module.load_state_dict(saved(stopped, tmp_path))
    assert module.benchmark_sizes == {"b": 2}


def test_loader_goes_through_the_present_iteration(encoder: PromptEncoder) -> None:
    """Four prompts in two steps of two micro-batches each; the second of the four is not used."""
    module = prepared(encoder, shuffle=False, updates_per_iteration=2, accumulate=2)
    loader = module.train_dataloader()
    assert len(loader) == 4
    for expected in ([["q:0"], [], ["q:2"], ["q:3"]], [["q:4"], [], ["q:6"], ["q:7"]]):
        module.buffer.fill(rollouts(module))
        module.commit()
        found = [sorted(set(batch.packed.uids)) if batch.packed.weights.any() else [] for batch in loader]
        assert sorted(found[:2]) == sorted(expected[:2])
        assert sorted(found[2:]) == sorted(expected[2:])


def test_loader_resumes_at_its_micro_batch(encoder: PromptEncoder, tmp_path: Path) -> None:
    stopped = prepared(encoder, accumulate=2, updates_per_iteration=2)
    stopped.buffer.fill(rollouts(stopped))
    loader = stopped.train_dataloader()
    whole = [batch.packed.uids for batch in loader]
    iterator = iter(loader)
    begun = [next(iterator).packed.uids for _ in range(3)]
    resumed = prepared(encoder, accumulate=2, updates_per_iteration=2)
    resumed.load_state_dict(saved(stopped, tmp_path))
    rest = resumed.train_dataloader()
    rest.load_state_dict(loader.state_dict())  # type: ignore[attr-defined]
    assert begun + [batch.packed.uids for batch in rest] == whole
    # its place is counted in steps, so they must be the same
    for change in ({"seed": 1, "updates_per_iteration": 2}, {"updates_per_iteration": 1}):
        other = prepared(encoder, accumulate=2, **change).train_dataloader()
        with pytest.raises(ConfigurationError, match="other training data"):
            other.load_state_dict(loader.state_dict())  # type: ignore[attr-defined]


def test_questions_that_cannot_be_learned_from_are_set_aside(
    encoder: PromptEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [sample(i) for i in range(7)]
    samples[1] = Sample("q:1", "What is this?", {}, None, "a thing")  # open
    samples[2] = replace(samples[2], answer_label="C")
    samples[3] = replace(samples[3], question="word " * 200)
    samples[5] = replace(samples[5], question="What does <|im_end|> mean?")
    with caplog.at_level(logging.WARNING):
        module = prepared(encoder, samples, prompts=3, max_prompt_tokens=120)
    assert [module.train_samples[i].uid for i in range(len(module.train_samples))] == ["q:0", "q:4", "q:6"]
    assert module.longest_prompt_tokens == len(encoder.encode(samples[0]).token_ids)
    assert "4 of 7 training samples are left out: 3 cannot be used, the first: question q:1" in caplog.text
    assert "no right option" in caplog.text
    assert "1 longer than max_prompt_tokens=120" in caplog.text
    assert sorted(taken(module, 3)) == [0, 4, 6]  # positions in the source
    with pytest.raises(ConfigurationError, match=r"3 usable questions and an iteration takes 4 different ones"):
        prepared(encoder, samples, max_prompt_tokens=120)
    with pytest.raises(DataError, match="no training sample is left of 7"):
        prepared(encoder, samples, max_prompt_tokens=5)


@pytest.mark.parametrize("shape", [{"accumulate": 5}, {"ranks": 5}, {"updates_per_iteration": 2, "accumulate": 3}])
def test_more_micro_batches_than_prompts(shape: dict[str, int], encoder: PromptEncoder) -> None:
    with pytest.raises(ConfigurationError, match=r"4 prompts .* \d optimizer steps .* \d ranks x \d micro-batches"):
        prepared(encoder, **shape)  # type: ignore[arg-type]
    prepared(encoder, updates_per_iteration=2, ranks=2)  # a prompt for each


@pytest.mark.parametrize("updates", [0, 5])
def test_updates_without_prompts_of_their_own(updates: int, encoder: PromptEncoder) -> None:
    with pytest.raises(ConfigurationError, match=f"updates_per_iteration={updates} must be at least 1 and at most"):
        PromptDataModule(Listed([]), encoder, prompts_per_iteration=4, updates_per_iteration=updates)


def test_no_buffer_before_the_questions_are_read(encoder: PromptEncoder) -> None:
    with pytest.raises(ConfigurationError, match='only after setup\\("fit"\\)'):
        _ = PromptDataModule(Listed([]), encoder).buffer
