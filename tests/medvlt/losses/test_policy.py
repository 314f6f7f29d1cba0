# SPDX-License-Identifier: Apache-2.0
"""Losses of single tokens by hand; `test_definitions.py` compares whole steps."""

from __future__ import annotations

from math import inf, log, nan

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from medvlt.errors import ConfigurationError
from medvlt.losses.policy import CISPOLoss, ClippedLoss, GSPOLoss, PolicyLoss, TokenLosses, completion_sums


def evaluate(
    loss: PolicyLoss, ratios: list[float], advantages: list[float], lengths: list[int] | None = None
) -> tuple[TokenLosses, list[float]]:
    """The losses of tokens with these ratios, and the derivative of their sum by each log-probability."""
    logprobs = torch.tensor([-2.0 + 0.1 * t for t in range(len(ratios))], dtype=torch.float64, requires_grad=True)
    old = logprobs.detach() - torch.tensor(ratios, dtype=torch.float64).log()
    result = loss(logprobs, old, torch.tensor(advantages, dtype=torch.float64), torch.tensor(lengths or [len(ratios)]))
    (gradient,) = torch.autograd.grad(result.losses.sum(), logprobs)
    return result, gradient.tolist()


# ratio, advantage, loss, derivative by the log-probability, clipped low, clipped high; bounds 0.2 and 0.28
CLIPPED = [
    (1.0, 2.0, -2.0, -2.0, False, False),
    (0.5, 2.0, -1.0, -1.0, False, False),
    (1.27, 2.0, -2.54, -2.54, False, False),
    (1.29, 2.0, -2.56, 0.0, False, True),
    (9.0, 2.0, -2.56, 0.0, False, True),
    (1.0, -2.0, 2.0, 2.0, False, False),
    (0.81, -2.0, 1.62, 1.62, False, False),
    (0.79, -2.0, 1.6, 0.0, True, False),
    (1.29, -2.0, 2.58, 2.58, False, False),
    (2.9, -2.0, 5.8, 5.8, False, False),
    (1.5, 0.0, 0.0, 0.0, False, False),
    (0.5, 0.0, 0.0, 0.0, False, False),
]


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_clipped_loss_by_hand(dual_clip: float | None) -> None:
    ratios, advantages, losses, slopes, low, high = (list(column) for column in zip(*CLIPPED, strict=True))
    result, gradient = evaluate(ClippedLoss(0.2, 0.28, dual_clip), ratios, advantages)
    assert result.losses.tolist() == pytest.approx(losses)
    assert gradient == pytest.approx(slopes)
    assert result.clipped_low.tolist() == low
    assert result.clipped_high.tolist() == high


@pytest.mark.parametrize(
    ("dual_clip", "ratio", "advantage", "loss", "slope", "clipped"),
    [
        (3.0, 3.1, -2.0, 6.0, 0.0, (False, False)),
        (None, 3.1, -2.0, 6.2, 6.2, (False, False)),
        (3.0, 3.1, 2.0, -2.4, 0.0, (False, True)),  # only wrong completions are bounded
        (1.1, 1.15, -2.0, 2.2, 0.0, (False, False)),  # below 1 + clip_high
        (1.1, 1.15, 2.0, -2.3, -2.3, (False, False)),
        (1.1, 0.5, -2.0, 1.6, 0.0, (True, False)),
    ],
)
def test_dual_clip(
    dual_clip: float | None, ratio: float, advantage: float, loss: float, slope: float, clipped: tuple[bool, bool]
) -> None:
    result, gradient = evaluate(ClippedLoss(0.2, 0.2, dual_clip), [ratio], [advantage])
    assert result.losses.item() == pytest.approx(loss)
    assert gradient == pytest.approx([slope], abs=1e-12)
    assert (result.clipped_low.item(), result.clipped_high.item()) == clipped


def test_defaults_are_those_of_the_reference() -> None:
    result, _ = evaluate(ClippedLoss(), [0.5, 3.5, 1.5], [-1.0, -1.0, 1.0])
    assert result.losses.tolist() == pytest.approx([0.8, 3.0, -1.2])


