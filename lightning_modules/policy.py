# SPDX-License-Identifier: Apache-2.0
"""A module with a backbone to train: loads it, optimizes it, and scales losses so that a step is a plain sum."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_modules.resume import begin_at_step
from lightning_modules.rollout import RolloutModule
from medvlt.errors import ConfigurationError, MissingRolloutError
from medvlt.models.export import backbone_record
from medvlt.models.loading import Backbone, load_backbone
from medvlt.models.optimization import Optimization, build_optimizer
from medvlt.models.policy import Policy
from medvlt.models.sharding import shard
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

    def setup(self, stage: str) -> None:
        """Refuses to train on part of an epoch: optimizer steps are planned for all of it.

        Raises:
            ConfigurationError: If `limit_train_batches` or `overfit_batches` is set; `fast_dev_run` is allowed.
        """
        trainer: Any = self.trainer
        if stage != "fit" or trainer.fast_dev_run:
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
        backbone = load_backbone(self.backbone)
        vision_is_trained = any(p.requires_grad for name, p in backbone.named_parameters() if "visual" in name)
        policy = Policy(backbone, always_run_vision=vision_is_trained or self.trainer.world_size > 1)
        self.policy = shard(policy, self.device_mesh)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns AdamW and a schedule that is advanced every optimizer step."""
        optimizer, scheduler = build_optimizer(
            self.parameters(), self.optimization, total_steps=self._total_optimizer_steps()
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the settings of the backbone under "backbone", so that `medvlt export` can build it again."""
        checkpoint["backbone"] = backbone_record(self.backbone)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes training go on where an optimizer step begins, whenever the checkpoint was written."""
        begin_at_step(checkpoint)

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
        """Undoes the two means that surround a training step, so that a step adds up micro-batches and ranks.

        Lightning divides the loss by `accumulate_grad_batches` and data-parallel strategies average gradients over
        ranks; the weights of a packed batch already hold the normaliser of the whole optimizer step.
        """
        return loss * self.trainer.accumulate_grad_batches * self.trainer.world_size

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
        """Sets the step under which Lightning logs to the number of optimizer steps.

        It keeps a count of its own, which a resumed run begins one too low or too high, depending on where the
        checkpoint was written and on whether a validation is due there.
        """
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

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
