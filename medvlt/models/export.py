# SPDX-License-Identifier: Apache-2.0
"""Write what a checkpoint holds as an ordinary model folder, which transformers, vLLM and further runs load."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from huggingface_hub import snapshot_download
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedConfig, Qwen2_5_VLForConditionalGeneration

from medvlt import __version__
from medvlt.data.files import replacing
from medvlt.errors import ConfigurationError, DataError
from medvlt.models.loading import Backbone, LoRA, model_not_found, prepare_backbone, read_config
from medvlt.models.policy import Policy
from medvlt.rollout.weights import hub_weights

ExportDtype: TypeAlias = Literal["auto", "float32", "bfloat16"]
"""Of the written weights; "auto" is the narrowest that holds all stored ones exactly."""

COPIED_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
"""What a folder takes over from its base, byte for byte, where the base has it."""

PREFIX = "policy."
"""In front of every weight in a checkpoint: the attribute of `PolicyModule` that holds the policy."""

SHARD_SIZE = "5GB"
"""Largest weight file, as on the Hub."""

CONSOLIDATE = "python -m lightning.fabric.utilities.consolidate_checkpoint"
"""Makes one file, FOLDER.consolidated, of a sharded checkpoint. Its namesake in `lightning.pytorch` fails on FSDP2."""


@dataclass(frozen=True)
class Trained:
    """What a checkpoint says about its policy.

    Attributes:
        backbone: The settings it was built with.
        weights: By the names of `Policy.state_dict`.
        step: Optimizer steps taken.
    """

    backbone: Backbone
    weights: dict[str, Tensor]
    step: int


def export(checkpoint: str | Path, output: str | Path, base: str | None = None, dtype: ExportDtype = "auto") -> None:
    """Writes the policy of a checkpoint as an ordinary model folder, adapters merged.

    The folder has the weights as safetensors under their Hub names, and the tokenizer, chat template, picture settings
    and generation settings of the base. transformers and vLLM load it, and `backbone.name` of another run may name it.

    Args:
        checkpoint: File that `medvlt fit` wrote.
        output: Folder to make; it must not exist, or be empty.
        base: Folder or Hub name of the model that was trained, if it is no longer where the run found it.
        dtype: Of the weights; "auto" rounds nothing.

    Raises:
        ConfigurationError: If the folder is not empty, the checkpoint is not ours, or the base does not fit it.
        DataError: If the folder cannot be written; nothing is left of it.
    """
    target = Path(output)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigurationError(f"{target} exists and is not empty; choose another folder or delete it first")
    trained = read_checkpoint(Path(checkpoint))
    if base is not None:
        trained = replace(trained, backbone=replace(trained.backbone, name=base, revision=None))
    folder, config = read_base(trained.backbone.name, trained.backbone.revision)
    weights = merged_weights(rebuild_policy(trained, config), None if dtype == "auto" else getattr(torch, dtype))
    card = model_card(target.name, Path(checkpoint), trained, _dtype_of(weights))
    try:
        with replacing(target, overwrite=True) as temporary:  # an empty folder at most, as checked above
            save_model(temporary, weights, config)
            for name in COPIED_FILES:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, temporary / name)
            (temporary / "README.md").write_text(card, encoding="utf-8")
    except SafetensorError as error:
        raise DataError(f"cannot write {target}: {error}; check that the disk has space") from error
    message = f"wrote the model of {checkpoint} at step {trained.step} to {target}"
    Console().print(message, soft_wrap=True, markup=False, highlight=False)


def backbone_record(settings: Backbone) -> dict[str, Any]:
    """Returns the settings as strings, numbers, lists and dictionaries.

    Anything else, such as a `Path` as the name, would make a checkpoint that `torch.load(weights_only=True)` refuses.
    """
    record: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    return record


def backbone_from_record(record: Mapping[str, Any]) -> Backbone:
    """Returns the settings that `backbone_record` wrote down."""
    lora = record["lora"]
    return Backbone(
        **dict(record)
        | {
            "freeze": tuple(record["freeze"]),
            "lora": None if lora is None else LoRA(**lora | {"components": tuple(lora["components"])}),
        }
    )


def read_checkpoint(path: Path) -> Trained:
    """Reads a checkpoint; its weights stay on the disk until they are used.

    Raises:
        ConfigurationError: If it is not a file that `PolicyModule` wrote.
    """
    if path.is_dir():
        if (path / "meta.pt").is_file():
            raise ConfigurationError(
                f"expected a single file, but {path} is a sharded checkpoint; run `{CONSOLIDATE} {path}` and export "
                f"{path}.consolidated"
            )
        raise ConfigurationError(f"expected a checkpoint file, but {path} is a folder; name the file inside it")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no checkpoint {path}; check the path") from error
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigurationError(f"{path} cannot be read as a Lightning checkpoint: {error}") from error
    if not isinstance(stored, dict) or not {"backbone", "state_dict", "global_step"} <= stored.keys():
        found = ", ".join(map(str, stored)) if isinstance(stored, dict) else type(stored).__name__
        raise ConfigurationError(
            f"expected the keys backbone, state_dict and global_step in {path}, found {found[:300]}; give a checkpoint "
            "that `medvlt fit` wrote"
        )
    try:
        backbone = backbone_from_record(stored["backbone"])
    except (KeyError, TypeError) as error:
        raise ConfigurationError(
            f"the backbone settings in {path} are not those of medvlt {__version__} ({error}); export it with the "
            "version that wrote it"
        ) from error
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in stored["state_dict"].items()}
    return Trained(backbone, weights, int(stored["global_step"]))


def read_base(name: str, revision: str | None = None) -> tuple[Path, PreTrainedConfig]:
    """Finds what a base has beside its weights; fetches it if it is a name on the Hub.

    Returns:
        The folder with the files, and the configuration of the model.

    Raises:
        ConfigurationError: If it is not there, is not a Qwen2.5-VL, or lacks its tokenizer or picture settings.
    """
    folder, called, remedy = Path(name), f"the base {name!r}", "say with --base where it is"
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=["config.json", *COPIED_FILES]))
        except (OSError, ValueError) as error:
            raise model_not_found(called, remedy, error) from error
    config = read_config(str(folder), None, called=called, remedy=remedy)
    for needed in (["tokenizer_config.json"], ["preprocessor_config.json", "processor_config.json"]):
        if not any((folder / file).is_file() for file in needed):
            raise ConfigurationError(
                f"{called} has no {' or '.join(needed)}, without which no prompt can be encoded; name a "
                "complete model with --base"
            )
    return folder, config


def rebuild_policy(trained: Trained, config: PreTrainedConfig) -> Policy:
    """Builds the policy without weights and gives it those of the checkpoint, each exactly once.

    Raises:
        ConfigurationError: If names or shapes differ; the message lists them.
    """
    settings = trained.backbone
    with torch.device("meta"):
        policy = Policy(prepare_backbone(Qwen2_5_VLForConditionalGeneration(config).float(), settings))
    expected, stored = policy.state_dict(), trained.weights
    faults = {
        "missing": sorted(expected.keys() - stored.keys()),
        "unexpected": sorted(stored.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(stored[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in stored and stored[name].shape != tensor.shape
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {fault}: {_listed(names)}" for fault, names in faults.items() if names)
        raise ConfigurationError(
            f"the weights of the checkpoint are not those of {settings.name!r} with lora={settings.lora}. {listed}. "
            "Name the model that was trained with --base"
        )
    policy.load_state_dict(stored, assign=True)
    policy.base.tie_weights()  # assigned one by one, tied embeddings are two parameters
    return policy


def merged_weights(policy: Policy, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Returns the weights by their Hub names, adapters merged, tied embeddings once.

    Args:
        policy: Is converted to the dtype that holds all its weights exactly, so that float32 adapters are added to a
            bfloat16 base in float32.
        dtype: Of the result; None for that dtype.
    """
    policy.to(dtype=reduce(torch.promote_types, {parameter.dtype for parameter in policy.parameters()}))
    return {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in hub_weights(policy)}


