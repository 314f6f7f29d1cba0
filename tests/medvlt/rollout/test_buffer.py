# SPDX-License-Identifier: Apache-2.0
"""Micro-batches of all ranks together against loops over the iteration."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from medvlt.data.batches import RolloutBatch
from medvlt.data.packing import EncodedPrompt
from medvlt.errors import MissingRolloutError
from medvlt.losses.reduce import LossReduction
from medvlt.rollout.buffer import RolloutBuffer, Share
from medvlt.rollout.iteration import Iteration, ScoredGroup
from medvlt.types import Completion, RolloutGroup, Sample, SamplingParams

MAX_TOKENS = 16
REFUSED = ((0, True), (0, True))
MIXED = [((3, False), (1, True)), ((2, False), (2, False)), REFUSED, ((1, False), (5, False)), ((4, True), (2, True))]
"""Groups of completions; for each its tokens and whether it is masked. The second group is not used, see `UNUSED`."""
UNUSED = {1}

Drawn = tuple[tuple[int, bool], ...]


@dataclass
class Encoder:
    """Prompts of two tokens, and how often each was asked for."""

    asked: Counter[str] = field(default_factory=Counter)

    def encode(self, sample: Sample) -> EncodedPrompt:
        self.asked[sample.uid] += 1
        return EncodedPrompt(torch.tensor([1, 2]), torch.arange(2).expand(3, 2))


def make_iteration(groups: list[Drawn], unused: set[int]) -> Iteration:
    """All tokens differ, and whatever is known of a token is a function of it, another one for each column."""
    names = itertools.count(10)
    scored = []
    for index, group in enumerate(groups):
        completions = []
        for length, _ in group:
            ids = tuple(next(names) for _ in range(length))
            completions.append(Completion(ids, "", tuple(-token / 7 for token in ids), "stop" if length else "error"))
        prompt = (1, 2) if completions[0].token_ids else ()
        sample = Sample(f"q:{index}", "?", {"A": "a"}, "A", "a")
        scored.append(ScoredGroup(index, RolloutGroup(sample, prompt, tuple(completions)), (), (), {}))
    masked = torch.tensor([[masked for _, masked in group] for group in groups])
    used = [number not in unused and not all(masked for _, masked in group) for number, group in enumerate(groups)]
    count, size = masked.shape
    return Iteration(
        5,
        tuple(scored),
        SamplingParams(n=size, max_tokens=MAX_TOKENS),
        torch.arange(count * size, dtype=torch.float64).reshape(count, size) / 3,
        masked,
        torch.tensor(used),
    )


def of_tokens(iteration: Iteration, function: Callable[[int], float]) -> dict[int, Tensor]:
    """A column as the module computes it: nothing is known of a group that is not used."""
    assert iteration.used is not None
    return {
        number: torch.tensor([function(token) for c in group.group.completions for token in c.token_ids])
        for number, group in enumerate(iteration.groups)
        if iteration.used[number]
    }


def filled(
    iteration: Iteration, *, steps: int = 1, share: Share | None = None, reduction: LossReduction = "token"
) -> RolloutBuffer:
    buffer = RolloutBuffer(Encoder(), steps=steps, share=share or Share(), reduction=reduction)  # type: ignore[arg-type]
    buffer.fill(iteration)
    buffer.add_logprobs(old=of_tokens(iteration, lambda token: -token / 11))
    buffer.add_logprobs(ref=of_tokens(iteration, lambda token: -token / 13))
    return buffer


def step_loss(
    iteration: Iteration, step: int, *, steps: int, ranks: int, micro_batches: int, reduction: LossReduction
) -> float:
    """Sum of weight * loss over all ranks; the loss of a token is the square of its name, and 0 in an unused group."""
    total = 0.0
    for rank in range(ranks):
        buffer = filled(iteration, steps=steps, share=Share(ranks, rank, micro_batches), reduction=reduction)
        assert len(buffer) == steps * micro_batches
        for number in range(step * micro_batches, (step + 1) * micro_batches):
            packed = buffer[(0, number)].packed
            total += float((packed.weights.double() * packed.targets**2).sum())
    return total


def definition(iteration: Iteration, step: int, *, steps: int, reduction: LossReduction) -> float:
    """The same from the definition of the reduction, over all groups of the step; masked completions are zeros."""
    assert iteration.used is not None
    assert iteration.masked is not None
    count = len(iteration.groups)
    rows: list[tuple[list[float], bool]] = []
    for number in range(step * count // steps, (step + 1) * count // steps):
        for completion, masked in zip(
            iteration.groups[number].group.completions, iteration.masked[number], strict=True
        ):
            if completion.finish_reason != "error":
                losses = [float(token**2) if iteration.used[number] else 0.0 for token in completion.token_ids]
                rows.append((losses, bool(masked)))
    kept = [losses for losses, masked in rows if not masked]
    if not kept:
        return 0.0
    if reduction == "token":
        return sum(map(sum, kept)) / sum(map(len, kept))
    if reduction == "sequence":
        return sum(sum(losses) / len(losses) for losses in kept) / len(rows)
    return sum(map(sum, kept)) / (len(rows) * MAX_TOKENS)


COMPLETION = st.tuples(st.integers(1, 5), st.integers(0, 3).map(lambda number: number == 0))
GROUPS = st.integers(1, 3).flatmap(
    lambda size: st.lists(
        st.one_of(st.tuples(*[COMPLETION] * size), st.tuples(*[COMPLETION] * size), st.just(((0, True),) * size)),
        min_size=1,
        max_size=7,
    )
)


@settings(deadline=None, max_examples=60)
@given(
    GROUPS, st.sets(st.integers(0, 6)), st.sampled_from(["token", "sequence", "constant"]), st.integers(1, 3),
    st.integers(1, 3), st.integers(1, 3),
)  # fmt: skip
def test_a_step_is_the_mean_over_it_however_it_is_cut(
    groups: list[Drawn], unused: set[int], reduction: LossReduction, steps: int, ranks: int, micro_batches: int
) -> None:
    """Also where there are fewer groups than micro-batches, none is used, or a step has nothing but refused ones."""
    assume(any(length for group in groups for length, _ in group))
    iteration = make_iteration(groups, unused)
    for step in range(steps):
        expected = definition(iteration, step, steps=steps, reduction=reduction)
        found = step_loss(iteration, step, steps=steps, ranks=ranks, micro_batches=micro_batches, reduction=reduction)
        assert found == pytest.approx(expected, rel=1e-5)


def test_micro_batch_is_the_mean_of_means() -> None:
    iteration = make_iteration(MIXED, UNUSED)
    # of five groups one was refused, one is masked and one not used: two micro-batches are left of four
    found = step_loss(iteration, 0, steps=1, ranks=2, micro_batches=2, reduction="micro_batch")
    means = [(10**2 + 11**2 + 12**2) / 3, sum(token**2 for token in range(18, 24)) / 6]
    assert found == pytest.approx(sum(means) / 2, rel=1e-6)
    whole = step_loss(iteration, 0, steps=1, ranks=1, micro_batches=1, reduction="micro_batch")
    tokens = [10, 11, 12, *range(18, 24)]
    assert whole == pytest.approx(sum(token**2 for token in tokens) / 9, rel=1e-6)


def weights_of_all_ranks(iteration: Iteration, reduction: LossReduction) -> float:
    shares = [Share(2, rank, 2) for rank in range(2)]
    batches = [filled(iteration, share=share, reduction=reduction)[(0, n)] for share in shares for n in range(2)]
    return sum(float(batch.packed.weights.sum()) for batch in batches)


@pytest.mark.parametrize("reduction", ["token", "sequence", "micro_batch"])
def test_weights_of_a_step_add_up_to_one(reduction: LossReduction) -> None:
    iteration = make_iteration([((3, False), (1, False)), ((2, False), (2, False)), ((1, False), (5, False))], set())
    assert weights_of_all_ranks(iteration, reduction) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("reduction", "share"),
    # 13 tokens are not masked, 9 of them in groups that are used; 8 completions were sampled, 3 are used and not masked
    [("token", 9 / 13), ("sequence", 3 / 8), ("constant", 9 / (8 * MAX_TOKENS)), ("micro_batch", 1.0)],
)
def test_what_is_left_out_takes_its_share_of_the_weights_with_it(reduction: LossReduction, share: float) -> None:
    assert weights_of_all_ranks(make_iteration(MIXED, UNUSED), reduction) == pytest.approx(share, rel=1e-6)


def test_columns_line_up_with_the_tokens() -> None:
    iteration = make_iteration(MIXED, UNUSED)
    assert iteration.advantages is not None
    advantages = {
        token: float(iteration.advantages[g, c])
        for g, group in enumerate(iteration.groups)
        for c, completion in enumerate(group.group.completions)
        for token in completion.token_ids
    }
    buffer = filled(iteration, share=Share(2, 0, 1))
    batch = buffer[(0, 0)]
    assert buffer.members(0) == (0, (3,))
    both = filled(iteration)[(0, 0)]
    assert both.packed.uids == ("q:0", "q:0", "q:3", "q:3")
    assert both.packed.targets.tolist() == [10, 11, 12, 13, *range(18, 24)]
    assert [weight > 0 for weight in both.packed.weights] == [True] * 3 + [False] + [True] * 6  # the second is masked
    for some in (batch, both):
        tokens = some.packed.targets.tolist()
        assert some.old_logprobs is not None
        assert some.ref_logprobs is not None
        for column, function in (
            (some.advantages, advantages.__getitem__),
            (some.sampler_logprobs, lambda token: -token / 7),
            (some.old_logprobs, lambda token: -token / 11),
            (some.ref_logprobs, lambda token: -token / 13),
        ):
            assert column.dtype == torch.float32
            assert column.tolist() == pytest.approx([function(token) for token in tokens], rel=1e-6)


@pytest.mark.parametrize("unused", [UNUSED, {0, 1, 3}], ids=["some", "all"])
def test_an_empty_micro_batch_runs_and_weighs_nothing(unused: set[int]) -> None:
    """It stands in with a group that has tokens, though no update may use it and nothing is known of it."""
    iteration = make_iteration(MIXED, unused)
    empty = 0
    for rank in range(3):
        buffer = filled(iteration, share=Share(3, rank, 1))
        batch, (_, members) = buffer[(0, 0)], buffer.members(0)
        assert len(batch.packed.targets) > 0
        assert bool(batch.packed.weights.any()) == bool(members)
        if not members:
            empty += 1
            assert set(batch.packed.uids) == {"q:0"}  # the smallest that was sampled, not the refused one
            assert (batch.old_logprobs, batch.ref_logprobs) == (None, None)
            assert batch.advantages.isfinite().all()
    assert empty == (1 if unused is UNUSED else 3)


def test_each_prompt_is_encoded_once_and_kept_until_it_was_trained_on() -> None:
    buffer = filled(make_iteration(MIXED, UNUSED))
    encoder = buffer.encoder
    assert isinstance(encoder, Encoder)
    for _ in range(2):
        encoder.asked.clear()
        first, again, trained = buffer.micro_batch(0), buffer.micro_batch(0), buffer[(0, 0)]
        assert torch.equal(first.packed.input_ids, again.packed.input_ids)
        assert torch.equal(first.packed.input_ids, trained.packed.input_ids)
        assert encoder.asked == {"q:0": 1, "q:3": 1}
        assert buffer._prompts == {}
        buffer.fill(make_iteration(MIXED, UNUSED))


def test_a_new_iteration_replaces_the_old_one() -> None:
    buffer = filled(make_iteration(MIXED, UNUSED))
    assert buffer[(0, 0)].old_logprobs is not None
    buffer.fill(make_iteration([((1, False), (1, False))], set()))
    batch = buffer[(0, 0)]
    assert batch.packed.targets.tolist() == [10, 11]
    assert (batch.old_logprobs, batch.ref_logprobs) == (None, None)


def test_nothing_to_train_on() -> None:
    buffer = RolloutBuffer(Encoder(), steps=2, share=Share(2, 1, 3), reduction="token")  # type: ignore[arg-type]
    assert len(buffer) == 6  # Lightning asks before there are any rollouts
    for action in (lambda: buffer[(0, 0)], lambda: buffer.members(0), lambda: buffer.add_logprobs(old={})):
        with pytest.raises(MissingRolloutError, match="VLLMRolloutCallback"):
            action()


def test_a_batch_moves_as_a_whole() -> None:
    iteration = make_iteration(MIXED, UNUSED)
    batch = filled(iteration)[(0, 0)].to("meta")
    tensors = [getattr(part, f.name) for part in (batch, batch.packed) for f in fields(part)]
    devices = {tensor.device.type for tensor in tensors if isinstance(tensor, Tensor)}
    assert devices == {"meta"}
    assert sum(isinstance(tensor, Tensor) for tensor in tensors) == 4 + 6
    assert isinstance(batch, RolloutBatch)
    without = filled(iteration, share=Share(3, 2, 1))[(0, 0)].to("meta")
    assert without.old_logprobs is None
