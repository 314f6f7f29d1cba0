# SPDX-License-Identifier: Apache-2.0
"""Weights against the means they stand for, computed over the whole step at once."""

from __future__ import annotations

import pytest
import torch

from medvlt.losses.reduce import LossReduction, StepTotals, completion_weights
from medvlt.losses.sft import sft_loss

STEP = [[[1.0, 2.0, 4.0], [8.0]], [[3.0, 5.0]]]
"""Token losses: micro-batches of completions of tokens."""


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def definition(reduction: LossReduction, max_tokens: int) -> float:
    completions = [completion for micro_batch in STEP for completion in micro_batch]
    tokens = [token for completion in completions for token in completion]
    return {
        "token": mean(tokens),
        "sequence": mean([mean(completion) for completion in completions]),
        "constant": mean([sum(completion) / max_tokens for completion in completions]),
        "micro_batch": mean([mean([t for c in micro_batch for t in c]) for micro_batch in STEP]),
    }[reduction]


@pytest.mark.parametrize("reduction", ["token", "sequence", "constant", "micro_batch"])
def test_weighted_sum_is_the_mean(reduction: LossReduction) -> None:
    totals = StepTotals(tokens=6, completions=3, micro_batches=2)
    total = 0.0
    for micro_batch in STEP:
        lengths = [len(completion) for completion in micro_batch]
        weights = completion_weights(lengths, totals, reduction=reduction, max_tokens=10)
        per_token = torch.tensor([w for w, n in zip(weights, lengths, strict=True) for _ in range(n)])
        total += float(sft_loss(-torch.tensor([t for c in micro_batch for t in c]), per_token))
    assert total == pytest.approx(definition(reduction, 10), rel=1e-6)


def test_the_reductions_differ_on_this_step() -> None:
    values = {definition(reduction, 10) for reduction in ("token", "sequence", "constant", "micro_batch")}
    assert len(values) == 4


def test_constant_needs_its_length() -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        completion_weights([1], StepTotals(1, 1, 1), reduction="constant")