def save_model(folder: Path, weights: Mapping[str, Tensor], config: PreTrainedConfig) -> None:
    """Writes weights and configuration as transformers does."""
    dtype = _dtype_of(weights)
    config.text_config.dtype = config.vision_config.dtype = dtype  # transformers sets the outer one alone
    with torch.device("meta"):
        shell = Qwen2_5_VLForConditionalGeneration(config).to(dtype)
    shell.save_pretrained(folder, state_dict=dict(weights), max_shard_size=SHARD_SIZE)  # it empties the dict


def model_card(title: str, checkpoint: Path, trained: Trained, dtype: torch.dtype) -> str:
    """Returns the README of an exported folder."""
    base = trained.backbone
    revision = "" if base.revision is None else f" at revision `{base.revision}`"
    parts = f"all weights but {', '.join(base.freeze)}" if base.freeze else "all weights"
    if base.lora is not None:
        parts = f"LoRA adapters of rank {base.lora.rank} on {', '.join(base.lora.components)}, merged"
    return (
        f"# {title}\n\n"
        "> Research software, **not for clinical use**. This model must not be used to diagnose, treat or advise.\n\n"
        f"- base: `{base.name}`{revision}\n"
        f"- checkpoint: `{checkpoint}`, optimizer step {trained.step}\n"
        f"- trained: {parts}\n"
        f"- dtype: {str(dtype).removeprefix('torch.')}\n"
        f"- written by `medvlt export`, medvlt {__version__}\n"
    )


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _dtype_of(weights: Mapping[str, Tensor]) -> torch.dtype:
    return next(iter(weights.values())).dtype
