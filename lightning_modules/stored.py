# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says about the run that wrote it, and whether another run can go on from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import nn

from medvlt import __version__
from medvlt.distributed import together
from medvlt.errors import ConfigurationError, DataError
from medvlt.models.checkpoints import PREFIX, StoredCheckpoint, read_stored, read_weights
from medvlt.models.loading import Backbone
from medvlt.models.sharded_folder import ROOTS, read_index
from medvlt.rollout.store_identity import encoder_identity, model_identity

WRAPPER = "_fsdp_wrapped_module."
"""What FSDP1 puts into the names of parameters, and takes out of those of a checkpoint."""

READERS: dict[str, type[Strategy]] = {"FSDP1": FSDPStrategy, "FSDP2": ModelParallelStrategy}
"""Lightning's strategies that read the shards of each kind; ours are their subclasses."""


def base_identity(backbone: Backbone) -> str:
    """Returns the fingerprint of the base's weights, name and revision where they are not here, "" if unreadable."""
    try:
        return model_identity(backbone.name, backbone.revision)
    except DataError:  # loading it will say more
        return ""


def run_record(module: Any, identity: str) -> dict[str, Any]:
    """Returns what a checkpoint keeps of its run besides weights and places: strings, numbers, lists and dictionaries.

    Args:
        module: A `PolicyModule` in a Trainer.
        identity: `base_identity` of its backbone.
    """
    trainer = module.trainer
    data: Any = getattr(trainer, "datamodule", None)
    encoder = getattr(data, "encoder", None)
    record = {
        "version": __version__,
        "module": type(module).__name__,
        "kind": kind_of(module),
        "adapters_only": module.backbone.lora is not None,
        "base": identity,
        "world_size": trainer.world_size,
        "strategy": type(trainer.strategy).__name__,
        "data": data.record() if hasattr(data, "record") else {},
        "prompt": {} if encoder is None else encoder_identity(encoder),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "config": module.run_config,
    }
    plain: dict[str, Any] = json.loads(json.dumps(record, default=str))  # all that `weights_only` reads
    return plain


def kind_of(module: Any) -> str:
    """Returns the name of the module of ours that a module is or is derived from."""
    package = __name__.partition(".")[0]
    kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__module__.partition(".")[0] == package]
    return kinds[0] if kinds else type(module).__name__


def trained_names(module: nn.Module) -> set[str]:
    """Returns the names of the parameters that are trained, as a checkpoint has them."""
    return {name.replace(WRAPPER, "") for name, p in module.named_parameters() if p.requires_grad}


def save_adapters_alone(strategy: Strategy) -> None:
    """Makes DeepSpeed leave out what is frozen, and refuses what would save adapters so that they cannot be loaded.

    Raises:
        ConfigurationError: If a checkpoint would be a folder, of which torch loads all weights or none.
    """
    if isinstance(strategy, DeepSpeedStrategy):
        strategy.exclude_frozen_parameters = True
    if type(strategy) is ModelParallelStrategy and strategy._save_distributed_checkpoint:
        raise ConfigurationError(
            "with backbone.lora a checkpoint holds the adapters alone, and ModelParallelStrategy could not load them "
            "from a folder; use lightning_modules.strategies.FSDP2Strategy (strategy: fsdp2), or set "
            "save_distributed_checkpoint: false"
        )
    if isinstance(strategy, FSDPStrategy) and strategy._state_dict_type == "sharded":
        raise ConfigurationError(
            "with backbone.lora a checkpoint holds the adapters alone, and FSDPStrategy could not load them from a "
            "folder; set state_dict_type: full"
        )


def check_before_loading(strategy: Any) -> None:
    """Makes a strategy call `check_stored` for its module, on all ranks, before it loads a checkpoint.

    Lightning tells a module which checkpoint it loads when it is loaded, and sharded strategies have then put it into
    the model, or failed in their own words.

    Args:
        strategy: Of the Trainer.
    """
    if "load_checkpoint" in vars(strategy):  # a second `fit` or `validate` of the same Trainer
        return
    load = strategy.load_checkpoint

    def checked(checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        module = strategy.lightning_module  # of this call: a Trainer may get another one each time
        if hasattr(module, "backbone"):
            together(lambda: check_stored(Path(checkpoint_path), module, loaded=True))
        return load(checkpoint_path, *args, **kwargs)

    strategy.load_checkpoint = checked


def shards_in(folder: Path) -> Literal["FSDP1", "FSDP2"]:
    """Returns whose shards a folder holds; they name the same tensors in different ways."""
    fsdp2 = f"{ROOTS[0]}.{PREFIX}"
    return "FSDP2" if any(name.startswith(fsdp2) for name in read_index(folder).state_dict_metadata) else "FSDP1"


def check_stored(path: Path, module: Any, *, loaded: bool) -> None:
    """Refuses a checkpoint that the run of a module cannot go on from.

    Args:
        path: The checkpoint.
        module: A `PolicyModule` in a Trainer.
        loaded: Whether its policy is there, so that weights can be compared by name.

    Raises:
        ConfigurationError: If the checkpoint is not whole or not ours, of another model, module or strategy, or cannot
            be split over this many ranks.
    """
    stored = read_stored(path)
    training = module.trainer.state.fn == "fit"
    _check_strategy(stored, module.trainer, training)
    found = _differences(stored, module, training, base_identity(module.backbone))
    if found:
        raise ConfigurationError(
            f"the checkpoint {path} is of another run: {'; '.join(found)}. Use the settings of the checkpoint, or "
            f"begin a new run from its weights: `medvlt export {path} FOLDER` and model.backbone.name: FOLDER"
        )
    if loaded and module.backbone.lora is not None and stored.kind == "file":
        _check_names(stored, module)


def check_micro_batches(checkpoint: dict[str, Any], loss_reduction: str, micro_batches: int) -> None:
    """Refuses to go on with other micro-batches where the loss depends on them.

    Args:
        checkpoint: As Lightning hands it to `on_load_checkpoint`.
        loss_reduction: Of the data module.
        micro_batches: Of an optimizer step over all ranks.

    Raises:
        ConfigurationError: If it had others.
    """
    states = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {}).get("combined_loader", [])
    record = checkpoint.get("medvlt", {})
    if loss_reduction != "micro_batch" or len(states) != 1 or not {"per_step"} <= states[0].keys() or not record:
        return
    before = states[0]["per_step"] * record["world_size"]
    if before != micro_batches:
        raise ConfigurationError(
            f"data.loss_reduction is micro_batch, with which the loss depends on the micro-batches: a step had "
            f"{before} of them over {record['world_size']} ranks in the checkpoint and has {micro_batches} now; resume "
            "with ranks and accumulate_grad_batches of the same product, or use another loss_reduction in a new run"
        )


