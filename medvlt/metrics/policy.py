# SPDX-License-Identifier: Apache-2.0
"""What a policy update did to its tokens. Names are TRL's."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from medvlt.losses.policy import TokenLosses

MEANS = (
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "sampling/sampling_logp_difference/mean",
    "sampling/importance_sampling_ratio/mean",
    "kl",
)


class PolicyStatistics(Metric):
    """Means and extremes over the tokens of one optimizer step, over all ranks; tokens of weight zero do not count.

    - `clip_ratio/low_mean`, `high_mean`, `region_mean`: share of tokens held back below, above, either.
    - `sampling/sampling_logp_difference/mean|max`: |old - sampler|, trainer against engine, in nats.
    - `sampling/importance_sampling_ratio/min|mean|max`: exp(old - sampler), before any correction.
    - `kl`: the KL estimate against the reference, in nats; 0 without one.

    States: `sums` and `tokens`, summed over ranks; `highest`, the largest over ranks.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    sums: Tensor
    tokens: Tensor
    highest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(MEANS)), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")
        # log-ratios: largest absolute value, largest, largest of the negated
        self.add_state("highest", torch.full((3,), -torch.inf), dist_reduce_fx="max")

    def update(
        self,
        token_losses: TokenLosses,
        old_logprobs: Tensor,
        sampler_logprobs: Tensor,
        kl: Tensor | None,
        weights: Tensor,
    ) -> None:
        """Counts the tokens of one micro-batch.

        Args:
            token_losses: The policy loss.
            old_logprobs: Trainer's log-probabilities under the weights that sampled, (N,).
            sampler_logprobs: Engine's, (N,).
            kl: KL estimate of each token, (N,), or None.
            weights: Weight of each token in the loss, (N,).
        """
        kept = weights > 0
        if not kept.any():
            return
        gap = (old_logprobs - sampler_logprobs).detach()[kept]
        low, high = token_losses.clipped_low[kept], token_losses.clipped_high[kept]
        # a ratio is summed as its distance from 1, so that 1 is what is left where no token counts
        columns = (low, high, low | high, gap.abs(), gap.expm1(), torch.zeros_like(gap) if kl is None else kl[kept])
        self.sums += torch.stack([column.detach().float().sum() for column in columns])
        self.tokens += kept.sum()
        self.highest = torch.maximum(self.highest, torch.stack([gap.abs().max(), gap.max(), (-gap).max()]))

    def compute(self) -> dict[str, Tensor]:
        """Returns each number; 0 (a ratio: 1) where no token counted."""
        means = self.sums / self.tokens.clamp(min=1)
        values = dict(zip(MEANS, means.unbind(), strict=True))
        absolute, largest, smallest = self.highest.masked_fill(self.highest.isinf(), 0.0).unbind()
        return values | {
            "sampling/importance_sampling_ratio/mean": values["sampling/importance_sampling_ratio/mean"] + 1,
            "sampling/sampling_logp_difference/max": absolute,
            "sampling/importance_sampling_ratio/max": largest.exp(),
            "sampling/importance_sampling_ratio/min": (-smallest).exp(),
        }
