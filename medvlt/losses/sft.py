# SPDX-License-Identifier: Apache-2.0
"""The loss of supervised fine-tuning."""

from __future__ import annotations

from torch import Tensor


def sft_loss(logprobs: Tensor, weights: Tensor) -> Tensor:
    """Returns -sum(weights * logprobs): the weighted negative log-likelihood of the target tokens.

    Args:
        logprobs: Log-probability of each target token, (N,), natural log, carries the gradient.
        weights: Factor of each token, (N,); holds 1 / (normaliser of the optimizer step), see `reduce.py`.

    Returns:
        Scalar; the sum over the micro-batches and ranks of a step is the loss of the step.
    """
    return -(weights * logprobs).sum()
