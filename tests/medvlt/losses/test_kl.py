# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from math import exp, log

import pytest
import torch
from torch import Tensor

from medvlt.errors import ConfigurationError
from medvlt.losses.kl import KLEstimator, kl_penalty

SCALAR: dict[KLEstimator, Callable[[float], float]] = {
    "k1": lambda d: -d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: exp(d) - d - 1,
}
SLOPE: dict[KLEstimator, Callable[[float], float]] = {
    "k1": lambda d: 1.0,
    "k2": lambda d: -d,
    "k3": lambda d: 1 - exp(d),
}
"""Derivative of the penalty by the policy's log-probability."""
ESTIMATORS: list[KLEstimator] = ["k1", "k2", "k3"]
GAPS = [-30.0, -12.0, -2.0, -0.1, 0.0, 1e-3, 0.7, 2.2, 2.6, 25.0]


def penalties(gaps: list[float], estimator: KLEstimator, clamp: float | None) -> tuple[list[float], list[float]]:
    """Penalty of each log-ratio ref - policy, and its derivative by the policy's log-probability."""
    logprobs = torch.full((len(gaps),), -1.5, dtype=torch.float64, requires_grad=True)
    result = kl_penalty(logprobs, -1.5 + torch.tensor(gaps, dtype=torch.float64), estimator=estimator, clamp=clamp)
    (gradient,) = torch.autograd.grad(result.sum(), logprobs)
    return result.tolist(), gradient.tolist()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_without_clamp_it_is_the_formula(estimator: KLEstimator) -> None:
    values, slopes = penalties(GAPS, estimator, None)
    assert values == pytest.approx([SCALAR[estimator](d) for d in GAPS], rel=1e-9, abs=1e-12)
    assert slopes == pytest.approx([SLOPE[estimator](d) for d in GAPS], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("clamp", [10.0, 1e3])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_clamp_bounds_log_ratio_and_result(estimator: KLEstimator, clamp: float) -> None:
    values, slopes = penalties(GAPS, estimator, clamp)
    inside = [SCALAR[estimator](min(max(d, -20.0), 20.0)) for d in GAPS]
    assert values == pytest.approx([min(max(value, -clamp), clamp) for value in inside], rel=1e-9, abs=1e-12)
    moves = [abs(d) < 20 and abs(value) < clamp for d, value in zip(GAPS, inside, strict=True)]
    assert slopes == pytest.approx(
        [SLOPE[estimator](d) if m else 0.0 for d, m in zip(GAPS, moves, strict=True)], rel=1e-9, abs=1e-12
    )
    assert {True, False} == set(moves)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum()


@pytest.fixture
def logits() -> Tensor:
    return torch.tensor([0.3, -1.0, 1.2, 0.0], dtype=torch.float64, requires_grad=True)


REFERENCE = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)


@pytest.mark.parametrize(("estimator", "biased"), [("k1", False), ("k2", True), ("k3", False)])
def test_the_value_expected_over_the_whole_vocabulary(estimator: KLEstimator, biased: bool, logits: Tensor) -> None:
    policy = logits.detach().softmax(0)
    expected = (policy * kl_penalty(policy.log(), REFERENCE.log(), estimator=estimator)).sum()
    assert (expected.item() != pytest.approx(kl(policy, REFERENCE).item(), rel=1e-3)) == biased


@pytest.mark.parametrize(
    ("estimator", "divergence"),
    [
        ("k1", lambda policy: (policy * 0).sum()),
        ("k2", lambda policy: kl(policy, REFERENCE)),
        ("k3", lambda policy: kl(REFERENCE, policy)),
    ],
)
def test_the_gradient_expected_over_the_whole_vocabulary(
    estimator: KLEstimator, divergence: Callable[[Tensor], Tensor], logits: Tensor
) -> None:
    logprobs = logits.log_softmax(0)
    sampled = logprobs.exp().detach()  # a loss is differentiated for tokens that were drawn already
    (gradient,) = torch.autograd.grad(
        (sampled * kl_penalty(logprobs, REFERENCE.log(), estimator=estimator)).sum(), logits
    )
    (expected,) = torch.autograd.grad(divergence(logits.softmax(0)), logits)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_k3_keeps_its_digits_where_the_two_nearly_agree() -> None:
    gaps = 2.0 ** -torch.arange(9.0, 14.0)
    exact = [d**2 / 2 + d**3 / 6 + d**4 / 24 for d in gaps.tolist()]
    assert kl_penalty(torch.zeros(5), gaps).tolist() == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_type_is_kept(estimator: KLEstimator, dtype: torch.dtype) -> None:
    logprobs = torch.tensor([log(0.5)], dtype=dtype)
    assert kl_penalty(logprobs, logprobs - 1, estimator=estimator, clamp=10).dtype == dtype


@pytest.mark.parametrize("clamp", [0.0, -10.0, float("nan")])
def test_a_clamp_that_leaves_no_penalty_is_refused(clamp: float) -> None:
    with pytest.raises(ConfigurationError, match="above 0"):
        kl_penalty(torch.zeros(1), torch.zeros(1), clamp=clamp)
