# SPDX-License-Identifier: Apache-2.0
"""Loss and gradient of a whole optimizer step, three times, in float64.

- `ours`: flat tensors, weights from `completion_weights`, summed over micro-batches and ranks.
- `rectangle`: TRL's definitions on padded rectangles: a mask, a mean for each micro-batch, division by the number of
  micro-batches where TRL divides, gradients averaged over ranks.
- `loops`: Python floats; sums over completions and tokens, derivatives by hand.

The inputs cross every clip edge with advantages of both signs, and hold a group of equal rewards, a completion without
a verdict and a truncated completion that is masked out. The last is one of the completions of the step, but its tokens
are not among the tokens of the step, as in TRL, where a row of zeros in the mask stays in the mean over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, isnan, log, nan, prod
from statistics import mean, stdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medvlt.losses.advantages import AdvantageScale, group_advantages
from medvlt.losses.correction import Correction, correction_weights
from medvlt.losses.kl import kl_penalty
from medvlt.losses.policy import CISPOLoss, ClippedLoss, GSPOLoss, PolicyLoss
from medvlt.losses.reduce import LossReduction, StepTotals, completion_weights

LOW, HIGH, DUAL, CAP = 0.2, 0.28, 3.0, 5.0
KL_COEF, EPS, MAX_TOKENS, GROUP = 0.04, 1e-4, 10, 4

# one row per completion: exp(l - l_old) of each token
RATIOS = [
    [0.5, 0.79, 0.81, 1.0, 1.19, 1.27, 1.29, 3.1, 6.0],
    [3.1, 0.5, 0.79, 0.81, 1.0, 1.19, 1.29, 2.9, 6.0],
    [0.6, 1.1, 4.0, 1.0],  # masked out
    [0.7, 0.6],
    [1.5, 0.9],
    [0.7, 1.0, 2.0],
    [1.0],
    [3.5, 0.2, 1.1, 1.0],
    [0.6],
    [1.4, 0.7],
    [1.05, 0.98, 1.4, 1.1],
    [1.05, 0.98, 1.1],
]
REWARDS = [1.0, 0.0, 1.0, 0.0, 0.1, 0.1, 0.1, 0.1, 0.4, nan, 1.0, -0.5]
MASKED = 2
LENGTHS = [len(row) for row in RATIOS]
ROWS = range(len(RATIOS))

OLD = [[-0.1 - (7 * i + 3 * t) % 11 / 5 for t in range(n)] for i, n in enumerate(LENGTHS)]
NEW = [[old + log(r) for old, r in zip(*pair, strict=True)] for pair in zip(OLD, RATIOS, strict=True)]
REF = [[new + ((5 * i + 2 * t) % 7 - 3) / 4 for t, new in enumerate(row)] for i, row in enumerate(NEW)]
MISMATCH = [[(1.0, 0.9, 0.4, 2.5, 2.1, 1.1)[(i + t) % 6] for t in range(n)] for i, n in enumerate(LENGTHS)]
"""exp(l_old - l_inf) of each token."""
SAMPLER = [[old - log(w) for old, w in zip(*pair, strict=True)] for pair in zip(OLD, MISMATCH, strict=True)]

Cut = list[list[list[int]]]
"""Completions of each micro-batch of each rank."""


def even_cut(ranks: int, micro_batches: int) -> Cut:
    size = len(RATIOS) // (ranks * micro_batches)
    return [
        [list(ROWS)[(rank * micro_batches + k) * size :][:size] for k in range(micro_batches)] for rank in range(ranks)
    ]


CUTS = {f"W{ranks}K{count}": even_cut(ranks, count) for ranks, count in [(1, 1), (1, 4), (2, 2)]}


@dataclass(frozen=True)
class Method:
    """One of TRL's loss types, and what we write for it."""

    trl: str
    loss: PolicyLoss
    reduction: LossReduction
    scale: AdvantageScale = "group"
    dual_clip: float | None = None