def test_the_first_update_is_the_policy_gradient() -> None:
    """At ratio 1 the value is -A and says nothing; the gradient is that of -A log p for all three."""
    for loss in (ClippedLoss(), CISPOLoss(), GSPOLoss()):
        _, gradient = evaluate(loss, [1.0] * 5, [0.5, 0.5, 0.5, -2.0, -2.0], [3, 2])
        assert gradient == pytest.approx([-0.5, -0.5, -0.5, 2.0, 2.0])


def test_gspo_has_one_ratio_per_completion() -> None:
    # geometric means 1, 2 and 0.5; then an empty completion
    ratios, lengths = [2.0, 0.5, 2.0, 2.0, 2.0, 0.5], [2, 3, 1, 0]
    advantages = [1.0, 1.0, -1.0, -1.0, -1.0, -1.0]
    result, gradient = evaluate(GSPOLoss(0.2, 0.2), ratios, advantages, lengths)
    assert result.losses.tolist() == pytest.approx([-1.0, -1.0, 2.0, 2.0, 2.0, 0.8])
    # each of |o| equal losses moves by s A / |o| with each log-probability; the last is clipped
    assert gradient == pytest.approx([-1.0, -1.0, 2.0, 2.0, 2.0, 0.0])
    assert result.clipped_low.tolist() == [False] * 5 + [True]
    assert not result.clipped_high.any()


def test_gspo_bounds_are_those_of_a_mean() -> None:
    inside, outside = 1 + 3e-4, 1 + 5e-4
    result, gradient = evaluate(GSPOLoss(), [inside, outside, 1 / inside], [1.0, 1.0, -1.0], [1, 1, 1])
    assert result.losses.tolist() == pytest.approx([-inside, -1.0004, 1 / inside], abs=1e-9)
    assert result.clipped_high.tolist() == [False, True, False]
    assert gradient[1] == 0
    result, gradient = evaluate(GSPOLoss(), [1 - 4e-4], [-1.0])
    assert result.losses.item() == pytest.approx(1 - 3e-4, abs=1e-9)
    assert result.clipped_low.item()


def test_cispo_keeps_a_gradient_beyond_the_cap() -> None:
    ratios = [0.1, 1.0, 4.9, 5.1, 5.1]
    result, gradient = evaluate(CISPOLoss(), ratios, [2.0, 2.0, 2.0, 2.0, -2.0])
    assert gradient == pytest.approx([-0.2, -2.0, -9.8, -10.0, 10.0])
    assert result.losses.tolist() == pytest.approx([0.4, 3.8, 17.64, 17.0, -16.0])
    # as TRL counts: the cap acts on the last token too
    assert result.clipped_high.tolist() == [False, False, False, True, False]
    assert not result.clipped_low.any()


def test_cispo_bounds_are_distances_from_1() -> None:
    """verl's clip(rho, 1 - low, 1 + high); as TRL's absolute cap, a `clip_high` of 0.28 would shrink every token."""
    result, gradient = evaluate(CISPOLoss(0.2, 0.28), [0.5, 1.0, 2.0, 0.5, 2.0], [1.0, 1.0, 1.0, -1.0, -1.0])
    assert gradient == pytest.approx([-0.8, -1.0, -1.28, 0.8, 1.28])
    assert result.clipped_low.tolist() == [False, False, False, True, False]
    assert result.clipped_high.tolist() == [False, False, True, False, False]


