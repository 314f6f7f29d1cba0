# SPDX-License-Identifier: Apache-2.0
"""Drawing tokens: the distribution after temperature and truncation, and inverse-CDF sampling from given uniforms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medvlt.types import SamplingParams


def processed_logprobs(logits: Tensor, params: SamplingParams) -> Tensor:
    """Returns the log-probabilities of the distribution that is sampled from.

    Temperature first, then top-k, then top-p over what is left, renormalised: the order of vLLM. Greedy decoding
    reports the distribution at temperature 1.

    Args:
        logits: (B, V), -inf where a token is banned.
        params: Temperature and truncation.

    Returns:
        (B, V); -inf for tokens that cannot be drawn.
    """
    if params.temperature == 0:
        return logits.log_softmax(-1)
    logits = logits / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        least = logits.topk(params.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if params.top_p < 1:
        ordered, order = logits.sort(descending=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        outside = torch.zeros_like(mass_before, dtype=torch.bool).scatter(-1, order, mass_before >= params.top_p)
        logits = logits.masked_fill(outside, -torch.inf)
    return logits.log_softmax(-1)


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """Returns `count` numbers in [0, 1) for each seed, (len(seeds), count), float64: all randomness of a completion."""
    generator = torch.Generator()
    return torch.stack(
        [torch.rand(count, generator=generator.manual_seed(seed), dtype=torch.float64) for seed in seeds]
    )


def sample_tokens(logprobs: Tensor, uniform: Tensor, *, greedy: bool) -> Tensor:
    """Draws one token per row.

    Args:
        logprobs: (B, V), normalised.
        uniform: One number in [0, 1) per row, (B,). The token is the first whose cumulative probability exceeds it,
            so a token of probability zero is never drawn.
        greedy: Take the likeliest token instead, the lowest id among equals.

    Returns:
        Token ids, (B,).
    """
    if greedy:
        return logprobs.argmax(-1)
    cumulative = logprobs.double().exp().cumsum(-1)
    thresholds = (uniform.double() * cumulative[:, -1])[:, None]
    return torch.searchsorted(cumulative, thresholds, right=True)[:, 0].clamp_max(logprobs.shape[-1] - 1)
