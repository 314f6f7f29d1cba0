# SPDX-License-Identifier: Apache-2.0
"""Weights for the mismatch between the engine that sampled a token and the trainer that learns from it.

The two compute the same distribution with different kernels, so their log-probabilities differ a little, and the policy
gradient is taken under one distribution with samples of another. An importance weight mends that, and a bound on it
limits the variance. With top-p, top-k or another truncated sampling the ratio also holds the mass that was cut off,
and no weight here mends that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from medvlt.errors import ConfigurationError
from medvlt.losses.policy import MAX_LOG_RATIO, completion_sums

CorrectionKind: TypeAlias = Literal["token_tis", "token_mask", "seq_geo", "seq_sum"]
"""Which ratio is the weight; r = exp(old_logprobs - sampler_logprobs).

- `token_tis`: r of the token, clipped (truncated importance sampling).
- `token_mask`: r of the token, 0 outside the bounds (IcePop, arXiv 2510.18855).
- `seq_geo`: the geometric mean of r over the completion, clipped. Comparable between lengths.
- `seq_sum`: the product of r over the completion, exp of the plain sum, clipped. The importance weight of the whole
  completion, and it runs off with its length: 1000 tokens that are each off by 0.001 make 2.7. Other tools call either
  of the last two "sequence".
"""


@dataclass(frozen=True)
class Correction:
    """Settings of the correction.

    Attributes:
        kind: See `CorrectionKind`.
        low: Lower bound of the weight, in [0, 1]; 0 is none.
        high: Upper bound of the weight, at least 1; `.inf` is none.

    Raises:
        ConfigurationError: If `kind` is unknown, or if 1, the weight of a token on which both agree, is not inside the
            bounds.
    """

    kind: CorrectionKind
    low: float = 0.0
    high: float = 2.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(CorrectionKind):
            known = ", ".join(get_args(CorrectionKind))
            raise ConfigurationError(f"expected one of the corrections {known}; got {self.kind!r}; use one of these")
        if not 0 <= self.low <= 1 <= self.high:
            raise ConfigurationError(
                f"expected 0 <= low <= 1 <= high, got low={self.low} and high={self.high}; the bounds are ratios, and "
                "a token on which engine and trainer agree has ratio 1"
            )


@torch.no_grad()
def correction_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, lengths: Tensor, settings: Correction) -> Tensor:
    """Returns the weight of each token, which multiplies the policy loss only, not the KL penalty.

    Args:
        old_logprobs: The trainer's log-probabilities at the start of the update, (N,), natural log.
        sampler_logprobs: Those the engine reported for the distribution it sampled from, (N,): after temperature, as
            the trainer's.
        lengths: Tokens of each completion, (C,), int64, sum N; 0 is allowed.
        settings: Kind and bounds.

    Returns:
        (N,), without gradient, in the type of the log-probabilities.
    """
    log_ratio = old_logprobs - sampler_logprobs
    if settings.kind in ("seq_geo", "seq_sum"):
        totals = completion_sums(log_ratio, lengths)
        if settings.kind == "seq_geo":
            totals = totals / lengths  # a completion without tokens has NaN, which no token gets
        log_ratio = totals.repeat_interleave(lengths, output_size=len(log_ratio))
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()  # an infinite one times a weight of zero would be NaN
    if settings.kind == "token_mask":
        return torch.where((ratio >= settings.low) & (ratio <= settings.high), ratio, 0.0)
    return ratio.clamp(settings.low, settings.high)