def _check_strategy(stored: StoredCheckpoint, trainer: Any, training: bool) -> None:
    strategy, path = trainer.strategy, stored.path
    name, writer = type(strategy).__name__, stored.record.get("strategy", "")
    deepspeed = isinstance(strategy, DeepSpeedStrategy)
    if stored.kind == "deepspeed" and not deepspeed:
        raise ConfigurationError(
            f"{path} was written by DeepSpeed, which alone reads it, and the strategy is {name}; set trainer.strategy "
            f"as it was, or export its weights (`medvlt export {path} FOLDER`) and begin a new run from FOLDER"
        )
    if stored.kind == "sharded" and not isinstance(strategy, READERS[shards := shards_in(path)]):
        raise ConfigurationError(
            f"{path} is a folder with shards of {shards}, which {name} does not read; set trainer.strategy: "
            f"{shards.lower()}, or export its weights (`medvlt export {path} FOLDER`) and begin "
            "a new run from FOLDER"
        )
    if stored.kind == "file" and deepspeed and not (strategy.zero_stage_3 and strategy.load_full_weights):
        raise ConfigurationError(
            f"{path} is a single file, and DeepSpeed goes on from folders of its own; resume with the strategy that "
            f"wrote it ({writer or 'unknown'}), or export its weights (`medvlt export {path} FOLDER`) and begin a new "
            "run from FOLDER"
        )
    ranks = stored.record.get("world_size", trainer.world_size)
    if stored.kind == "deepspeed" and training and ranks != trainer.world_size:
        raise ConfigurationError(
            f"{path} was written by DeepSpeed on {ranks} ranks and there are {trainer.world_size} now; DeepSpeed "
            f"cannot split its optimizer state anew: use {ranks} ranks, or a strategy that can (fsdp2) in a new run"
        )


def _differences(stored: StoredCheckpoint, module: Any, training: bool, base: str) -> list[str]:
    """Says what of the model differs; a base that is not here, so that only its name is known, is not compared."""
    now, before, found = module.backbone, stored.backbone, []
    # weights that are all in the checkpoint replace those of any base; in training it is the reference policy, too
    known = stored.record.get("base", "") if training or stored.adapters_only else ""
    if known and base and known != base and "@" not in known and "@" not in base:
        found.append(f"its base is {before.name!r} with weights {known}, this one {now.name!r} with weights {base}")
    elif "@" in known and "@" in base and known != base:
        found.append(f"its base is {known}, this one {base}")
    lora = (before.lora, now.lora)
    if not training:
        lora = tuple(None if one is None else replace(one, dropout=0.0) for one in lora)  # type: ignore[assignment]
    if lora[0] != lora[1]:
        found.append(f"backbone.lora was {before.lora}, is {now.lora}")
    if training and set(before.freeze) != set(now.freeze):
        found.append(f"backbone.freeze was {list(before.freeze)}, is {list(now.freeze)}")
    kind = stored.record.get("kind", "")
    if training and kind and kind != kind_of(module):
        found.append(f"{stored.record['module']} wrote it, this is {type(module).__name__}")
    return found


def _check_names(stored: StoredCheckpoint, module: nn.Module) -> None:
    """Without this, adapters that are not in the file would silently stay as they were made."""
    names = {PREFIX + name for name in read_weights(stored)}
    known = {name.replace(WRAPPER, "") for name, _ in (*module.named_parameters(), *module.named_buffers())}
    faults = {"are missing": trained_names(module) - names, "are unknown": names - known}
    if any(faults.values()):
        listed = "; ".join(f"{len(n)} {fault}, such as {min(n)}" for fault, n in faults.items() if n)
        raise ConfigurationError(f"the adapters in {stored.path} are not those of this model: {listed}")
