# SPDX-License-Identifier: Apache-2.0
"""vLLM in a process that belongs to a trainer: its changes to the process are undone, the trainer's modes kept out."""

from __future__ import annotations

import gc
import os
import random
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from medvlt.rollout.weights import CheckedWeights

Value = TypeVar("Value")

KEPT_VARIABLES = ("VLLM_", "TORCHINDUCTOR_", "TRITON_", "TILELANG_", "PYTORCH_", "NCCL_")
"""Beginnings of the names that vLLM sets for libraries which read them later than at its start."""


@contextmanager
def isolated(*, compile_allowed: bool, variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """Keeps the trainer's modes out of vLLM, and vLLM's changes out of the trainer.

    Inside there is no autocast, no inference mode (weights made in it could never be updated) and the default type is
    float32. Afterwards the environment, all random states and `torch.set_num_threads` are what they were: vLLM seeds
    the generators when it starts, draws from them when it samples, and on a CPU replaces the function by a stub.

    Args:
        compile_allowed: False stops torch.compile from building the few helpers that vLLM compiles even in eager mode,
            which on a CPU takes longer than a rollout of a small model.
        variables: Set in the environment meanwhile.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    set_num_threads, default_type = torch.set_num_threads, torch.get_default_dtype()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    frozen = gc.get_freeze_count()
    with ExitStack() as stack:
        stack.enter_context(restored_environment(variables or {}))
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cuda" if devices else "cpu", enabled=False))
        if not compile_allowed:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            torch.set_default_dtype(torch.float32)
            yield
        finally:
            torch.set_default_dtype(default_type)
            torch.set_num_threads = set_num_threads
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            if frozen == 0:
                gc.unfreeze()  # on start vLLM freezes all there is, the trainer's garbage included


@contextmanager
def restored_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables, and restores all afterwards that are not settings of vLLM's own libraries.

    What vLLM adds to LD_PRELOAD and LOCAL_WORLD_SIZE would reach every child process and the trainer.

    Args:
        variables: Set meanwhile.
    """
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        kept = {name: value for name, value in os.environ.items() if name.startswith(KEPT_VARIABLES)}
        for name in os.environ.keys() - before.keys() - kept.keys():
            del os.environ[name]
        os.environ.update(before | kept)


def free_cached_memory() -> None:
    """Gives back the blocks that torch keeps for tensors that are gone; vLLM allocates beside torch and never asks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def release_frames(error: BaseException) -> None:
    """Lets go of what the ended frames of an error and of its causes hold: vLLM's model, activations, KV cache.

    Whoever keeps the error would keep them, and vLLM's allocator refuses a second engine beside them.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def end_vllm(engine_core: Any, *, keep_default_group: bool) -> None:
    """Ends an engine and removes vLLM's process groups from this process.

    Args:
        engine_core: Client of the engine's core; None if the construction failed before there was one.
        keep_default_group: Whether torch.distributed's default group is the trainer's; vLLM would destroy it.
    """
    from vllm.distributed import cleanup_dist_env_and_memory

    destroy = dist.destroy_process_group

    def destroy_others(group: dist.ProcessGroup | None = None) -> None:
        if group is not None and group is not dist.group.WORLD:
            destroy(group)

    if keep_default_group:
        dist.destroy_process_group = destroy_others
    try:
        if engine_core is not None:
            engine_core.shutdown()
        cleanup_dist_env_and_memory()
    finally:
        dist.destroy_process_group = destroy


def gather_sharers(value: Value, sharers: int) -> list[Value]:
    """Returns the value of every rank that shares this rank's engine, in rank order.

    Args:
        value: This rank's; picklable.
        sharers: How many ranks share the engine.
    """
    if sharers == 1:
        return [value]
    from vllm.distributed import get_tp_group

    values: list[Any] = [None] * sharers
    dist.all_gather_object(values, value, group=get_tp_group().cpu_group)
    return values


def reload_weights(worker: Any, weights: CheckedWeights) -> set[str]:
    """Runs in vLLM's worker: replaces the weights in place and returns the parameters that were not written.

    Args:
        worker: vLLM's.
        weights: Every tensor of the model.
    """
    model: nn.Module = worker.model_runner.get_model()
    names = {name for name, _ in model.named_parameters()}
    load: Callable[..., set[str]] = model.load_weights  # type: ignore[assignment]
    written: set[str] = set()

    def load_and_note(stream: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded = load(stream)
        written.update(loaded)
        return loaded

    model.load_weights = load_and_note  # type: ignore[assignment]
    try:
        worker.reload_weights(weights_iterator=iter(weights))
    finally:
        del model.load_weights
    language: Any = model.language_model
    if language.lm_head.weight is language.model.embed_tokens.weight:
        # vLLM writes the embedding alone, and on a CPU the head computes with a repacked copy of it
        language.lm_head.quant_method.process_weights_after_loading(language.lm_head)
    return names - written
