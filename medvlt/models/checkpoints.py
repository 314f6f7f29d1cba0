# SPDX-License-Identifier: Apache-2.0
"""Read what a Trainer's checkpoint says and the weights in it, whichever strategy wrote it.

A checkpoint is one file (one device, DDP, adapters), a folder of shards (FSDP2, FSDP1) or a DeepSpeed folder. Nothing
in it is unpickled without restriction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from medvlt import __version__
from medvlt.errors import ConfigurationError
from medvlt.models import deepspeed_folder, sharded_folder
from medvlt.models.loading import Backbone, LoRA

CheckpointKind: TypeAlias = Literal["file", "sharded", "deepspeed"]

PREFIX = "policy."
"""In front of every weight in a checkpoint: the attribute of `PolicyModule` that holds the policy."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """What a checkpoint says about itself.

    Attributes:
        path: File or folder.
        kind: How it is stored.
        backbone: Settings of the model in it.
        step: Optimizer steps taken.
        record: What `PolicyModule.on_save_checkpoint` wrote under "medvlt"; empty in older checkpoints.
    """

    path: Path
    kind: CheckpointKind
    backbone: Backbone
    step: int
    record: dict[str, Any]

    @property
    def adapters_only(self) -> bool:
        """Whether it holds the adapters and leaves the base where it is."""
        return bool(self.record.get("adapters_only", False))


def read_stored(path: Path) -> StoredCheckpoint:
    """Reads what a checkpoint says about itself; its weights stay on the disk.

    Raises:
        ConfigurationError: If there is none, `medvlt fit` did not write it, it was interrupted while it was written,
            or a part of it is missing or cut off.
    """
    kind = _kind(path)
    if kind == "sharded":
        sharded_folder.check_shards(path, sharded_folder.read_index(path))
        stored = load_safely(path / sharded_folder.REST)
    elif kind == "deepspeed":
        stored = load_safely(deepspeed_folder.check_files(path))
    else:
        stored = load_safely(path)
    if not isinstance(stored, dict) or not {"backbone", "global_step"} <= stored.keys():
        found = ", ".join(map(str, stored)) if isinstance(stored, dict) else type(stored).__name__
        raise ConfigurationError(
            f"expected the keys backbone and global_step in {path}, found {found[:300]}; give a checkpoint that "
            "`medvlt fit` wrote"
        )
    try:
        backbone = backbone_from_record(stored["backbone"])
        return StoredCheckpoint(path, kind, backbone, int(stored["global_step"]), dict(stored.get("medvlt") or {}))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the backbone settings in {path} are not those of medvlt {__version__} ({error}); use the version that "
            "wrote it"
        ) from error


def read_weights(stored: StoredCheckpoint) -> dict[str, Tensor]:
    """Reads the weights of the policy, by the names of `Policy.state_dict`; of adapters only where only they are there.

    Those of a single file stay on the disk until they are used; shards are put together in memory. DeepSpeed's folders
    give the optimizer's float32 weights, also where the forward used them rounded to bfloat16.

    Raises:
        ConfigurationError: If a part cannot be read, or holds something else than tensors.
    """
    if stored.kind == "sharded":
        weights = sharded_folder.read_tensors(stored.path, sharded_folder.read_index(stored.path), PREFIX)
    elif stored.kind == "deepspeed":
        weights = deepspeed_folder.read_tensors(stored.path)
    else:
        weights = load_safely(stored.path).get("state_dict")
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ConfigurationError(f"{stored.path} holds no weights under state_dict; give a checkpoint of `medvlt fit`")
    return {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}


def load_safely(path: Path) -> Any:
    """Loads a file of tensors and plain values; tensors stay on the disk until they are used.

    Raises:
        ConfigurationError: If it cannot be read, or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except deepspeed_folder.UNREADABLE as error:
        raise ConfigurationError(
            f"{path} cannot be read as a checkpoint: {error}. It is cut off, damaged or of another program; take "
            "another checkpoint"
        ) from error


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


def _kind(path: Path) -> CheckpointKind:
    if path.is_file():
        return "file"
    if not path.is_dir():
        raise ConfigurationError(f"there is no checkpoint {path}; check the path")
    if sharded_folder.looks_like(path):
        return "sharded"
    if deepspeed_folder.looks_like(path):
        return "deepspeed"
    raise ConfigurationError(
        f"{path} is a folder and none of the checkpoints that `medvlt fit` writes as one; name the file or folder "
        "inside it, such as last.ckpt"
    )