METHODS = {
    "grpo": Method("grpo", ClippedLoss(LOW, HIGH, None), "sequence"),
    "grpo-dual": Method("grpo", ClippedLoss(LOW, HIGH, DUAL), "sequence", dual_clip=DUAL),
    "bnpo": Method("bnpo", ClippedLoss(LOW, HIGH, None), "micro_batch"),
    "bnpo-dual": Method("bnpo", ClippedLoss(LOW, HIGH, DUAL), "micro_batch", dual_clip=DUAL),
    "dapo": Method("dapo", ClippedLoss(LOW, HIGH, None), "token", "batch"),
    "dapo-dual": Method("dapo", ClippedLoss(LOW, HIGH, DUAL), "token", "batch", DUAL),
    "dr_grpo": Method("dr_grpo", ClippedLoss(LOW, HIGH, None), "constant", "none"),
    "gspo": Method("gspo", GSPOLoss(LOW, HIGH), "sequence"),
    "cispo": Method("cispo", CISPOLoss(None, CAP - 1), "token"),
}
CORRECTIONS = [None, *(Correction(kind, 0.5, 2.0) for kind in ("token_tis", "token_mask", "seq_geo", "seq_sum"))]


def kind_of(correction: Correction | None) -> str:
    return "uncorrected" if correction is None else correction.kind


# ---- ours


def ours(method: Method, correction: Correction | None, cut: Cut) -> tuple[float, list[list[float]]]:
    new = [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in NEW]
    rewards = torch.tensor(REWARDS, dtype=torch.float64).view(-1, GROUP)
    advantages = group_advantages(rewards, scale=method.scale, eps=EPS).flatten()
    micro_batches = [rows for rank in cut for rows in rank]
    step = StepTotals(sum(LENGTHS) - LENGTHS[MASKED], len(LENGTHS), len(micro_batches))
    total = torch.zeros((), dtype=torch.float64)
    for rows in micro_batches:
        trained = [i for i in rows if i != MASKED]
        values = completion_weights(
            [LENGTHS[i] for i in trained], step, reduction=method.reduction, max_tokens=MAX_TOKENS
        )
        of_completion = dict(zip(trained, values, strict=True))
        lengths = torch.tensor([LENGTHS[i] for i in rows])
        weights = torch.tensor([of_completion.get(i, 0.0) for i in rows], dtype=torch.float64)
        logprobs = torch.cat([new[i] for i in rows])
        old, ref, sampler = (flat(values, rows) for values in (OLD, REF, SAMPLER))
        losses = method.loss(logprobs, old, advantages[rows].repeat_interleave(lengths), lengths).losses
        if correction is not None:
            losses = losses * correction_weights(old, sampler, lengths, correction)
        losses = losses + KL_COEF * kl_penalty(logprobs, ref)
        total = total + (weights.repeat_interleave(lengths) * losses).sum()
    total.backward()
    return total.item(), [gradient.tolist() for gradient in (row.grad for row in new) if gradient is not None]


def flat(values: list[list[float]], rows: Sequence[int]) -> Tensor:
    return torch.tensor([value for i in rows for value in values[i]], dtype=torch.float64)


# ---- TRL's definitions


def padded(values: list[list[float]]) -> Tensor:
    """Right-padded with a number that shows up in every result if it is not masked."""
    width = max(LENGTHS)
    return torch.tensor([[*row, *[0.5] * (width - len(row))] for row in values], dtype=torch.float64)


