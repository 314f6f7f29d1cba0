# SPDX-License-Identifier: Apache-2.0
"""Folders that FSDP2 and FSDP1 save: an index, one file of shards per rank, and Lightning's `meta.pt` for the rest."""

from __future__ import annotations

import math
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load

from medvlt.errors import ConfigurationError

INDEX, REST = ".metadata", "meta.pt"
"""The file that says which tensor lies where, and the one with everything that is no tensor."""

ROOTS = ("state_dict", "model")
"""Under which name the module's weights stand: FSDP2's, and FSDP1's."""

_ALLOWED: dict[tuple[str, str], Any] = {
    (kind.__module__, kind.__name__): kind
    for kind in (
        metadata.Metadata,
        metadata.MetadataIndex,
        metadata.TensorStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.TensorProperties,
        metadata.StorageMeta,
        metadata._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo,
        OrderedDict,
    )
}
_ALLOWED |= {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    **{(module, "PosixPath"): PurePosixPath for module in ("pathlib", "pathlib._local")},
    **{(module, "WindowsPath"): PureWindowsPath for module in ("pathlib", "pathlib._local")},
}


class _IndexUnpickler(pickle.Unpickler):
    """Builds only what `torch.distributed.checkpoint` writes into an index; any other pickle could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
            return value
        raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place there")


class _CheckedReader(filesystem.FileSystemReader):
    """Reads shards by an index that was read safely; torch's own reader would unpickle it without restriction."""

    def __init__(self, folder: Path, index: metadata.Metadata) -> None:
        super().__init__(folder)
        self._index = index

    def read_metadata(self, *_: Any, **__: Any) -> metadata.Metadata:
        return self._index


def looks_like(folder: Path) -> bool:
    """Returns whether a folder is, or was to become, a checkpoint of this kind."""
    return any((folder / name).is_file() for name in (INDEX, REST)) or any(folder.glob("*.distcp"))


def read_index(folder: Path) -> metadata.Metadata:
    """Reads the index of a folder, allowing nothing in it but an index.

    Raises:
        ConfigurationError: If the folder is not complete, or the index is something else.
    """
    for name in (INDEX, REST):
        if not (folder / name).is_file():
            raise ConfigurationError(
                f"{folder} has no {name}: it was interrupted while it was written, or copied in part; copy it again "
                "or take another checkpoint"
            )
    try:
        with (folder / INDEX).open("rb") as file:
            index = _IndexUnpickler(file).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ConfigurationError(
            f"{folder / INDEX} cannot be read as the index of a sharded checkpoint: {error}. It is damaged or was not "
            "written by torch; take another checkpoint"
        ) from error
    if not isinstance(index, metadata.Metadata) or not isinstance(index.storage_data, dict):
        raise ConfigurationError(f"{folder / INDEX} is no index of a sharded checkpoint; take another checkpoint")
    return index


def check_shards(folder: Path, index: metadata.Metadata) -> None:
    """Compares the files of a folder with its index, by their names and lengths.

    Raises:
        ConfigurationError: If one is missing, is shorter than the index says, or lies elsewhere.
    """
    lengths: dict[str, int] = {}
    for place in index.storage_data.values():
        lengths[place.relative_path] = max(lengths.get(place.relative_path, 0), place.offset + place.length)
    for name, expected in sorted(lengths.items()):
        shard = folder / name
        if Path(name).name != name:
            raise ConfigurationError(f"{folder / INDEX} names the shard {name!r} outside its folder; do not use it")
        if not shard.is_file():
            raise ConfigurationError(
                f"{folder}: the shard {name} is missing, one of {len(lengths)}; copy it from the node that wrote it, "
                "or take another checkpoint"
            )
        if (found := shard.stat().st_size) < expected:
            raise ConfigurationError(
                f"{folder}: the shard {name} is cut off (expected {expected:,} bytes, found {found:,}); copy it again "
                "or take another checkpoint"
            )


def read_tensors(folder: Path, index: metadata.Metadata, prefix: str) -> dict[str, Tensor]:
    """Reads whole tensors in this process, without the optimizer's.

    Args:
        folder: Its shards have been checked.
        index: Of the folder.
        prefix: Of the names of the tensors that are wanted.

    Returns:
        By their names in the module, `prefix` included, in main memory.

    Raises:
        ConfigurationError: If there are none, parts of one are in no shard, or a shard is damaged.
    """
    wanted: dict[str, Tensor] = {}
    for name, entry in index.state_dict_metadata.items():
        if not name.startswith(tuple(f"{root}.{prefix}" for root in ROOTS)):
            continue
        if not isinstance(entry, metadata.TensorStorageMetadata):
            raise ConfigurationError(f"{folder}: {name} is no tensor; give a checkpoint that `medvlt fit` wrote")
        if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(entry.size):
            raise ConfigurationError(f"{folder}: parts of {name} are in no shard; take another checkpoint")
        wanted[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    if not wanted:
        raise ConfigurationError(f"{folder} holds no weights of a policy; give a checkpoint that `medvlt fit` wrote")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # as it is meant to be
            load(wanted, storage_reader=_CheckedReader(folder, index), no_dist=True)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()), (error, None))[0]
        raise ConfigurationError(f"{folder}: a shard is damaged ({cause}); take another checkpoint") from error
    return {name.partition(".")[2]: tensor for name, tensor in wanted.items()}
