# SPDX-License-Identifier: Apache-2.0
"""What a rollout is set to: settings that cannot work are refused, those that completions depend on are named."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from medvlt import __version__
from medvlt.data.encoder import PromptEncoder
from medvlt.errors import ConfigurationError
from medvlt.models.policy import Policy
from medvlt.rollout.store_identity import encoder_identity
from medvlt.rollout.transformers import TransformersEngine

if TYPE_CHECKING:
    from callbacks.rollout import RolloutCallback


def check_rollout_settings(callback: RolloutCallback, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
    """Compares a `RolloutCallback` with Trainer, module and data module.

    Args:
        callback: The callback.
        trainer: The Trainer.
        pl_module: Its module.
        stage: "fit", "validate", "test" or "predict".

    Raises:
        ConfigurationError: If they do not go together.
    """
    if stage == "fit" and callback.store is not None:
        raise ConfigurationError(
            "RolloutCallback(store=...) keeps completions of weights that stay as they are, and `fit` moves them; "
            "leave store out, and evaluate a checkpoint afterwards with `medvlt validate`"
        )
    shared = getattr(callback.engine, "tensor_parallel_size", 1)
    if shared > 1 and getattr(getattr(trainer, "datamodule", None), "benchmark_names", ()):
        raise ConfigurationError(
            f"the engine is shared by {shared} ranks, which would get different numbers of benchmark batches and "
            "wait for one another; leave data.benchmarks out and evaluate the checkpoint afterwards with "
            "tensor_parallel_size: 1"
        )
    sharded = isinstance(trainer.strategy, ModelParallelStrategy | FSDPStrategy | DeepSpeedStrategy)
    if sharded and isinstance(callback.engine, TransformersEngine):
        raise ConfigurationError(
            f"TransformersEngine samples from the live policy, which {type(trainer.strategy).__name__} shards; use "
            "VLLMRolloutCallback, or a strategy that keeps whole weights on each rank (auto, ddp)"
        )
    data = trained_prompts(trainer)
    if stage != "fit" or data is None:
        return
    check_sampling = getattr(pl_module, "check_sampling", None)
    if check_sampling is None:
        raise ConfigurationError(
            f"{type(data).__name__} yields prompts to learn from by RL, {type(pl_module).__name__} cannot; use "
            "lightning_modules.GRPOModule"
        )
    check_sampling(callback.group_sampling)
    limit = getattr(callback.engine, "max_model_len", None)
    needed = data.longest_prompt_tokens + callback.group_sampling.max_tokens
    if limit is not None and needed > limit:
        raise ConfigurationError(
            f"the longest prompt has {data.longest_prompt_tokens} tokens, with group_sampling.max_tokens="
            f"{callback.group_sampling.max_tokens} that makes {needed}, and the engine's max_model_len is {limit}; set "
            "max_model_len to that, or lower data.max_prompt_tokens or group_sampling.max_tokens"
        )


def trained_prompts(trainer: Trainer) -> Any:
    """Returns the data module if it yields prompts to learn from (`PromptDataModule`), else None."""
    data = getattr(trainer, "datamodule", None)
    return data if hasattr(data, "take_prompts") else None


def prompt_encoder(trainer: Trainer) -> PromptEncoder:
    """Returns the prompt encoder of the data module.

    Raises:
        ConfigurationError: If there is none.
    """
    encoder: PromptEncoder | None = getattr(getattr(trainer, "datamodule", None), "encoder", None)
    if encoder is None:
        raise ConfigurationError(
            "RolloutCallback needs the prompt encoder of a data module: pass `datamodule=` (BenchmarkDataModule, "
            "SFTDataModule, PromptDataModule) to the Trainer"
        )
    return encoder


def rollout_identity(
    callback: RolloutCallback, trainer: Trainer, pl_module: LightningModule
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what stored completions depend on besides question and number, and what to note beside it.

    A checkpoint is known by the weights that were loaded from it, so it may be moved.

    Args:
        callback: A callback whose engine has started.
        trainer: The Trainer.
        pl_module: Its module.
    """
    encoder = prompt_encoder(trainer)
    identity = {
        "engine": callback.engine.identity(),
        "precision": trainer.precision if isinstance(getattr(pl_module, "policy", None), Policy) else "",
        "sampling": {name: value for name, value in asdict(callback.sampling).items() if name != "n"},
        "seed": callback.seed,
        "prompt": encoder_identity(encoder),
    }
    checkpoint = str(trainer.ckpt_path) if trainer.ckpt_path else ""
    return identity, {"model": encoder.model, "checkpoint": checkpoint, "medvlt": __version__}
