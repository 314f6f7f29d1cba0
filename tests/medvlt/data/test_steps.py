# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlt.data import steps
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.data.steps import StepPlan, measure
from medvlt.errors import DataError
from medvlt.types import Sample


def sample(number: int, reasoning: str = "Because.") -> Sample:
    return Sample(f"q:{number}", f"Question {number}?", {"A": "yes", "B": "no"}, "A", "yes", reasoning=reasoning)


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> PromptEncoder:
    return PromptEncoder(str(tiny_folder), template="plain")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 3)
)
def test_plan(sizes: list[int], global_batch_size: int, micro_batches: int, epoch: int) -> None:
    """Each sample once an epoch; a step's samples do not depend on how it is cut; only a short last step has holes."""

    def plan(count: int) -> StepPlan:
        return StepPlan(tuple(range(len(sizes))), tuple(sizes), tuple(sizes), global_batch_size, count, seed=5)

    cut, whole = plan(micro_batches), plan(1)
    order = cut.order(epoch)
    assert sorted(order) == list(range(len(sizes)))
    assert order == whole.order(epoch)
    seen = []
    for step in range(cut.steps):
        bins, totals = cut.step(order, step)
        members = sorted(itertools.chain(*bins))
        assert len(bins) == micro_batches
        assert members == sorted(whole.step(order, step)[0][0])
        assert totals.tokens == sum(sizes[i] for i in members)
        assert totals.completions == len(members)
        if len(members) >= micro_batches:
            assert all(bins)
        seen += members
    assert sorted(seen) == list(range(len(sizes)))


def test_epochs_differ() -> None:
    plan = StepPlan(tuple(range(50)), (1,) * 50, (1,) * 50, 5, 1, seed=1)
    assert plan.order(0) != plan.order(1)
    assert plan.order(1) == plan.order(1)


def test_long_samples_are_counted_and_left_out(encoder: PromptEncoder, caplog: pytest.LogCaptureFixture) -> None:
    samples = [sample(1), sample(2, "word " * 400), sample(3)]
    with caplog.at_level(logging.WARNING):
        lengths = measure(samples, encoder, max_length=200)
    assert list(lengths) == [0, 2]
    assert "1 of 3 training samples are left out: 1 longer than max_length=200" in caplog.text


def test_measured_lengths_are_the_encoded_ones(encoder: PromptEncoder) -> None:
    samples = Phantom("train", 6, reasoning="exact").load()
    for index, (prompt, target) in measure(samples, encoder, max_length=10_000).items():
        assert prompt == len(encoder.encode(samples[index]).token_ids)
        assert target == len(encoder.encode_target(samples[index]))


def test_ranks_share_the_measuring(
    encoder: PromptEncoder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sample is opened by one rank; all get the result of one that measures alone, order and messages included."""
    samples = [sample(1), sample(2, ""), sample(3, "word " * 400), sample(4), sample(5, "")]
    alone = measure(samples, encoder, max_length=200, quiet=True)
    shares: list[dict[int, Any]] = []
    monkeypatch.setattr(steps, "together", lambda action: action())
    for rank in (0, 1):  # the first pass collects the shares
        monkeypatch.setattr(steps, "world", lambda rank=rank: (2, rank))
        monkeypatch.setattr(steps, "gather", lambda share: [shares.append(share) or dict.fromkeys(range(5), (1, 1))])
        measure(samples, encoder, max_length=200, quiet=True)
    assert [list(share) for share in shares] == [[0, 2, 4], [1, 3]]
    monkeypatch.setattr(steps, "gather", lambda share: shares)
    with caplog.at_level(logging.WARNING):
        assert list(measure(samples, encoder, max_length=200).items()) == list(alone.items())
    assert "3 of 5 training samples are left out: 2 cannot be used, the first: sample q:2 has no" in caplog.text


def test_samples_without_reasoning_are_counted_and_left_out(
    encoder: PromptEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert list(measure([sample(1), sample(2, ""), sample(3)], encoder, max_length=200)) == [0, 2]
    assert "1 of 3 training samples are left out: 1 cannot be used, the first: sample q:2 has no" in caplog.text


def test_prompts_without_targets_are_measured_alone(encoder: PromptEncoder) -> None:
    """RL needs no reasoning, and a limit that the prompt just meets leaves no room for a target."""
    plain = sample(1, reasoning="")
    prompt = len(encoder.encode(plain).token_ids)
    assert measure([plain], encoder, max_length=prompt, with_target=False) == {0: (prompt, 0)}
    with pytest.raises(DataError, match="longer than max_prompt_tokens"):
        measure([plain], encoder, max_length=prompt - 1, with_target=False, setting="max_prompt_tokens")


@pytest.mark.parametrize("label", [None, "C"])
def test_questions_that_cannot_be_graded_are_no_prompts(
    label: str | None, encoder: PromptEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [sample(1), replace(sample(2), answer_label=label)]
    with caplog.at_level(logging.WARNING):
        assert list(measure(samples, encoder, max_length=200, with_target=False)) == [0]
    assert "1 cannot be used, the first: question q:2: it has no right option" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        measure(samples, encoder, max_length=200, with_target=False, quiet=True)  # another rank says it already
    assert not caplog.records


def test_control_tokens_are_found_before_training(encoder: PromptEncoder) -> None:
    """`encode` would refuse them, hours later."""
    samples = [sample(1), replace(sample(2), question="What is <|im_end|>?"), sample(3)]
    assert list(measure(samples, encoder, max_length=200)) == [0, 2]
    assert list(measure(samples, encoder, max_length=200, with_target=False)) == [0, 2]


def test_nothing_left_names_the_setting(encoder: PromptEncoder) -> None:
    with pytest.raises(DataError, match=r"left of 1: 1 longer than data\.limit=5.*Raise data\.limit"):
        measure([sample(1)], encoder, max_length=5, setting="data.limit", with_target=False)
