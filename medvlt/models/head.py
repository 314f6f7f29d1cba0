# SPDX-License-Identifier: Apache-2.0
"""The output head: log-probabilities of chosen tokens without the `[tokens, vocabulary]` matrix of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_TOKENS = 128
"""Rows of logits alive at a time. torch's own default is about one row at Qwen's vocabulary and 9 times slower."""


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Returns log softmax(hidden weight^T / temperature)[target] for each row.

    Memory is O(CHUNK_TOKENS * V), forward and backward. Uses `torch.nn.functional.linear_cross_entropy` where the
    installed torch has it (2.13) and `chunked_token_logprobs` elsewhere.

    Args:
        hidden: Hidden states that predict the targets, (N, D), carries the gradient.
        weight: Output embedding, (V, D).
        targets: Token ids in [0, V), (N,).
        temperature: Divides the logits, above 0. Must equal the sampling temperature for a ratio to be meaningful.

    Returns:
        Natural log-probabilities, (N,), float32.
    """
    if not hasattr(F, "linear_cross_entropy"):
        return chunked_token_logprobs(hidden, weight, targets, temperature=temperature)
    if len(targets) == 0:  # the fused kernel divides by the number of rows
        return hidden.sum(-1).float()
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK_TOKENS)
    nll: Tensor = F.linear_cross_entropy(hidden / temperature, weight, targets, reduction="none", options=options)
    return -nll.float()


def chunked_token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """`token_logprobs` from matmul and logsumexp alone, each chunk of logits computed again in the backward pass."""

    def chunk_logprobs(rows: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        logits = F.linear(rows, weight).float() / temperature
        return logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)

    chunks = zip(torch.split(hidden, CHUNK_TOKENS), torch.split(targets, CHUNK_TOKENS), strict=True)
    return torch.cat([checkpoint(chunk_logprobs, rows, weight, chosen, use_reentrant=False) for rows, chosen in chunks])


@torch.no_grad()
def token_entropy(hidden: Tensor, weight: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Returns the entropy -sum_v p_v log p_v of the next-token distribution of each row.

    Args:
        hidden: (N, D).
        weight: (V, D).
        temperature: Divides the logits, above 0.

    Returns:
        Entropies in nats, (N,), in [0, log V], no gradient.
    """
    entropies = []
    for rows in torch.split(hidden, CHUNK_TOKENS):
        logits = F.linear(rows, weight).float() / temperature
        logprobs = logits.log_softmax(-1)
        entropies.append(-(logprobs.exp() * logprobs).sum(-1))
    return torch.cat(entropies)