LOSSES = [ClippedLoss(), ClippedLoss(dual_clip=None), GSPOLoss(), CISPOLoss(), CISPOLoss(clip_low=0.2)]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_hopeless_ratio_spoils_nothing(loss: PolicyLoss) -> None:
    """exp(500) is infinite; its product with an advantage or a gradient of zero would be NaN."""
    logprobs = torch.tensor([-0.1, -0.1, -0.1, -500.0, -500.0], requires_grad=True)
    old = torch.tensor([-500.0, -500.0, -500.0, -0.1, -0.1])
    result = loss(logprobs, old, torch.tensor([1.0, 0.0, -1.0, 1.0, -1.0]), torch.tensor([1] * 5))
    result.losses.sum().backward()
    assert logprobs.grad is not None
    assert result.losses.isfinite().all()
    assert logprobs.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_type_is_kept(loss: PolicyLoss, dtype: torch.dtype) -> None:
    values = torch.tensor([-1.0, -2.0], dtype=dtype)
    result = loss(values, values, torch.ones(2, dtype=dtype), torch.tensor([2]))
    assert (result.losses.dtype, result.clipped_low.dtype) == (dtype, torch.bool)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_micro_batch_without_tokens_has_no_losses(loss: PolicyLoss) -> None:
    nothing = torch.zeros(0, requires_grad=True)
    result = loss(nothing, nothing.detach(), nothing.detach(), torch.tensor([0, 0]))
    result.losses.sum().backward()
    assert result.losses.shape == result.clipped_low.shape == result.clipped_high.shape == (0,)


def test_a_completion_without_tokens_leaves_no_nan_behind() -> None:
    logprobs = torch.tensor([-1.0], requires_grad=True)
    with torch.autograd.set_detect_anomaly(True):  # `trainer.detect_anomaly` looks at every intermediate gradient
        GSPOLoss()(logprobs, logprobs.detach(), torch.ones(1), torch.tensor([0, 1])).losses.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-1.0]


@pytest.mark.parametrize("lengths", [[2, 3], [0, 5, 0], [1, 1, 1, 1, 1]])
def test_completion_sums_are_slices(lengths: list[int]) -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
    expected = [part.sum().item() for part in values.split(lengths)]
    assert completion_sums(values, torch.tensor(lengths)).tolist() == expected


def test_lengths_must_cover_the_tokens() -> None:
    with pytest.raises(RuntimeError, match="size"):
        GSPOLoss()(torch.zeros(4), torch.zeros(4), torch.zeros(4), torch.tensor([2, 1]))


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: ClippedLoss(clip_low=1.0), "clip_low"),
        (lambda: ClippedLoss(clip_low=-0.1), "clip_low"),
        (lambda: ClippedLoss(clip_high=-0.1), "clip_high"),
        (lambda: ClippedLoss(clip_high=nan), "clip_high"),
        (lambda: ClippedLoss(dual_clip=1.0), "dual_clip"),
        (lambda: ClippedLoss(dual_clip=nan), "dual_clip"),
        (lambda: GSPOLoss(clip_low=1.5), "clip_low"),
        (lambda: GSPOLoss(clip_high=inf), "clip_high"),
        (lambda: CISPOLoss(clip_low=1.0), "clip_low"),
        (lambda: CISPOLoss(clip_high=-1.0), "clip_high"),
    ],
)
def test_bounds_out_of_range_are_refused(build: object, name: str) -> None:
    assert callable(build)
    with pytest.raises(ConfigurationError, match=f"expected {name} "):
        build()


@pytest.mark.parametrize(
    ("arguments", "ratio", "expected"),
    [
        ({"class_path": "medvlt.losses.policy.ClippedLoss", "init_args": {"dual_clip": None}}, 4.0, 4.0),
        ({"class_path": "medvlt.losses.policy.GSPOLoss", "init_args": {"clip_low": 0.1}}, 0.5, 0.9),
        ({"class_path": "medvlt.losses.policy.CISPOLoss", "init_args": {"clip_low": 0.1}}, 0.5, -0.9 * log(0.5)),
    ],
)
def test_yaml_can_name_them(arguments: dict[str, object], ratio: float, expected: float) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--policy_loss", type=PolicyLoss)
    loss = parser.instantiate_classes(parser.parse_object({"policy_loss": arguments})).policy_loss
    logprobs: Tensor = torch.tensor([log(0.5)])
    result = loss(logprobs, logprobs - log(ratio), torch.tensor([-1.0]), torch.tensor([1]))
    assert abs(result.losses.item()) == pytest.approx(abs(expected), rel=1e-6)