def rectangle(method: Method, correction: Correction | None, cut: Cut) -> tuple[float, list[list[float]]]:
    new = padded(NEW).requires_grad_()
    mask = padded([[1.0] * n for n in LENGTHS]).floor()
    mask[MASKED] = 0.0
    old, ref, sampler = padded(OLD), padded(REF), padded(SAMPLER)

    rewards = torch.tensor(REWARDS, dtype=torch.float64).view(-1, GROUP)
    centred = rewards - rewards.nanmean(1, keepdim=True)
    if method.scale == "group":
        centred = centred / (torch.stack([group[~group.isnan()].std() for group in rewards])[:, None] + EPS)
    elif method.scale == "batch":
        centred = centred / (rewards[~rewards.isnan()].std() + EPS)
    advantages = centred.nan_to_num(0.0).view(-1, 1)

    def micro_batch(rows: list[int], accumulation: int) -> Tensor:
        logprobs, m, a = new[rows], mask[rows], advantages[rows]
        log_ratio = logprobs - old[rows]
        if method.trl == "gspo":
            log_ratio = (log_ratio * m).sum(1, keepdim=True) / m.sum(1, keepdim=True).clamp(min=1)
        ratio = log_ratio.exp()
        if method.trl == "cispo":
            loss = -ratio.clamp(max=CAP).detach() * a * logprobs
        else:
            bounded = ratio.clamp(1 - LOW, 1 + HIGH)
            if method.dual_clip is not None:  # TRL's `delta`
                ratio = ratio.clamp(max=method.dual_clip)
            loss = -torch.min(ratio * a, bounded * a)
        if correction is not None:
            loss = loss * mismatch_weights(correction, old[rows] - sampler[rows], m)
        d = ref[rows] - logprobs
        loss = (loss + KL_COEF * (d.exp() - d - 1)) * m
        if method.trl in ("grpo", "gspo"):
            return (loss.sum(1) / m.sum(1).clamp(min=1)).mean() / accumulation
        if method.trl == "bnpo":
            return loss.sum() / m.sum().clamp(min=1) / accumulation
        if method.trl == "dr_grpo":
            return loss.sum() / (len(rows) * MAX_TOKENS) / accumulation
        return loss.sum() / (mask.sum() / len(cut))  # dapo and cispo: tokens of the step for each rank

    total = torch.stack([micro_batch(rows, len(rank)) for rank in cut for rows in rank]).sum() / len(cut)
    total.backward()
    assert new.grad is not None
    return total.item(), [row[:n].tolist() for row, n in zip(new.grad, LENGTHS, strict=True)]


