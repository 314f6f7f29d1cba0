# SPDX-License-Identifier: Apache-2.0
"""The output head: log-probabilities of chosen tokens without the `[tokens, vocabulary]` matrix of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_TOKENS = 128
"""Rows of logits alive at a time. torch's own default is about one row at Qwen's vocabulary and 9 times slower."""


BANNED = -1e30
"""Added to the logit of a token that cannot occur: its probability and its gradient are exactly zero."""


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, banned: Tensor | None = None
) -> Tensor:
    """Returns log softmax(hidden weight^T / temperature)[target] for each row.

    Memory is O(CHUNK_TOKENS * V), forward and backward. Uses `torch.nn.functional.linear_cross_entropy` where the
    installed torch has it (2.13) and `chunked_token_logprobs` elsewhere.

    Args:
        hidden: Hidden states that predict the targets, (N, D), carries the gradient.
        weight: Output embedding, (V, D).
        targets: Token ids in [0, V), (N,).
        temperature: Divides the logits, above 0. Must equal the sampling temperature for a ratio to be meaningful.
        banned: Ids that the distribution leaves out, (K,), none of them a target; what a sampler never draws must not
            take probability from what it draws.

    Returns:
        Natural log-probabilities, (N,), float32.
    """
    # the fused kernel rounds its result to the type of its input
    if not hasattr(F, "linear_cross_entropy") or weight.dtype in (torch.bfloat16, torch.float16):
        return chunked_token_logprobs(hidden, weight, targets, temperature=temperature, banned=banned)
    if len(targets) == 0:  # the fused kernel divides by the number of rows
        return hidden.sum(-1).float()
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK_TOKENS)
    with torch.autocast(hidden.device.type, enabled=False):
        scaled = hidden.to(weight.dtype) / temperature
        nll: Tensor = F.linear_cross_entropy(
            scaled, weight, targets, linear_bias=_ban(weight, banned), reduction="none", options=options
        )
    return -nll.float()


def token_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Returns hidden weight^T in the precision of the weight, also under autocast, as float32.

    Every log-probability here is computed from these logits, those of a sampler and those of the trainer, so that the
    two agree; bfloat16 logits of size 30 are off by up to 0.1.

    Args:
        hidden: (N, D).
        weight: (V, D).

    Returns:
        (N, V), float32.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.to(weight.dtype), weight).float()


def chunked_token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, banned: Tensor | None = None
) -> Tensor:
    """`token_logprobs` from matmul and logsumexp alone, each chunk of logits computed again in the backward pass."""
    bias = _ban(weight, banned)

    def chunk_logprobs(rows: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        logits = token_logits(rows, weight) / temperature
        if bias is not None:
            logits = logits + bias.float()
        return logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)

    chunks = zip(torch.split(hidden, CHUNK_TOKENS), torch.split(targets, CHUNK_TOKENS), strict=True)
    return torch.cat([checkpoint(chunk_logprobs, rows, weight, chosen, use_reentrant=False) for rows, chosen in chunks])


def _ban(weight: Tensor, banned: Tensor | None) -> Tensor | None:
    if banned is None:
        return None
    return torch.zeros(len(weight), dtype=weight.dtype, device=weight.device).index_fill_(0, banned, BANNED)
