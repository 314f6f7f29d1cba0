# SPDX-License-Identifier: Apache-2.0
"""Folders that DeepSpeed saves: whole weights under ZeRO-1 and ZeRO-2, each rank's share of them under ZeRO-3."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medvlt.errors import ConfigurationError

LATEST, FILES = "latest", "checkpoint"
"""The file that DeepSpeed writes last, and the folder with all others; Lightning gives it that name."""

WHOLE = "mp_rank_00_model_states.pt"
"""Weights and Lightning's state where each rank had whole weights."""

SHARE = "zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
"""Lightning's state and the frozen weights of one rank under ZeRO-3."""

OPTIMIZER_SHARE = "*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
"""Trained weights and optimizer state of one rank; with "bf16_" in front in some precisions."""


class _Ignored:
    """Stands for DeepSpeed's own classes, of which nothing is needed."""

    def __init__(self, *_: object) -> None: ...


KNOWN_CLASSES = (
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""What DeepSpeed's files name besides tensors and plain values."""

_SAFE: list[Any] = [(int if name.endswith("Enum") else _Ignored, name) for name in KNOWN_CLASSES]
"""Stand-ins for these classes; none of DeepSpeed's code runs."""

UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError)
"""What `torch.load` raises for a file that is damaged, cut off, or no checkpoint at all."""


def looks_like(folder: Path) -> bool:
    """Returns whether a folder is, or was to become, a checkpoint of this kind."""
    return (folder / LATEST).is_file() or any((folder / FILES).glob("*_states.pt"))


def check_files(folder: Path) -> Path:
    """Checks that every rank's files are there and not cut off.

    Returns:
        The file with Lightning's state.

    Raises:
        ConfigurationError: If the folder is not complete.
    """
    if not (folder / LATEST).is_file():
        raise ConfigurationError(
            f"{folder} has no file {LATEST!r}: it was interrupted while it was written, or copied in part; copy it "
            "again or take another checkpoint"
        )
    whole, first = folder / FILES / WHOLE, folder / FILES / SHARE.format(rank=0)
    if not whole.is_file() and not first.is_file():
        raise ConfigurationError(
            f"{folder / FILES} has neither {WHOLE} nor {first.name}; copy it from the node that wrote it, or take "
            "another checkpoint"
        )
    state = whole if whole.is_file() else first
    stored = _load(state)
    if stored.get("param_shapes") is not None:  # else there is no ZeRO, and all is in this file
        ranks = int(stored["dp_world_size"])
        for path in _optimizer_shares(folder, ranks) + ([] if state == whole else _model_shares(folder, ranks)):
            _load(path)  # maps it, and finds its end
    return state


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Reads whole weights, by their names in the module; the trained ones as the optimizer has them, in float32.

    Raises:
        ConfigurationError: If a file is damaged, or the shares of the ranks do not fit together.
    """
    if (folder / FILES / WHOLE).is_file():
        return _whole_tensors(folder)
    return _split_tensors(folder)


def _whole_tensors(folder: Path) -> dict[str, Tensor]:
    """Reads what ZeRO-1 and ZeRO-2 save; without ZeRO, weights are as the forward used them."""
    state = _load(folder / FILES / WHOLE)
    weights: dict[str, Tensor] = dict(state.get("module") or {})
    if state.get("param_shapes") is None:
        return weights
    shares = [_load(path)["optimizer_state_dict"] for path in _optimizer_shares(folder, int(state["dp_world_size"]))]
    masters: dict[str, Tensor] = {}
    for number, shapes in enumerate(state["param_shapes"]):  # a group of the optimizer is cut into one piece per rank
        try:
            flat = torch.cat([share["single_partition_of_fp32_groups"][number].detach().flatten() for share in shares])
            paddings = shares[0].get("param_alignment_paddings") or {}
            after = list(paddings[number]) if paddings else [0] * len(shapes)
            begin = 0
            for (name, shape), padding in zip(shapes.items(), after, strict=True):
                masters[name] = flat[begin : begin + math.prod(shape)].view(shape)
                begin += math.prod(shape) + padding
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigurationError(
                f"{folder}: the ranks' float32 weights are not laid out as this version knows it ({error!r}); take "
                "another checkpoint"
            ) from error
    for name, master in masters.items():
        if name not in weights or not torch.equal(master.to(weights[name].dtype), weights[name]):
            raise ConfigurationError(
                f"{folder}: the float32 weights of {name} are not those that the forward used, rounded; its files are "
                "of different steps or are damaged; take another checkpoint"
            )
    aliases = {name: masters[same] for name, same in (state.get("shared_params") or {}).items() if same in masters}
    return weights | masters | aliases


def _split_tensors(folder: Path) -> dict[str, Tensor]:
    """Reads what ZeRO-3 saves: of every weight a share for each rank."""
    ranks = int(_load(folder / FILES / SHARE.format(rank=0))["dp_world_size"])
    states = [_load(path) for path in _model_shares(folder, ranks)]
    trained = []
    for path in _optimizer_shares(folder, ranks):
        groups = _load(path)["optimizer_state_dict"]["fp32_flat_groups"]
        trained.append(torch.cat([group.detach().flatten() for group in groups]))
    first = states[0]
    weights: dict[str, Tensor] = {name: first["module"][name] for name in first["buffer_names"]}
    for name, shape in (first["frozen_param_shapes"] or {}).items():
        shares = [state["frozen_param_fragments"][name].flatten() for state in states]
        weights[name] = torch.cat(shares)[: math.prod(shape)].view(shape)
    begin = 0
    for name, shape in ((name, shape) for group in first["param_shapes"] for name, shape in group.items()):
        share = -(-math.prod(shape) // ranks)  # the last ranks' shares are padded
        parts = [flat[begin : begin + share] for flat in trained]
        if any(len(part) < share for part in parts):
            raise ConfigurationError(f"{folder}: the shares of {name} are shorter than its shape {tuple(shape)}")
        weights[name] = torch.cat(parts)[: math.prod(shape)].view(shape)
        begin += share
    if begin != len(trained[0]):
        raise ConfigurationError(f"{folder}: the ranks hold {len(trained[0]):,} values each, the names {begin:,}")
    return weights | {name: weights[same] for name, same in (first["shared_params"] or {}).items() if same in weights}


def _model_shares(folder: Path, ranks: int) -> list[Path]:
    return _shares(folder, ranks, SHARE)


def _optimizer_shares(folder: Path, ranks: int) -> list[Path]:
    return _shares(folder, ranks, OPTIMIZER_SHARE)


def _shares(folder: Path, ranks: int, of_rank: str) -> list[Path]:
    shares = []
    for rank in range(ranks):
        pattern = of_rank.format(rank=rank)
        found = sorted((folder / FILES).glob(pattern))
        if not found:
            raise ConfigurationError(
                f"{folder / FILES}: {pattern.removeprefix('*')} is missing, one of {ranks} ranks'; copy it from the "
                "node that wrote it, or take another checkpoint"
            )
        shares.append(found[0])
    return shares


def _load(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_SAFE):
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE as error:
        raise ConfigurationError(
            f"{path} cannot be read as a file of DeepSpeed: {error}. It is cut off, damaged or of another release; "
            "take another checkpoint"
        ) from error
    if not isinstance(stored, dict):
        raise ConfigurationError(f"{path} is no file of DeepSpeed; take another checkpoint")
    return stored