def mismatch_weights(correction: Correction, gap: Tensor, mask: Tensor) -> Tensor:
    if correction.kind == "seq_sum":
        gap = (gap * mask).sum(1, keepdim=True)
    if correction.kind == "seq_geo":
        gap = (gap * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    weights = gap.exp()
    if correction.kind == "token_mask":
        return weights * ((weights >= correction.low) & (weights <= correction.high))
    return weights.clamp(correction.low, correction.high)


# ---- loops and scalars


def loops(method: Method, correction: Correction | None, cut: Cut) -> tuple[float, list[list[float]]]:
    advantages = scalar_advantages(method.scale)
    micro_batches = [rows for rank in cut for rows in rank]
    total, gradients = 0.0, [[0.0] * n for n in LENGTHS]
    for rows in micro_batches:
        for i in rows:
            if i == MASKED:
                continue
            factor = {
                "grpo": 1 / (len(RATIOS) * LENGTHS[i]),
                "bnpo": 1 / (len(micro_batches) * sum(LENGTHS[j] for j in rows if j != MASKED)),
                "dr_grpo": 1 / (len(RATIOS) * MAX_TOKENS),
                "dapo": 1 / sum(LENGTHS[j] for j in ROWS if j != MASKED),
            }[{"gspo": "grpo", "cispo": "dapo"}.get(method.trl, method.trl)]
            weights = scalar_weights(correction, MISMATCH[i])
            geometric = prod(RATIOS[i]) ** (1 / LENGTHS[i])
            for t, ratio in enumerate(RATIOS[i]):
                if method.trl == "gspo":  # one term of each token, each moved by each log-probability
                    value, slope = clipped(geometric, advantages[i], None)
                    slope *= sum(weights) / LENGTHS[i]
                elif method.trl == "cispo":
                    slope = -min(ratio, CAP) * advantages[i]
                    value, slope = slope * NEW[i][t], slope * weights[t]
                else:
                    value, slope = clipped(ratio, advantages[i], method.dual_clip)
                    slope *= weights[t]
                d = REF[i][t] - NEW[i][t]
                total += factor * (weights[t] * value + KL_COEF * (exp(d) - d - 1))
                gradients[i][t] = factor * (slope + KL_COEF * (1 - exp(d)))
    return total, gradients


def clipped(ratio: float, advantage: float, dual_clip: float | None) -> tuple[float, float]:
    """Value, and derivative by the log of the ratio."""
    if advantage > 0:
        moves = ratio < 1 + HIGH
        return -advantage * min(ratio, 1 + HIGH), -advantage * ratio if moves else 0.0
    moves = ratio > 1 - LOW and (dual_clip is None or ratio < dual_clip)
    bounded = max(ratio, 1 - LOW) if dual_clip is None else min(max(ratio, 1 - LOW), dual_clip)
    return -advantage * bounded, -advantage * ratio if moves else 0.0


def scalar_advantages(scale: AdvantageScale) -> list[float]:
    result = []
    for begin in range(0, len(REWARDS), GROUP):
        group = REWARDS[begin : begin + GROUP]
        valid = [reward for reward in group if not isnan(reward)]
        divisor = 1.0
        if scale == "group":
            divisor = stdev(valid) + EPS
        elif scale == "batch":
            divisor = stdev([reward for reward in REWARDS if not isnan(reward)]) + EPS
        result += [0.0 if isnan(reward) else (reward - mean(valid)) / divisor for reward in group]
    return result


def scalar_weights(correction: Correction | None, ratios: list[float]) -> list[float]:
    if correction is None:
        return [1.0] * len(ratios)
    if correction.kind == "token_mask":
        return [r if correction.low <= r <= correction.high else 0.0 for r in ratios]
    of_completion = prod(ratios) if correction.kind == "seq_sum" else prod(ratios) ** (1 / len(ratios))
    chosen = ratios if correction.kind == "token_tis" else [of_completion] * len(ratios)
    return [min(max(r, correction.low), correction.high) for r in chosen]


# ---- the comparison


def assert_same(one: tuple[float, list[list[float]]], other: tuple[float, list[list[float]]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=0, abs=1e-6)
    assert len(one[1]) == len(other[1]) == len(RATIOS)
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert mine == pytest.approx(theirs, rel=0, abs=1e-6)


@pytest.mark.parametrize("correction", CORRECTIONS, ids=kind_of)
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_loss_and_gradient_equal_both_definitions(method: Method, cut: Cut, correction: Correction | None) -> None:
    result = ours(method, correction, cut)
    assert_same(result, rectangle(method, correction, cut))
    assert_same(result, loops(method, correction, cut))


def regions(values: Sequence[float], edges: Sequence[float]) -> set[int]:
    return {sum(value > edge for edge in edges) for value in values}


def test_the_inputs_cross_every_edge() -> None:
    advantages = scalar_advantages("group")
    assert advantages[4:8] == pytest.approx([0.0] * 4, abs=1e-9), "a group without variance"
    trained = [i for i in ROWS if i != MASKED]
    for sign in (-1, 1):
        rows = [i for i in trained if sign * advantages[i] > 0.01]
        assert regions([r for i in rows for r in RATIOS[i]], [1 - LOW, 1 + HIGH, DUAL, CAP]) == {0, 1, 2, 3, 4}
        assert regions([prod(RATIOS[i]) ** (1 / LENGTHS[i]) for i in rows], [1 - LOW, 1 + HIGH]) == {0, 1, 2}
    weights = [MISMATCH[i] for i in trained if abs(advantages[i]) > 0.01]
    for of_completion in (
        [w for row in weights for w in row],
        [prod(row) for row in weights],
        [prod(row) ** (1 / len(row)) for row in weights],
    ):
        assert regions(of_completion, [0.5, 2.0]) == {0, 1, 2}


def test_no_two_methods_agree_on_these_inputs() -> None:
    cut = CUTS["W1K4"]
    gradients = [ours(method, correction, cut)[1] for method in METHODS.values() for correction in CORRECTIONS]
    flattened = [torch.tensor([g for row in gradient for g in row]) for gradient in gradients]
    distances = torch.stack([torch.stack([(a - b).abs().max() for b in flattened]) for a in flattened])
    assert (distances + torch.eye(len(flattened))).min() > 1e-4


ANY_CUT = st.tuples(st.permutations(ROWS), st.sets(st.integers(1, len(RATIOS) - 1), max_size=6))


@settings(max_examples=40, deadline=None)
@given(ANY_CUT, st.sampled_from([method for method in METHODS.values() if method.reduction != "micro_batch"]))
def test_a_step_does_not_depend_on_how_it_is_cut(cut: tuple[list[int], set[int]], method: Method) -> None:
    order, edges = cut
    bounds = [0, *sorted(edges), len(order)]
    micro_batches = [order[begin:end] for begin, end in pairwise(bounds)]
    correction = CORRECTIONS[-1]
    assert_same(ours(method, correction, [micro_batches]), loops(method, correction, CUTS["W1K1"]))


def test_the_mean_of_micro_batches_does() -> None:
    method = METHODS["bnpo"]
    assert ours(method, None, CUTS["W1K1"])[0] != pytest.approx(ours(method, None, CUTS["W1K4"])[0], abs=1e-3)
