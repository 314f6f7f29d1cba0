# SPDX-License-Identifier: Apache-2.0
"""Rollouts with vLLM inside the training process: its own copy of the weights, paged attention, continuous batches."""

from __future__ import annotations

import logging
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from medvlt.data.encoder import PromptEncoder
from medvlt.distributed import together
from medvlt.errors import DataError, EngineError
from medvlt.models.loading import read_config
from medvlt.models.policy import Policy
from medvlt.rollout.base import RolloutEngine
from medvlt.rollout.refusal import refuse
from medvlt.rollout.store_identity import FingerprintedWeights, model_identity
from medvlt.rollout.vllm_process import (
    end_vllm,
    free_cached_memory,
    gather_sharers,
    isolated,
    release_frames,
    reload_weights,
)
from medvlt.rollout.vllm_requests import Request, build_request, rollout_group, vllm_inputs
from medvlt.rollout.vllm_start import (
    ALWAYS,
    banning_processor,
    check_free_memory,
    check_settings,
    computing_dtype,
    import_vllm,
    kv_cache_bytes,
    placement,
    start_error,
)
from medvlt.rollout.weights import CheckedWeights, model_shapes
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams

logger = logging.getLogger(__name__)


class VLLMEngine(RolloutEngine):
    """Samples with vLLM, in this process and on the trainer's devices.

    The engine has weights of its own: `load_weights` replaces them in place and clears everything computed from the old
    ones. Settings that are None are chosen for the platform; CPU and GPU differ in nothing else.

    In a distributed run every rank has an engine for its own prompts, or `tensor_parallel_size` neighbouring ranks
    share one: then they call every method together, with any number of prompts each, also none. Starting is a step of
    all ranks together.

    An engine that wakes up takes the memory of its weights; that of the KV cache is taken when it samples, so weights
    are loaded while there is room for what the trainer gathers.

    Args:
        model: Folder or Hub name of the first weights; None for the encoder's model.
        revision: Branch, tag or commit of `model` on the Hub; of the encoder's model, its own is used.
        dtype: Of the weights and the computation. "auto": what the policy's forward computes in, which is autocast's
            type if `start` is called under autocast (bf16-mixed), else that of the policy's weights; without a policy
            float32 on a CPU and bfloat16 on a GPU.
        max_model_len: Longest prompt and completion together, in tokens; at most what the model allows. A prompt that
            leaves no room is refused, one that leaves less than was asked for gets shorter completions.
        max_images: Most pictures in a prompt; one with more is refused.
        gpu_memory_utilization: Share of the GPU's memory that vLLM takes for weights and KV cache, in (0, 1]. It comes
            on top of what the trainer holds and must be free at every start. The optimizer's state appears only after
            the first one, so keep the share below 1 - (weights, gradients and optimizer state of the trainer) / memory.
        kv_cache_gib: Size of the KV cache in GiB, in place of what that share leaves; the share must be free all the
            same. None on a CPU: 1 GiB, or VLLM_CPU_KVCACHE_SPACE; setting both is an error.
        tensor_parallel_size: Ranks that share one engine; they must be on one node.
        sleep_level: 1 moves the weights to the host and drops the KV cache in `sleep`, 0 keeps both. None: 1 on a GPU.
        enforce_eager: Run without CUDA graphs and torch.compile. None: on a CPU only.
        max_num_seqs: Completions decoded at a time; None for vLLM's default.

    Attributes:
        refused: How many prompts of each kind were refused; see `medvlt.rollout.refusal`.
    """

    _running: weakref.ref[VLLMEngine] | None = None  # vLLM's process groups are global, so there can be only one

    def __init__(
        self,
        model: str | None = None,
        revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        max_model_len: int = 8192,
        max_images: int = 4,
        gpu_memory_utilization: float = 0.5,
        kv_cache_gib: float | None = None,
        tensor_parallel_size: int = 1,
        sleep_level: int | None = None,
        enforce_eager: bool | None = None,
        max_num_seqs: int | None = None,
    ) -> None:
        self.model = model
        self.revision = revision
        self.dtype = dtype
        self.max_model_len = max_model_len
        self.max_images = max_images
        self.gpu_memory_utilization = gpu_memory_utilization
        self.kv_cache_gib = kv_cache_gib
        self.tensor_parallel_size = tensor_parallel_size
        self.sleep_level = sleep_level
        self.enforce_eager = enforce_eager
        self.max_num_seqs = max_num_seqs
        check_settings(vars(self))
        self.version = 0
        self.refused: Counter[str] = Counter()
        self._llm: Any = None
        self._encoder: PromptEncoder | None = None
        self._expected: dict[str, torch.Size] = {}
        self._weights = ""  # fingerprint of those that were loaded
        self._limit = max_model_len
        self._had_group = False
        self._asleep = False
        self._cache_asleep = False  # also while the weights are awake, until something is sampled
        self._broken: str | None = None  # why only a new start helps
        self._unloaded: str | None = None  # why weights must be loaded before sampling

    @property
    def _on_gpu(self) -> bool:
        return torch.cuda.is_available()

    @property
    def _eager(self) -> bool:
        return not self._on_gpu if self.enforce_eager is None else self.enforce_eager

    @property
    def _sleeps(self) -> bool:
        return self._on_gpu and self.sleep_level != 0

    def start(self, encoder: PromptEncoder, policy: Policy | None) -> None:
        """Starts vLLM with the weights of the model folder; with another encoder than before it starts again.

        Args:
            encoder: Turns samples into prompts; also names the model.
            policy: Decides, with autocast where it is on, the type of the weights if that is "auto".

        Raises:
            MissingExtraError: If vLLM is not installed.
            ConfigurationError: If the release, the model, the memory or the processes do not fit the settings.
            EngineError: If another vLLM engine runs in this process, or vLLM fails for any other reason.
        """
        if self._llm is not None and encoder == self._encoder and self._broken is None:
            return
        self.close()
        other = VLLMEngine._running and VLLMEngine._running()
        if other is not None:
            raise EngineError(
                "another VLLMEngine runs in this process and vLLM allows one; share it, or close it first"
            )
        logger.info("starting vLLM")
        begin = time.perf_counter()
        # all that can be found out before: a rank that failed inside vLLM would leave the others waiting there
        vllm, arguments, variables = together(lambda: self._prepare(encoder, policy))
        self._had_group = dist.is_initialized()
        VLLMEngine._running = weakref.ref(self)
        try:
            with isolated(compile_allowed=not self._eager, variables=variables):
                self._llm = vllm.LLM(**arguments)
        except Exception as error:
            release_frames(error)
            self._end(None)
            raise start_error(error, arguments) from error
        self._encoder, self._broken = encoder, None
        self._asleep = self._cache_asleep = False
        self._unloaded, self._weights = None, ""
        self.version = 0
        logger.info("vLLM %s has started in %.0f s", vllm.__version__, time.perf_counter() - begin)

    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        """Samples `params.n` completions for each sample, in the order given.

        A prompt that is too long, has too many pictures or one that cannot be read is refused: its completions are
        empty and end with "error".

        Raises:
            EngineError: If the engine is closed, asleep or without good weights, or vLLM fails; the message names the
                last request.
        """
        encoder = self._awake()
        if self._unloaded is not None:
            raise EngineError(f"the engine {self._unloaded}; call load_weights with all weights first")
        prepared: list[Request | RolloutGroup] = []
        for sample, key in zip(samples, keys, strict=True):
            try:
                limits = {"max_images": self.max_images, "max_model_len": self._limit}
                prepared.append(build_request(encoder, sample, params, key, **limits))
            except DataError as error:
                prepared.append(refuse(sample, error, n=params.n, version=self.version, counts=self.refused))
        requests = [request for request in prepared if isinstance(request, Request)]
        self._wake_cache()
        outputs = iter(zip(requests, self._sample(encoder, requests, params), strict=True))
        return [
            rollout_group(encoder, sample, *next(outputs), n=params.n, version=self.version)
            if isinstance(request, Request)
            else request
            for sample, request in zip(samples, prepared, strict=True)
        ]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Replaces all weights in place, and clears the caches of prefixes, vision features and pictures.

        Args:
            weights: Every tensor of the model once, under its Hub name, in any floating-point type.
            version: Written on every completion sampled afterwards.

        Raises:
            EngineError: Naming the tensors, if some are missing, unknown, doubled or of another shape, or if the source
                or vLLM fails. The engine then does not sample until a later call succeeds.
        """
        self._awake()
        noted = FingerprintedWeights(weights)
        stream = CheckedWeights(noted, self._expected, self._llm.model_config.dtype)
        self._unloaded = "has only part of its weights, as loading them failed"
        try:
            with self._guarded("while it loaded weights"):
                unwritten = self._llm.collective_rpc(reload_weights, args=(stream,))[0]
                reset = self._llm.reset_prefix_cache()
                self._llm.llm_engine.reset_encoder_cache()
                self._llm.reset_mm_cache()
        except EngineError:
            stream.drain()
            raise
        stream.drain()  # vLLM may have stopped early
        problems = stream.problems()
        if unwritten and not problems:  # else it says the same again in vLLM's names
            problems.append(f"vLLM did not write {len(unwritten)} of its parameters: {', '.join(sorted(unwritten))}")
        if not reset:
            problems.append("vLLM did not clear its prefix cache, as requests are still running")
        found = gather_sharers(problems, self.tensor_parallel_size)
        if any(found):
            faults = "; ".join(dict.fromkeys(fault for share in found for fault in share))
            raise EngineError(f"the weights of version {version} were not taken over: {faults}") from stream.error
        self._unloaded = None
        self._weights = noted.fingerprint
        self.version = version

    def identity(self) -> dict[str, Any]:
        """Returns its name, the fingerprint of its weights, their type and its longest sequence.

        Weights that were loaded have another fingerprint than the folder that holds the same ones.
        """
        encoder = self._alive()
        model = (encoder.model, encoder.revision) if self.model is None else (self.model, self.revision)
        return {
            "engine": "VLLMEngine",
            "weights": self._weights or model_identity(*model),
            "dtype": str(self._llm.model_config.dtype).removeprefix("torch."),
            "max_model_len": self._limit,
        }

    def sleep(self) -> None:
        """Gives memory back (on a GPU: weights to the host, KV cache away); nothing is sampled until `wake`."""
        if self._llm is None or self._asleep:
            return
        self._awake()
        if self._sleeps:
            self._wake_cache()  # vLLM takes an engine that sleeps in part for one that sleeps, and keeps its weights
            with self._guarded("while it fell asleep"):
                self._llm.sleep(level=1)
            self._cache_asleep = True
        self._asleep = True

    def wake(self) -> None:
        """Takes the memory of the weights again; that of the KV cache follows with the first prompts."""
        if self._llm is None or not self._asleep:
            return
        self._alive()
        if self._sleeps:
            free_cached_memory()
            with self._guarded("while it woke up"):
                self._llm.wake_up(tags=["weights"])
        self._asleep = False

    def _wake_cache(self) -> None:
        if self._cache_asleep:
            free_cached_memory()
            with self._guarded("while it took the memory of its KV cache"):
                self._llm.wake_up(tags=["kv_cache"])
            self._cache_asleep = False

    def close(self) -> None:
        """Ends vLLM and frees its memory; the engine can be started again."""
        if self._llm is not None:
            self._end(self._llm.llm_engine.engine_core)

    def _end(self, engine_core: Any) -> None:
        self._llm = self._encoder = None
        try:
            end_vllm(engine_core, keep_default_group=self._had_group)
        except Exception as error:  # nothing can be done about it, and an error that is on its way must not be hidden
            logger.warning("vLLM did not end cleanly: %s: %s", type(error).__name__, error)
        VLLMEngine._running = None
        del engine_core
        free_cached_memory()

    def _alive(self) -> PromptEncoder:
        """Returns the encoder, if the engine is started and whole.

        `_llm` itself stays out of local variables: whoever keeps an error would keep the engine's memory with them.
        """
        if self._llm is None or self._encoder is None:
            raise EngineError("the engine is not started, or was closed; call start(encoder, policy) first")
        if self._broken is not None:
            raise EngineError(f"the engine is dead: {self._broken}; close() it and start it again")
        return self._encoder

    def _awake(self) -> PromptEncoder:
        """Returns the encoder, if the engine can be used."""
        encoder = self._alive()
        if self._asleep:
            raise EngineError("the engine is asleep; call wake() first")
        return encoder

    @contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        """Isolates a call of vLLM; if it fails or is interrupted, the engine is dead."""
        self._broken = f"vLLM was interrupted {doing}"  # a KeyboardInterrupt leaves requests that the next call answers
        try:
            with isolated(compile_allowed=not self._eager):
                yield
            self._broken = None
        except Exception as error:
            self._broken = f"vLLM failed {doing}: {type(error).__name__}: {error}"
            release_frames(error)
            raise EngineError(f"{self._broken}; close() the engine and start it again") from error

    def _prepare(
        self, encoder: PromptEncoder, policy: Policy | None
    ) -> tuple[ModuleType, dict[str, Any], dict[str, str]]:
        """Returns vLLM, what to start it with, and variables to set meanwhile; raises if it cannot start."""
        placed, variables = placement(self.tensor_parallel_size)  # first, as ranks may compare their places in it
        vllm = import_vllm()
        arguments = self._arguments(encoder, policy) | placed
        free_cached_memory()
        check_free_memory(self.gpu_memory_utilization)
        return vllm, arguments, variables

    def _arguments(self, encoder: PromptEncoder, policy: Policy | None) -> dict[str, Any]:
        """Returns the arguments of `vllm.LLM`, and keeps what later calls need of the model."""
        name, revision = (encoder.model, encoder.revision) if self.model is None else (self.model, self.revision)
        config = read_config(name, revision, called=f"the engine's model {name!r}")
        self._expected = model_shapes(config)
        self._limit = min(self.max_model_len, config.text_config.max_position_embeddings)
        arguments: dict[str, Any] = ALWAYS | {
            "model": name,
            "revision": revision,
            "tokenizer": encoder.model,
            "tokenizer_revision": encoder.revision,
            "dtype": computing_dtype(policy, on_gpu=self._on_gpu) if self.dtype == "auto" else self.dtype,
            "max_model_len": self._limit,
            "limit_mm_per_prompt": {"image": self.max_images, "video": 0},
            # the pictures come at their final size: with the limits that gave them it, vLLM leaves them alone
            "mm_processor_kwargs": {"min_pixels": encoder.images.min_pixels, "max_pixels": encoder.images.max_pixels},
            "logits_processors": [banning_processor(encoder.unsampled_token_ids(config.text_config.vocab_size))],
            "enforce_eager": self._eager,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "kv_cache_memory_bytes": kv_cache_bytes(self.kv_cache_gib, on_gpu=self._on_gpu),
            "enable_sleep_mode": self._sleeps,
        }
        if self.max_num_seqs is not None:
            arguments["max_num_seqs"] = self.max_num_seqs
        if not self._on_gpu:
            # on a CPU vLLM crashes where a request with a seed has its prompt cut into chunks
            arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(self._limit, 8192)}
        return arguments

    def _sample(self, encoder: PromptEncoder, requests: list[Request], params: SamplingParams) -> list[Any]:
        """Returns vLLM's output for each request of this rank; ranks that share an engine sample for all of them."""
        shares = gather_sharers((params, requests), self.tensor_parallel_size)
        if any(other != params for other, _ in shares):
            raise EngineError(f"ranks share an engine and sample differently: {[other for other, _ in shares]}")
        everyone = [request for _, share in shares for request in share]
        if not everyone:
            return []
        prompts, parameters = vllm_inputs(everyone, params, encoder.end_token_ids)
        with self._guarded(f"while it sampled {len(everyone)} prompts, the last of them question {everyone[-1].uid}"):
            outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
            if len(outputs) != len(everyone):
                raise RuntimeError(f"it answered {len(outputs)} prompts")
        rank = dist.get_rank() % self.tensor_parallel_size if dist.is_initialized() else 0
        before = sum(len(share) for _, share in shares[:rank])
        return list(outputs[before : before + len(requests)])
