# SPDX-License-Identifier: Apache-2.0
"""Policy losses: what each token of a completion contributes, before weights and sum.

A loss here is per token. How tokens become one number is the matter of `reduce.py`, so published methods are pairs:

- GRPO: `ClippedLoss` and `sequence`
- DAPO: `ClippedLoss(clip_high=0.28)` and `token`
- Dr. GRPO: `ClippedLoss` and `constant`, with advantages that are not scaled
- the reference recipe: `ClippedLoss` and `micro_batch`
- GSPO: `GSPOLoss` and `sequence`
- CISPO: `CISPOLoss` and `token`

If each rollout is used for one optimizer step, the old log-probabilities are the current ones: every ratio is 1 and
nothing is clipped. The value then says little; what counts, and what to compare between programs, is the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from medvlt.errors import ConfigurationError

MAX_LOG_RATIO = 20.0
"""Above it the ratio stays at exp(20) = 4.9e8, without gradient: an infinite one would turn gradients into NaN."""


@dataclass(frozen=True)
class TokenLosses:
    """What a policy loss says of each token.

    Attributes:
        losses: (N,), carries the gradient. The caller computes sum(weights * losses).
        clipped_low: Ratio below its lower bound and negative advantage, (N,), bool.
        clipped_high: Ratio above its upper bound and positive advantage, (N,), bool. Together these are TRL's
            `clip_ratio/region`: the tokens that a clipped loss holds back.
    """

    losses: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


@runtime_checkable
class PolicyLoss(Protocol):
    """Turns advantages into token losses."""

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, lengths: Tensor) -> TokenLosses:
        """Returns the losses of the tokens of a micro-batch, completions one after another.

        Args:
            logprobs: Log-probabilities under the policy, (N,), natural log, carries the gradient.
            old_logprobs: The same tokens at the start of the update, (N,), no gradient.
            advantages: Advantage of each token, (N,), the same for all tokens of a completion.
            lengths: Tokens of each completion, (C,), int64, sum N; 0 is allowed.
        """


class ClippedLoss(PolicyLoss):
    """The clipped surrogate of PPO (arXiv 1707.06347, eq. 7), token by token.

    With rho = exp(logprobs - old_logprobs): L = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), and for A < 0 at
    most -dual_clip A (dual clip, arXiv 1912.09729). A token whose loss is clipped has no gradient.

    Args:
        clip_low: How far below 1 the ratio may act, in [0, 1).
        clip_high: How far above 1 the ratio may act, at least 0. More than `clip_low` lets unlikely tokens rise (DAPO,
            arXiv 2503.14476, has 0.28).
        dual_clip: Largest ratio that acts on a negative advantage, above 1, or None for no bound. verl, and so the
            reference recipe, has 3; TRL's `delta` is the same and off. Tokens beyond it are not counted as clipped.

    Raises:
        ConfigurationError: If a bound is outside its range.
    """

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = 3.0) -> None:
        _check_bounds(clip_low, clip_high)
        if dual_clip is not None and not dual_clip > 1:
            raise ConfigurationError(
                f"expected dual_clip above 1 or null, got {dual_clip}; at 1 or less no wrong completion is learned from"
            )
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, lengths: Tensor) -> TokenLosses:
        """Returns the token losses; `lengths` are not used."""
        ratio = _ratio(logprobs - old_logprobs)
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        losses = torch.maximum(-ratio * advantages, -clipped * advantages)
        if self.dual_clip is not None:
            losses = torch.where(advantages < 0, torch.minimum(losses, -self.dual_clip * advantages), losses)
        return _with_regions(losses, ratio, advantages, 1 - self.clip_low, 1 + self.clip_high)


class GSPOLoss(PolicyLoss):
    """The clipped surrogate with one ratio per completion (GSPO, arXiv 2507.18071, eq. 5 and 7).

    With s = exp(mean over the completion of logprobs - old_logprobs): L = -min(s A, clip(s, 1 - clip_low,
    1 + clip_high) A), the same for each token of the completion. The gradient flows through the mean.

    The method is this loss with the `sequence` reduction: then each completion counts once. `token` and `constant` give
    a completion the weight of its length, on top of a ratio that has been averaged over that length.

    A mean moves far less than its terms, so the bounds are narrow; those of `ClippedLoss` would never act.

    Args:
        clip_low: How far below 1 the ratio may act, in [0, 1).
        clip_high: How far above 1 the ratio may act, at least 0.

    Raises:
        ConfigurationError: If a bound is outside its range.
    """

    def __init__(self, clip_low: float = 3e-4, clip_high: float = 4e-4) -> None:
        _check_bounds(clip_low, clip_high)
        self.clip_low = clip_low
        self.clip_high = clip_high

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, lengths: Tensor) -> TokenLosses:
        """Returns the token losses, equal within a completion."""
        means = completion_sums(logprobs - old_logprobs, lengths) / lengths.clamp(min=1)
        ratio = _ratio(means).repeat_interleave(lengths, output_size=len(logprobs))
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        losses = torch.maximum(-ratio * advantages, -clipped * advantages)
        return _with_regions(losses, ratio, advantages, 1 - self.clip_low, 1 + self.clip_high)


class CISPOLoss(PolicyLoss):
    """REINFORCE with a bounded importance weight (CISPO, arXiv 2506.13585, eq. 4 and 5).

    With rho = exp(logprobs - old_logprobs): L = -stopgrad(clip(rho, 1 - clip_low, 1 + clip_high)) A logprobs. Every
    token keeps a gradient, those beyond a bound too, only smaller; the bounds act on advantages of either sign.

    The bounds are distances from 1, as in the paper, verl and EasyR1. TRL's `epsilon_high` is the cap itself: its 5.0
    is `clip_high=4.0` here.

    Args:
        clip_low: How far below 1 the weight may be, in [0, 1); None for no lower bound, as the paper and TRL.
        clip_high: How far above 1 the weight may be, at least 0.

    Raises:
        ConfigurationError: If a bound is outside its range.
    """

    def __init__(self, clip_low: float | None = None, clip_high: float = 4.0) -> None:
        _check_bounds(0.0 if clip_low is None else clip_low, clip_high)
        self.clip_low = clip_low
        self.clip_high = clip_high

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, lengths: Tensor) -> TokenLosses:
        """Returns the token losses; `lengths` are not used. Clipped tokens are counted as TRL's `cispo_clip_ratio`."""
        low, high = 0.0 if self.clip_low is None else 1 - self.clip_low, 1 + self.clip_high
        ratio = _ratio(logprobs.detach() - old_logprobs)
        losses = -ratio.clamp(low, high) * advantages * logprobs
        return _with_regions(losses, ratio, advantages, low, high)


def completion_sums(values: Tensor, lengths: Tensor) -> Tensor:
    """Returns the sum of each completion, (C,); 0 for one without tokens.

    On a GPU the order of the additions, and so the last digit, is fixed only under
    `torch.use_deterministic_algorithms` (`trainer.deterministic`).

    Args:
        values: One per token, (N,), completions one after another.
        lengths: Tokens of each completion, (C,), int64, sum N.
    """
    completion = torch.repeat_interleave(lengths, output_size=len(values))  # the completion of each token
    return values.new_zeros(len(lengths)).index_add(0, completion, values)


def _ratio(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def _with_regions(losses: Tensor, ratio: Tensor, advantages: Tensor, low: float, high: float) -> TokenLosses:
    return TokenLosses(losses, (ratio < low) & (advantages < 0), (ratio > high) & (advantages > 0))


def _check_bounds(clip_low: float, clip_high: float) -> None:
    if not 0 <= clip_low < 1:
        raise ConfigurationError(f"expected clip_low in [0, 1), got {clip_low}; it is a distance below 1, such as 0.2")
    if not (clip_high >= 0 and isfinite(clip_high)):
        raise ConfigurationError(f"expected clip_high of at least 0, got {clip_high}; it is a distance above 1")
