# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from math import inf, nan, prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medvlt.errors import ConfigurationError
from medvlt.losses.correction import Correction, CorrectionKind, correction_weights

KINDS: list[CorrectionKind] = ["token_tis", "token_mask", "seq_geo", "seq_sum"]


def weights(ratios: list[list[float]], settings: Correction) -> list[float]:
    """Weights of completions that are given as exp(old - sampler) of their tokens."""
    flat = torch.tensor([r for row in ratios for r in row], dtype=torch.float64)
    sampler = torch.linspace(-3, -0.1, len(flat), dtype=torch.float64)
    lengths = torch.tensor([len(row) for row in ratios])
    return correction_weights(sampler + flat.log(), sampler, lengths, settings).tolist()


RATIOS = [[0.25, 1.0, 2.0], [], [1.5, 1.5], [4.0], [0.5, 0.25]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("token_tis", [0.4, 1.0, 2.0, 1.5, 1.5, 3.0, 0.5, 0.4]),
        ("token_mask", [0.0, 1.0, 2.0, 1.5, 1.5, 0.0, 0.5, 0.0]),
        ("seq_geo", [0.7937005] * 3 + [1.5] * 2 + [3.0] + [0.4] * 2),  # 0.5 ** (1/3); 0.125 ** (1/2) is below 0.4
        ("seq_sum", [0.5] * 3 + [2.25] * 2 + [3.0] + [0.4] * 2),
    ],
)
def test_weights_by_hand(kind: CorrectionKind, expected: list[float]) -> None:
    assert weights(RATIOS, Correction(kind, low=0.4, high=3.0)) == pytest.approx(expected, abs=1e-7)


def test_the_bounds_themselves_are_inside() -> None:
    assert weights([[1.0, 1.01, 0.99]], Correction("token_mask", low=1.0, high=1.0)) == [1.0, 0.0, 0.0]


ROW = st.lists(st.floats(0.05, 8.0), max_size=5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=5), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([1.0, 2.0, 5.0, inf]))
def test_equals_the_definition(kind: CorrectionKind, ratios: list[list[float]], low: float, high: float) -> None:
    expected: list[float] = []
    for row in ratios:
        if kind == "token_mask":
            expected += [r if low - 1e-9 <= r <= high + 1e-9 else 0.0 for r in row]
            continue
        product = prod(row)
        chosen = {"token_tis": row, "seq_geo": [product ** (1 / max(len(row), 1))] * len(row)}.get(
            kind, [product] * len(row)
        )
        expected += [min(max(r, low), high) for r in chosen]
    at_the_edge = any(abs(r - bound) < 1e-9 for row in ratios for r in row for bound in (low, high))
    if not (kind == "token_mask" and at_the_edge):  # there the last digit of exp(log(r)) decides
        assert weights(ratios, Correction(kind, low, high)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_only_the_plain_sum_runs_off_with_the_length() -> None:
    ratios = [[1.001] * 1000]
    assert weights(ratios, Correction("seq_sum", high=10.0))[0] == pytest.approx(2.7169, abs=1e-4)
    assert weights(ratios, Correction("seq_geo", high=10.0))[0] == pytest.approx(1.001)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_passes(kind: CorrectionKind) -> None:
    old, sampler = (torch.tensor([-1.0, -2.0], requires_grad=True) for _ in range(2))
    result = correction_weights(old, sampler, torch.tensor([2]), Correction(kind))
    assert not result.requires_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_type_is_kept(kind: CorrectionKind, dtype: torch.dtype) -> None:
    old = torch.tensor([-1.0, -2.0], dtype=dtype)
    assert correction_weights(old, old, torch.tensor([2]), Correction(kind)).dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_a_hopeless_token_has_a_finite_weight(kind: CorrectionKind) -> None:
    old = torch.tensor([-0.1, -500.0])
    sampler = torch.tensor([-500.0, -0.1])
    result: Tensor = correction_weights(old, sampler, torch.tensor([1, 1]), Correction(kind, low=0.1, high=2.0))
    assert result.tolist() == pytest.approx([0.0, 0.0] if kind == "token_mask" else [2.0, 0.1])


def test_no_completions_have_no_weights() -> None:
    nothing = torch.zeros(0)
    assert correction_weights(nothing, nothing, torch.zeros(0, dtype=torch.int64), Correction("seq_geo")).shape == (0,)


@pytest.mark.parametrize(("low", "high"), [(-0.1, 2.0), (1.1, 2.0), (0.0, 0.9), (nan, 2.0), (0.0, nan)])
def test_bounds_that_leave_out_1_are_refused(low: float, high: float) -> None:
    with pytest.raises(ConfigurationError, match="low <= 1 <= high"):
        Correction("token_tis", low, high)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="seq_geo"):
        Correction("sequence")  # type: ignore[arg-type]
