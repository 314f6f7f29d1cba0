# SPDX-License-Identifier: Apache-2.0
"""A module with a backbone to train: loads it, optimizes it, and scales losses so that a step is a plain sum."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_modules.resume import begin_at_step
from lightning_modules.rollout import RolloutModule
from lightning_modules.stored import (
    base_identity,
    check_before_loading,
    check_micro_batches,
    check_stored,
    run_record,
    save_adapters_alone,
    trained_names,
)
from lightning_modules.strategies import check_strategy
from lightning_modules.zero import prepare_deepspeed
from medvlt.distributed import together
from medvlt.errors import ConfigurationError, MissingRolloutError
from medvlt.models.building import build_policy
from medvlt.models.checkpoints import backbone_record
from medvlt.models.loading import Backbone
from medvlt.models.optimization import Optimization, build_optimizer
from medvlt.models.policy import Policy
from medvlt.rewards.grade import GradePolicy


class PolicyModule(RolloutModule):
    """Holds the policy; `SFTModule` and `GRPOModule` add a `training_step`.

    Hooks used: those of `RolloutModule`, `setup`, `configure_model`, `configure_optimizers`, `on_save_checkpoint`,
    `on_load_checkpoint`, `on_train_epoch_start`, `on_train_batch_start`.

    Args:
        backbone: Which Qwen2.5-VL, and how to load it.
        optimization: AdamW and its schedule.
        grader: Rules for right and wrong in validation.
    """

    def __init__(self, backbone: Backbone, optimization: Optimization, grader: GradePolicy = "robust") -> None:
        super().__init__(grader)
        self.backbone = backbone
        self.optimization = optimization
        self.policy: Policy | None = None
        self.run_config = ""
        """The whole configuration of the run as YAML, for its checkpoints; "" without the command line."""
        if backbone.lora is not None:
            self.strict_loading = False  # the base is not in a checkpoint; `check_stored` sees to the adapters

    def setup(self, stage: str) -> None:
        """Refuses checkpoints of other runs, and to train on part of an epoch: steps are planned for all of it.

        Raises:
            ConfigurationError: If the run cannot go on from `trainer.ckpt_path`, the strategy cannot save adapters, or
                `limit_train_batches` or `overfit_batches` is set; `fast_dev_run` is allowed.
        """
        trainer: Any = self.trainer
        check_before_loading(trainer.strategy)
        prepare_deepspeed(trainer.strategy)
        # set by the command line; otherwise it is that of an earlier call, and the next one is known when it is loaded
        if trainer._checkpoint_connector._user_managed and trainer.ckpt_path:
            together(lambda: check_stored(Path(trainer.ckpt_path), self, loaded=False))
        if stage != "fit":
            return
        if self.backbone.lora is not None:
            save_adapters_alone(trainer.strategy)
        if trainer.fast_dev_run:
            return
        limit = trainer.limit_train_batches  # 1 is one batch, 1.0 is all of them
        if trainer.overfit_batches or isinstance(limit, int) or limit < 1:
            raise ConfigurationError(
                f"trainer.limit_train_batches={limit!r} and trainer.overfit_batches={trainer.overfit_batches!r} would "
                "end an epoch before its planned optimizer steps; leave both out, and use fewer samples (data.train: "
                "Subset with limit) or fewer steps (trainer.max_steps)"
            )

    def configure_model(self) -> None:
        """Loads the backbone once, inside the strategy's context, and shards it where the strategy asks for it."""
        if self.policy is not None:
            return
        encoder = getattr(getattr(self.trainer, "datamodule", None), "encoder", None)
        if encoder is not None and encoder.model != self.backbone.name:
            raise ConfigurationError(
                f"model.backbone.name={self.backbone.name!r} and data.encoder.model={encoder.model!r} differ; prompts "
                "must be encoded with the tokenizer of the backbone, so set both to the same folder or name"
            )
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise ConfigurationError(
                f"precision {self.trainer.precision!r} would round weights, optimizer state and loss weights; use "
                "'bf16-mixed' (and backbone.dtype: bfloat16 where the base is frozen under LoRA)"
            )
        check_strategy(self.trainer.strategy, quantized=self.backbone.quantization is not None)
        self.policy = build_policy(
            self.backbone,
            ranks=self.trainer.world_size,
            mesh=self.device_mesh,
            sharding=getattr(self.trainer.strategy, "sharding", None),
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns AdamW and a schedule that is advanced every optimizer step."""
        optimizer, scheduler = build_optimizer(
            self.parameters(), self.optimization, total_steps=self._total_optimizer_steps()
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the settings of the backbone under "backbone" and what is known of the run under "medvlt".

        With LoRA the weights of the base, which do not change, are left out.
        """
        checkpoint["backbone"] = backbone_record(self.backbone)
        checkpoint["medvlt"] = run_record(self, self._base_identity)
        if self.backbone.lora is not None:
            adapters = trained_names(self)
            checkpoint["state_dict"] = {n: t for n, t in checkpoint["state_dict"].items() if n in adapters}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes training go on where an optimizer step begins, whenever the checkpoint was written.

        Raises:
            ConfigurationError: If the loss depends on the micro-batches of a step and these are others now.
        """
        trainer = self._trainer
        if trainer is None:  # weights alone
            return
        per_step = trainer.accumulate_grad_batches
        if trainer.state.fn == "fit":
            reduction = getattr(getattr(trainer, "datamodule", None), "loss_reduction", "")
            check_micro_batches(checkpoint, reduction, per_step * trainer.world_size)
        begin_at_step(checkpoint, per_step=per_step)

    def loaded_policy(self) -> Policy:
        """Returns the policy.

        Raises:
            MissingRolloutError: If no Trainer has loaded it yet.
        """
        if self.policy is None:
            raise MissingRolloutError("the policy is not loaded; run the module through a Trainer")
        return self.policy

    def ends_step(self, batch_idx: int) -> bool:
        """Returns whether the optimizer steps after this micro-batch."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0 or self.trainer.is_last_batch

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Undoes the means that surround a training step, so that a step adds up micro-batches and ranks.

        Lightning divides the loss by `accumulate_grad_batches`, a strategy that accumulates by itself (DeepSpeed)
        divides it by that number once more, and data-parallel strategies average gradients over ranks; the weights of
        a packed batch already hold the normaliser of the whole optimizer step.
        """
        trainer = self.trainer
        accumulate = trainer.accumulate_grad_batches
        divisor = accumulate**2 if trainer.strategy.handles_gradient_accumulation else accumulate
        return loss * divisor * trainer.world_size

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Advances the schedule; the schedules used here need no metric."""
        scheduler.step()

    def on_train_epoch_start(self) -> None:
        """Refuses a change of `accumulate_grad_batches` during the run: steps are planned with the first value."""
        planned = getattr(getattr(self.trainer, "datamodule", None), "accumulate_grad_batches", None)
        if planned not in (None, self.trainer.accumulate_grad_batches):
            raise ConfigurationError(
                f"trainer.accumulate_grad_batches was {planned} when the optimizer steps were planned and is "
                f"{self.trainer.accumulate_grad_batches} now; remove the callback that changes it"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets the step under which Lightning logs to the number of optimizer steps, and the seed of dropout.

        Lightning keeps a count of its own, which a resumed run begins one too low or too high, depending on where the
        checkpoint was written and on whether a validation is due there. Dropout draws from the global generator, which
        is in no checkpoint: what it draws is made a function of (seed of the data, epoch, micro-batch, rank).
        """
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step
        if self.backbone.lora is not None and self.backbone.lora.dropout:
            seed = getattr(getattr(self.trainer, "datamodule", None), "seed", 0)
            torch.manual_seed(dropout_seed(seed, self.trainer.current_epoch, batch_idx, self.global_rank))

    @cached_property
    def _base_identity(self) -> str:
        return base_identity(self.backbone)  # of the weights that were loaded, so not before that

    def _total_optimizer_steps(self) -> int:
        optimization = self.optimization
        if optimization.schedule == "constant" and not optimization.warmup_ratio:
            return 1  # has no length
        # `trainer.estimated_stepping_batches` would build the loader before its state is restored, which silently
        # breaks resuming in the middle of an epoch
        trainer = self.trainer
        bounds = [trainer.max_steps] if trainer.max_steps > 0 else []
        per_epoch = getattr(getattr(trainer, "datamodule", None), "optimizer_steps_per_epoch", None)
        if per_epoch is not None and trainer.max_epochs and trainer.max_epochs > 0:
            bounds.append(per_epoch * trainer.max_epochs)
        if not bounds and optimization.total_steps is None:
            raise ConfigurationError(
                "the schedule needs the number of optimizer steps: set trainer.max_steps, or trainer.max_epochs with a "
                "data module that knows its steps (SFTDataModule), or model.optimization.total_steps, or use schedule: "
                "constant with warmup_ratio: 0"
            )
        return min(bounds, default=1)


def dropout_seed(*place: int) -> int:
    """Returns a seed, in [0, 2**63), for a place in training; near places have nothing in common."""
    return int.from_bytes(hashlib.sha256(repr(place).encode()).digest()[:8], "big") >> 1
