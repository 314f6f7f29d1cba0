# SPDX-License-Identifier: Apache-2.0
"""What a rollout is set to: settings that cannot work are refused, those that completions depend on are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from medvlt import __version__
from medvlt.data.encoder import PromptEncoder
from medvlt.data.samples import SampleSet
from medvlt.distributed import gather
from medvlt.doctor import version_of
from medvlt.errors import ConfigurationError
from medvlt.rollout.store_identity import encoder_identity
from medvlt.rollout.transformers import TransformersEngine

if TYPE_CHECKING:
    from callbacks.rollout import RolloutCallback

PACKAGES = ("medvlt", "torch", "transformers", "vllm", "openai")
"""Whose versions are noted of a run."""


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
    if shards_weights(trainer) and isinstance(callback.engine, TransformersEngine):
        raise ConfigurationError(
            f"TransformersEngine samples from the live policy, which {type(trainer.strategy).__name__} shards; use "
            "VLLMRolloutCallback, or a strategy that keeps whole weights on each rank (auto, ddp, deepspeed_stage_2)"
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


def shards_weights(trainer: Trainer) -> bool:
    """Returns whether each rank holds only a part of the weights; DeepSpeed's first two stages shard other things."""
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        return bool(strategy.zero_stage_3)
    return isinstance(strategy, ModelParallelStrategy | FSDPStrategy)


def check_equal_batches(batches: Sequence[float]) -> None:
    """Refuses an evaluation in which some ranks have more batches than others: ranks sample together.

    `BenchmarkDataModule` gives equal numbers; other loaders may not.

    Args:
        batches: Number of batches of each loader on this rank.

    Raises:
        ConfigurationError: On every rank, with the numbers of each.
    """
    numbers = gather(list(batches))
    if any(other != numbers[0] for other in numbers):
        raise ConfigurationError(
            f"the ranks have different numbers of batches, {numbers} by rank and loader, and would wait for one "
            "another while they sample; use the loaders of BenchmarkDataModule, or make the numbers equal"
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


def rollout_of(trainer: Trainer, needed_by: str) -> RolloutCallback:
    """Returns the rollout callback of a run.

    Args:
        trainer: The Trainer.
        needed_by: Name of the callback that needs its completions.

    Raises:
        ConfigurationError: If there is none.
    """
    from callbacks.rollout import RolloutCallback  # it imports this module

    callbacks: Sequence[object] = trainer.callbacks  # type: ignore[attr-defined]
    found = next((callback for callback in callbacks if isinstance(callback, RolloutCallback)), None)
    if found is None:
        raise ConfigurationError(
            f"{needed_by} needs completions: add RolloutCallback or VLLMRolloutCallback to trainer.callbacks"
        )
    return found


def batch_limit(trainer: Trainer, stage: str) -> int | float | None:
    """Returns the Trainer's limit of batches; None if all of them are asked.

    A limit of 1 is one batch, 1.0 is all of them; `fast_dev_run` sets the limits too.

    Args:
        trainer: The Trainer.
        stage: "validate", "test" or "predict".
    """
    limits: dict[str, int | float] = {
        "validate": trainer.limit_val_batches,
        "test": trainer.limit_test_batches,
        "predict": trainer.limit_predict_batches,
    }
    limit = limits[stage]
    return limit if isinstance(limit, int) or limit != 1.0 else None


def is_limited(trainer: Trainer) -> bool:
    """Returns whether a predict run asks only a part of the questions."""
    return batch_limit(trainer, "predict") is not None


def predict_sets(trainer: Trainer) -> list[SampleSet]:
    """Returns the questions of the predict loaders, whole, as every rank has them, one set per loader."""
    loaders: Any = trainer.predict_dataloaders
    data = [loader.dataset for loader in (loaders if isinstance(loaders, list | tuple) else [loaders])]
    sets = [getattr(dataset, "questions", dataset) for dataset in data]  # those of BenchmarkDataModule give batches
    return [samples if isinstance(samples, SampleSet) else SampleSet(samples) for samples in sets]


def asked_uids(trainer: Trainer) -> Counter[str]:
    """Returns the uid of every question of the predict loaders, over all ranks, to how often it is there."""
    return Counter(uid for samples in predict_sets(trainer) for uid in samples.uids)


def check_asked_once(trainer: Trainer, needed_by: str) -> None:
    """Refuses questions that the predict loaders have more than once.

    Args:
        trainer: The Trainer.
        needed_by: Name of the callback that takes a question once.

    Raises:
        ConfigurationError: If there are such questions.
    """
    check_distinct(asked_uids(trainer), "data.benchmarks", needed_by)


def check_distinct(times: Mapping[str, int], where: str, needed_by: str) -> None:
    """Refuses questions that are there more than once.

    Args:
        times: Uid to how often it is there.
        where: Name of the setting that has them.
        needed_by: Name of the callback that takes a question once.

    Raises:
        ConfigurationError: If there are such questions.
    """
    if twice := [uid for uid, number in times.items() if number > 1]:
        raise ConfigurationError(
            f"{where} has {len(twice)} questions more than once, such as {', '.join(twice[:3])}; {needed_by} takes a "
            "question once: name each source once, or let Mixture leave out what is there twice"
        )


def model_name(callback: RolloutCallback, trainer: Trainer, pl_module: LightningModule) -> str:
    """Returns the name of the model that answers: the engine's own, else the module's backbone, else the encoder's."""
    backbone = getattr(getattr(pl_module, "backbone", None), "name", None)
    return str(getattr(callback.engine, "model", None) or backbone or prompt_encoder(trainer).model)


def describe_rollout(callback: RolloutCallback, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Returns what to note of a run beside its results, `rollout_identity` as "identity".

    Args:
        callback: A callback whose engine has started.
        trainer: The Trainer.
        pl_module: Its module.
    """
    template = prompt_encoder(trainer).template
    identity, about = rollout_identity(callback, trainer, pl_module)
    return {
        "model": model_name(callback, trainer, pl_module),
        "checkpoint": about["checkpoint"],
        "prompt": template if isinstance(template, str) else "custom",
        "identity": identity,
        "sampling": asdict(callback.sampling),
        "seed": callback.seed,
        "versions": {name: version for name in PACKAGES if (version := version_of(name)) is not None},
    }


def control_settings(trainer: Trainer) -> dict[str, Any] | None:
    """Returns name and settings of the control under which the data module asks its benchmarks; None without one."""
    settings: dict[str, Any] | None = getattr(getattr(trainer, "datamodule", None), "control_settings", None)
    return settings


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
    if callback.known_identity is None:  # it may read all weights
        callback.known_identity = callback.engine.identity()
    identity = {
        "engine": callback.known_identity,
        "precision": trainer.precision if isinstance(callback.engine, TransformersEngine) else "",  # others have theirs
        "sampling": {name: value for name, value in asdict(callback.sampling).items() if name != "n"},
        "seed": callback.seed,
        "prompt": encoder_identity(encoder),
    }
    if (control := control_settings(trainer)) is not None:
        identity["control"] = control
    checkpoint = str(trainer.ckpt_path) if trainer.ckpt_path else ""
    return identity, {"model": encoder.model, "checkpoint": checkpoint, "medvlt": __version__}
