# SPDX-License-Identifier: Apache-2.0
"""Completions for the batches that need them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from medvlt.data.batches import PromptBatch
from medvlt.errors import ConfigurationError
from medvlt.models.policy import Policy
from medvlt.rollout.base import RolloutEngine
from medvlt.rollout.transformers import TransformersEngine
from medvlt.types import RolloutKey, SamplingParams

EVALUATION_ITERATION = -1
"""The iteration in the rollout keys of evaluation, so that its samples never coincide with those of training."""


class RolloutCallback(Callback):
    """Samples completions for the prompts of a validation, test or predict batch and attaches them to it.

    The module then scores them; it does not know which engine sampled. The engine is started when the first batch
    needs it and closed at teardown, also after an error.

    Hooks used: `on_{validation,test,predict}_batch_start`, `teardown`, `on_exception`.

    Args:
        engine: What samples; None for `TransformersEngine`, the live policy itself.
        sampling: How completions are drawn in evaluation; the default is greedy, one completion, 4,096 tokens, as in
            the reference.
        seed: Of the sampling; a completion is a function of (seed, question, index) and of nothing else.
    """

    def __init__(
        self, engine: RolloutEngine | None = None, sampling: SamplingParams | None = None, seed: int = 42
    ) -> None:
        self.engine: RolloutEngine = engine or TransformersEngine()
        self.sampling = sampling or SamplingParams(n=1, temperature=0.0)
        self.seed = seed
        self._loaded: tuple[int, int] | None = None  # the policy and the step of the weights in the engine

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Attaches completions."""
        self._attach(trainer, pl_module, batch)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Attaches completions."""
        self._attach(trainer, pl_module, batch)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Attaches completions."""
        self._attach(trainer, pl_module, batch)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Closes the engine."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the engine; Lightning does not call `teardown` after an error."""
        self._close()

    def _attach(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if not isinstance(batch, PromptBatch):
            return
        policy = getattr(pl_module, "policy", None)
        if self._loaded != (id(policy), trainer.global_step):
            self._load(trainer, policy if isinstance(policy, Policy) else None)
        keys = [RolloutKey(self.seed, EVALUATION_ITERATION, sample.uid) for sample in batch.samples]
        with trainer.precision_plugin.forward_context():  # the precision that the forward of training has
            batch.groups = self.engine.generate(batch.samples, self.sampling, keys=keys)

    def _load(self, trainer: Trainer, policy: Policy | None) -> None:
        encoder = getattr(getattr(trainer, "datamodule", None), "encoder", None)
        if encoder is None:
            raise ConfigurationError(
                "RolloutCallback needs the prompt encoder of a data module: pass `datamodule=` (BenchmarkDataModule, "
                "SFTDataModule) to the Trainer"
            )
        self.engine.start(encoder, policy)
        if policy is not None:
            self.engine.load_weights(policy.base.state_dict().items(), version=trainer.global_step)
        self._loaded = (id(policy), trainer.global_step)

    def _close(self) -> None:
        self.engine.close()
        self._loaded = None
