# SPDX-License-Identifier: Apache-2.0
"""How far the policy has moved from the reference, estimated from the sampled tokens alone."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor

from medvlt.errors import ConfigurationError

KLEstimator: TypeAlias = Literal["k1", "k2", "k3"]
"""Estimators of KL(policy || reference) from one token (http://joschu.net/blog/kl-approx.html), d = ref - policy.

A good estimate of the value need not have the gradient of the value. For tokens sampled from the policy:

- `k1` = -d: unbiased value of either sign. Its gradient is zero on average, so as a loss it adds noise and holds
  nothing back; it is meant for logs, or as a part of the reward.
- `k2` = d^2 / 2: biased value, exact gradient of KL(policy || reference).
- `k3` = exp(d) - d - 1: unbiased value, never negative. Its gradient is that of KL(reference || policy). GRPO
  (arXiv 2402.03300, eq. 4), TRL and verl (`low_var_kl`) use it as a loss.
"""

MAX_LOG_RATIO = 20.0
"""Bound of |d| wherever the estimate itself is bounded, as in verl: exp(20) = 4.9e8."""


def kl_penalty(
    logprobs: Tensor, ref_logprobs: Tensor, *, estimator: KLEstimator = "k3", clamp: float | None = None
) -> Tensor:
    """Returns an estimate of KL(policy || reference) for each token; `KLEstimator` has formulas and gradients.

    The caller adds kl_coef times it to the token loss, before the reduction. It is not multiplied by the weights of
    `correction.py`.

    Args:
        logprobs: Log-probabilities under the policy, (N,), natural log, carries the gradient.
        ref_logprobs: The same tokens under the reference, (N,), no gradient.
        estimator: See `KLEstimator`.
        clamp: Bounds the log-ratio to +-20 and the result to +-clamp, above 0; verl and the reference recipe have
            10. A token beyond a bound has no gradient: it is not pulled back any more. None bounds
            nothing, as TRL.

    Returns:
        (N,), in nats, in the type of the log-probabilities.

    Raises:
        ConfigurationError: If `clamp` is not above 0, where no penalty would be left.
    """
    if clamp is not None and not clamp > 0:
        raise ConfigurationError(f"expected a clamp above 0 or null, got {clamp}; 10 is usual")
    d = ref_logprobs - logprobs
    if clamp is not None:
        d = d.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        penalty = -d
    elif estimator == "k2":
        penalty = d.square() / 2
    else:
        penalty = d.expm1() - d  # exp(d) - 1 loses all digits where policy and reference nearly agree
    return penalty if clamp is None else penalty.clamp(-clamp, clamp)
