# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning on chains of thought."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.policy import PolicyModule
from medvlt.data.packing import PackedBatch
from medvlt.losses.sft import sft_loss
from medvlt.models.loading import Backbone
from medvlt.models.optimization import Optimization
from medvlt.rewards.grade import GradePolicy


class SFTModule(PolicyModule):
    """Trains on given reasoning and answers: the loss is on completion tokens only.

    `datamodules.SFTDataModule` plans each optimizer step and yields packed micro-batches whose weights hold the
    normaliser of that step; the result does not depend on how the step is cut into micro-batches and ranks.

    Hooks used: those of `PolicyModule` and `training_step`.
    Logs: `train/loss`, the loss of the whole optimizer step over all ranks; `train/target_tokens`, its target tokens;
    and the metrics of `RolloutModule`.

    Args:
        backbone: Which Qwen2.5-VL, and how to load it.
        optimization: AdamW and its schedule; the defaults are the reference's.
        grader: Rules for right and wrong in validation.
    """

    def __init__(
        self, backbone: Backbone, optimization: Optimization | None = None, grader: GradePolicy = "robust"
    ) -> None:
        super().__init__(backbone, optimization or Optimization(), grader)
        self._step_sums: Tensor | None = None  # loss and tokens of this rank since the last optimizer step

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        """Returns the loss of one micro-batch: its share of the loss of the optimizer step."""
        loss = sft_loss(self.loaded_policy()(batch), batch.weights)
        self._log_step(loss, batch, batch_idx)
        return self.scale_loss(loss)

    def _log_step(self, loss: Tensor, batch: PackedBatch, batch_idx: int) -> None:
        sums = torch.stack([loss.detach(), (batch.weights > 0).sum()])
        self._step_sums = sums if self._step_sums is None else self._step_sums + sums
        if self.ends_step(batch_idx):
            total, tokens = self._step_sums
            self.log("train/loss", total, prog_bar=True, sync_dist=True, reduce_fx="sum", batch_size=1)
            self.log("train/target_tokens", tokens, sync_dist=True, reduce_fx="sum", batch_size=1)
            self._step_sums = None
