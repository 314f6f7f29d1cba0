# SPDX-License-Identifier: Apache-2.0
"""The strategies as they run on CPUs with gloo, and processes to run them in."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy

Kind: TypeAlias = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]

HAS_DEEPSPEED = find_spec("deepspeed") is not None

needs_deepspeed = pytest.mark.skipif(not HAS_DEEPSPEED, reason="DeepSpeed is not installed")


class CPUDeepSpeed(DeepSpeedStrategy):
    """Lightning's strategy without its assertion that there is CUDA; DeepSpeed itself runs on CPUs."""

    def setup_environment(self) -> None:
        assert self.parallel_devices is not None
        self.parallel_devices = [torch.device("cpu", number) for number in range(len(self.parallel_devices))]
        super(DeepSpeedStrategy, self).setup_environment()


def strategy(kind: Kind, ranks: int = 2) -> Any:
    """Returns what to pass as `Trainer(strategy=)`."""
    if kind == "single":
        return "auto"
    if kind == "ddp":
        return DDPStrategy(process_group_backend="gloo")
    if kind == "fsdp2":
        return ModelParallelStrategy(ranks, 1, process_group_backend="gloo")
    without_compiler()
    deepspeed = CPUDeepSpeed(stage=int(kind[-1]), process_group_backend="gloo")
    # ZeRO-3 keeps parameters below 100,000 numbers whole, which are all of a tiny model's
    deepspeed.config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return deepspeed


def without_compiler() -> None:
    """Keeps DeepSpeed from compiling its shared-memory all-reduce, which takes 100 s and is only faster than gloo."""
    import deepspeed.comm.torch

    deepspeed.comm.torch.build_shm_op = lambda: None


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def spawn(function: Callable[..., None], *arguments: Any, ranks: int = 2) -> None:
    """Runs `function(rank, *arguments)` in processes of their own, as torchrun would start them."""
    torch.multiprocessing.spawn(_as_rank, (function, free_port(), arguments), nprocs=ranks)


def _as_rank(rank: int, function: Callable[..., None], port: int, arguments: tuple[Any, ...]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    # left by a test that called seed_everything: strategies of several processes seed from it, one process does not
    os.environ.pop("PL_GLOBAL_SEED", None)
    torch.set_num_threads(1)
    function(rank, *arguments)
