# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor

from medvlt.errors import ConfigurationError, EngineError, MissingExtraError
from medvlt.models.loading import Backbone, load_backbone
from medvlt.models.policy import Policy
from medvlt.rollout.vllm_start import (
    NOISY_LOGGER,
    computing_dtype,
    import_vllm,
    kv_cache_bytes,
    placement,
    start_error,
)


@pytest.mark.parametrize("version", ["0.25.1", "0.33.0", "1.0"])
def test_other_releases_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__=version))
    with pytest.raises(ConfigurationError, match=rf"expected vLLM 0.26 to 0.32, found {version}; install 0.32.0"):
        import_vllm()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(MissingExtraError, match=r"medvlt\[vllm(-cpu)?\]"):
        import_vllm()


def test_the_user_s_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.32.0+cpu"))
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    import_vllm()
    assert (os.environ["VLLM_LOGGING_LEVEL"], os.environ["VLLM_NO_USAGE_STATS"]) == ("DEBUG", "1")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(ConfigurationError, match="unset it or set it to 0"):
        import_vllm()


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "too little memory"),
        ("Free memory on device cuda:0 (3/80 GiB) is less than desired GPU memory utilization", "too little memory"),
        ("To serve at least one request (1.2 GiB KV cache is needed), larger than the available", "too little memory"),
        ("Invalid repository ID or local directory specified: '/nowhere'", "cannot load '/nowhere'"),
    ],
)
def test_errors_of_the_start_say_what_to_change(message: str, kind: str) -> None:
    names = ("model", "gpu_memory_utilization", "kv_cache_memory_bytes", "max_model_len", "limit_mm_per_prompt")
    arguments = dict.fromkeys(names, 4096) | {"model": "/nowhere"}
    error = start_error(ValueError(message), arguments)
    assert isinstance(error, ConfigurationError)
    assert kind in str(error)
    assert message in str(error)
    assert kind != "too little memory" or "'kv_cache_memory_bytes': 4096" in str(error)
    assert isinstance(start_error(RuntimeError("CUDA error"), arguments), EngineError)


def test_tensor_parallel_needs_ranks() -> None:
    with pytest.raises(ConfigurationError, match=r"the trainer has 1; set trainer\.devices"):
        placement(2)


@pytest.mark.parametrize(
    ("weights", "autocast", "expected"),
    [
        ("float32", None, "float32"),  # also on a GPU
        ("bfloat16", None, "bfloat16"),
        ("float32", torch.bfloat16, "bfloat16"),
        ("float32", torch.float16, "float16"),
        ("bfloat16", torch.float16, "float16"),
    ],
)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_engine_computes_in_the_type_of_the_policy_s_forward(
    weights: Literal["float32", "bfloat16"],
    autocast: torch.dtype | None,
    expected: str,
    on_gpu: bool,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the weights are in main memory and the engine is not, as with `cpu_offload`."""
    policy = Policy(load_backbone(Backbone(str(tiny_folder), dtype=weights)))
    layer = policy.base.model.language_model.layers[0].mlp.gate_proj
    if on_gpu:  # autocast of the GPU, which is off where there is none
        with monkeypatch.context() as patch:
            patch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda" and autocast is not None)
            patch.setattr(torch, "get_autocast_dtype", {"cuda": autocast}.__getitem__)
            assert computing_dtype(policy, on_gpu=True) == expected
        return
    with nullcontext() if autocast is None else torch.autocast("cpu", autocast):
        assert computing_dtype(policy, on_gpu=False) == expected
        output = layer(torch.zeros(1, layer.in_features, dtype=layer.weight.dtype))
    assert str(output.dtype) == f"torch.{expected}"


def test_without_a_policy_the_device_decides() -> None:
    assert [computing_dtype(None, on_gpu=gpu) for gpu in (False, True)] == ["float32", "bfloat16"]


def test_the_size_of_the_cache_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for unset in (None, ""):  # both are no size to vLLM
        monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
        if unset is not None:
            monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", unset)
        assert [kv_cache_bytes(None, on_gpu=gpu) for gpu in (False, True)] == [2**30, None]
        assert kv_cache_bytes(0.5, on_gpu=False) == 2**29
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "8")
    assert kv_cache_bytes(None, on_gpu=False) is None
    assert kv_cache_bytes(0.5, on_gpu=True) == 2**29  # the variable is not for GPUs
    with pytest.raises(ConfigurationError, match=r"kv_cache_gib=0\.5 and VLLM_CPU_KVCACHE_SPACE=8 .* unset one"):
        kv_cache_bytes(0.5, on_gpu=False)


def test_warnings_about_vllm_s_own_calls_are_not_shown(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.32.0"))
    processor = AutoImageProcessor.from_pretrained(tiny_folder)
    picture = np.zeros((56, 56, 3), dtype=np.uint8)

    def warn() -> None:
        processor(picture, min_pixels=784, max_pixels=7840)
        torch.distributed.reduce_op.__dict__  # noqa: B018
        warnings.warn("of the trainer", FutureWarning, stacklevel=1)

    shown = []
    for silenced in (False, True):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            if silenced:
                import_vllm()
            warn()
        shown.append([str(warning.message)[:10] for warning in seen])
    assert shown == [["Passing `m", "`torch.dis", "of the tra"], ["of the tra"]]


def test_errors_are_logged_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.32.0"))
    import_vllm()
    records = [
        logging.LogRecord(NOISY_LOGGER, level, "", 0, "", (), None) for level in (logging.WARNING, logging.ERROR)
    ]
    assert [bool(logging.getLogger(NOISY_LOGGER).filter(record)) for record in records] == [False, True]
