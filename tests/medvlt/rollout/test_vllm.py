# SPDX-License-Identifier: Apache-2.0
"""What is special to vLLM; what it shares with other engines is in tests/contracts/test_rollout_engine.py."""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from medvlt.data.encoder import PromptEncoder
from medvlt.data.images import ImageLimits
from medvlt.data.packing import Group, pack
from medvlt.errors import ConfigurationError, EngineError
from medvlt.models.loading import Backbone, LoRA, load_backbone
from medvlt.models.policy import Policy
from medvlt.rollout import vllm as engine_module
from medvlt.rollout.vllm import VLLMEngine
from medvlt.rollout.vllm_requests import Request, build_request, rollout_group
from medvlt.rollout.vllm_start import NOISY_LOGGER
from medvlt.rollout.weights import hub_weights
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams

LIMITS = ImageLimits(min_pixels=784, max_pixels=16 * 784)
"""Other than those in the folder of the tiny model, which are 4 to 16,384 tokens."""

OPTIONS = {"A": "Left", "B": "Right"}
GREEDY = SamplingParams(temperature=0, max_tokens=8)
SMALL = {"max_model_len": 512, "max_images": 3, "max_num_seqs": 16, "kv_cache_gib": 0.125}
needs_vllm = [pytest.mark.vllm, pytest.mark.slow]


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def question(uid: str, *pictures: Image.Image, text: str = "Which side?") -> Sample:
    return Sample(uid, text, OPTIONS, "A", "Left", pictures)


def keys(samples: list[Sample], seed: int = 0) -> list[RolloutKey]:
    return [RolloutKey(seed, 0, sample.uid) for sample in samples]


BOTH = [question("text"), question("pictures", picture(1, 56, 84), picture(2, 84, 56), text="Which of the two? " * 8)]


@pytest.fixture(scope="module", autouse=True)
def no_cache_size_of_the_user() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
        yield


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> PromptEncoder:
    return PromptEncoder(str(tiny_folder), template="plain", images=LIMITS)


@pytest.fixture(scope="module")
def policy(tiny_folder: Path) -> Policy:
    return Policy(load_backbone(Backbone(str(tiny_folder))))


def state_of_the_process() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "threads": (torch.set_num_threads, torch.get_num_threads()),
        "modes": (torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype()),
        "environment": {name: os.environ.get(name) for name in ("LD_PRELOAD", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")},
    }


@pytest.fixture(scope="class")
def engine(encoder: PromptEncoder, policy: Policy) -> Iterator[VLLMEngine]:
    """Started where RolloutCallback starts it: in inference mode and under autocast."""
    pytest.importorskip("vllm", reason="vLLM is not installed", exc_type=ImportError)
    built = VLLMEngine(dtype="float32", **SMALL)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        before = state_of_the_process()
        built.start(encoder, policy)
        assert state_of_the_process() == before
    yield built
    built.close()
    assert not torch.distributed.is_initialized()  # vLLM's own group would be in the way of a Trainer's


def assert_trainer_agrees(
    encoder: PromptEncoder, policy: Policy, groups: list[RolloutGroup], tolerance: float = 1e-4
) -> None:
    for group in groups:
        completions = [torch.tensor(c.token_ids) for c in group.completions]
        batch = pack([Group(encoder.encode(group.sample), completions, [1.0] * len(completions))])
        with torch.no_grad():
            logits = (policy.hidden_states(batch) @ policy.base.lm_head.weight.T).float()
        logits[:, encoder.unsampled_token_ids(logits.shape[1])] = -torch.inf
        expected = logits.log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
        ours = torch.tensor([x for c in group.completions for x in c.sampler_logprobs])
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


def test_importing_the_engine_does_not_import_vllm() -> None:
    code = "import sys, medvlt.rollout.vllm; assert 'vllm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sleep_level": 2}, "rotary"),
        ({"sleep_level": -1}, "sleep_level must be 0 or 1, got -1"),
        ({"max_model_len": 1}, "max_model_len"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
        ({"kv_cache_gib": 0.0}, "kv_cache_gib"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        VLLMEngine(**settings)


def arguments_of_a_start(
    engine: VLLMEngine, encoder: PromptEncoder, policy: Policy | None, monkeypatch: pytest.MonkeyPatch, *, gpu: bool
) -> dict[str, Any]:
    arguments: dict[str, Any] = {}

    def record(**settings: Any) -> None:
        arguments.update(settings)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 2**30))
    monkeypatch.setattr(engine_module, "import_vllm", lambda: SimpleNamespace(LLM=record, __version__="0.32.0"))
    monkeypatch.setattr(engine_module, "isolated", lambda **_: nullcontext())
    monkeypatch.setattr(engine_module, "banning_processor", tuple)
    engine.start(encoder, policy)
    monkeypatch.undo()
    VLLMEngine._running = None
    return arguments


def test_cpu_and_gpu_differ_in_defaults_only(
    encoder: PromptEncoder, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, gpu = (arguments_of_a_start(VLLMEngine(), encoder, policy, monkeypatch, gpu=gpu) for gpu in (False, True))
    assert {name: (cpu.get(name), gpu.get(name)) for name in cpu | gpu if cpu.get(name) != gpu.get(name)} == {
        "enforce_eager": (True, False),
        "enable_sleep_mode": (False, True),
        "kv_cache_memory_bytes": (2**30, None),
        "enable_chunked_prefill": (False, None),
        "max_num_batched_tokens": (8192, None),
    }
    with torch.autocast("cpu", torch.bfloat16):  # what bf16-mixed computes in
        mixed = arguments_of_a_start(VLLMEngine(), encoder, policy, monkeypatch, gpu=False)
        fixed = arguments_of_a_start(VLLMEngine(dtype="float32"), encoder, policy, monkeypatch, gpu=False)
    assert [arguments["dtype"] for arguments in (cpu, gpu, mixed, fixed)] == [
        "float32",
        "float32",
        "bfloat16",
        "float32",
    ]
    same = {"dtype": "float16", "enforce_eager": True, "sleep_level": 0, "kv_cache_gib": 2.0, "max_num_seqs": 5}
    cpu, gpu = (arguments_of_a_start(VLLMEngine(**same), encoder, None, monkeypatch, gpu=gpu) for gpu in (False, True))
    assert {name for name in cpu | gpu if cpu.get(name) != gpu.get(name)} == {
        "enable_chunked_prefill",
        "max_num_batched_tokens",
    }
    assert cpu["max_model_len"] == 2048  # all that the model allows
    assert cpu["logits_processors"] == [tuple(encoder.unsampled_token_ids(320))]


def test_a_request_leaves_room_for_seeds_and_takes_the_room_for_tokens(encoder: PromptEncoder) -> None:
    for seed in range(50):
        key = RolloutKey(seed, 0, "text")
        request = build_request(encoder, BOTH[0], GREEDY, key, max_images=0, max_model_len=512)
        assert 0 <= request.seed < 2**62
        assert request.max_tokens == GREEDY.max_tokens
    room = len(request.expanded_ids) + 3
    assert build_request(encoder, BOTH[0], GREEDY, key, max_images=0, max_model_len=room).max_tokens == 3


def test_a_prompt_that_vllm_saw_otherwise_is_an_error(encoder: PromptEncoder) -> None:
    request = Request("q", [1, 2], [1, 2, 2, 2], [], 0, 8)
    with pytest.raises(
        EngineError, match=r"question q: vLLM saw a prompt of 5 tokens, the trainer has one of 4\. .*pixel"
    ):
        rollout_group(encoder, BOTH[0], request, SimpleNamespace(prompt_token_ids=[1, 2, 2, 2, 2]), n=1, version=0)


class TestStarted:
    """One engine for all."""

    pytestmark = needs_vllm

    @pytest.mark.parametrize(
        "size",
        [(28, 28), (14, 14), (112, 112), (113, 113), (1000, 700), (28 * 16, 28), (28, 3000), (42, 42), (97, 131)],
    )
    def test_pictures_at_the_edges_are_not_sized_again(
        self, size: tuple[int, int], engine: VLLMEngine, encoder: PromptEncoder, policy: Policy
    ) -> None:
        sample = question(f"size:{size}", picture(1, *size), picture(2, size[1], size[0]))
        groups = engine.generate([sample], GREEDY, keys=keys([sample]))
        assert list(groups[0].prompt_token_ids) == encoder.encode(sample).token_ids.tolist()
        assert_trainer_agrees(encoder, policy, groups)

    def test_limits(self, engine: VLLMEngine, encoder: PromptEncoder, caplog: pytest.LogCaptureFixture) -> None:
        lengths = {n: len(encoder.encode(question("q", text="x" * n)).token_ids) for n in range(300, 460)}
        exact = question("exact", text="x" * next(n for n, length in lengths.items() if length >= 512 - 3))
        used = len(encoder.encode(exact).token_ids)
        samples = [
            question("long", text="x " * 600),
            exact,
            question("many", *[picture(i, 28, 28) for i in range(4)]),
            *BOTH,
        ]
        engine.refused.clear()
        groups = engine.generate(samples, SamplingParams(n=2, max_tokens=8), keys=keys(samples))
        assert [[c.finish_reason == "error" for c in g.completions] for g in groups] == [
            [True, True], [False, False], [True, True], [False, False], [False, False],
        ]  # fmt: skip
        assert engine.refused == {"too_long": 1, "too_many_pictures": 1}
        assert "max_model_len=512" in caplog.text
        assert "max_images=3" in caplog.text
        assert all(len(c.token_ids) <= 512 - used for c in groups[1].completions)
        for completion in groups[1].completions:
            ended = completion.token_ids[-1] in encoder.end_token_ids
            assert completion.finish_reason == ("stop" if ended else "length")

    def test_every_parameter_matters(self, engine: VLLMEngine, policy: Policy) -> None:
        """Each tensor alone, changed and sent, changes the log-probabilities: all of them are used and replaced."""
        weights = {name: weight.clone() for name, weight in hub_weights(policy)}

        def logprobs() -> torch.Tensor:
            groups = engine.generate(BOTH, SamplingParams(temperature=0, max_tokens=2), keys=keys(BOTH))
            return torch.tensor([g.completions[0].sampler_logprobs[0] for g in groups])

        engine.load_weights(weights.items(), version=1)
        before, unused = logprobs(), []
        for number, (name, weight) in enumerate(weights.items()):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
            engine.load_weights((weights | {name: weight + 0.3 * noise}).items(), version=2)
            if torch.allclose(logprobs(), before, rtol=0, atol=1e-5):
                unused.append(name)
        engine.load_weights(weights.items(), version=3)
        assert torch.equal(logprobs(), before)
        assert unused == []

    def test_adapters_reach_the_engine(self, engine: VLLMEngine, encoder: PromptEncoder, tiny_folder: Path) -> None:
        lora = LoRA(rank=4, components=("vision", "projector", "language"))
        adapted = Policy(load_backbone(Backbone(str(tiny_folder), lora=lora)))
        before = engine.generate(BOTH, GREEDY, keys=keys(BOTH))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
        engine.load_weights(hub_weights(adapted), version=1)
        after = engine.generate(BOTH, GREEDY, keys=keys(BOTH))
        assert_trainer_agrees(encoder, adapted, after)
        assert before[1].completions[0].sampler_logprobs != after[1].completions[0].sampler_logprobs

    def test_the_trainer_s_modes_stay_outside(self, engine: VLLMEngine, encoder: PromptEncoder, policy: Policy) -> None:
        """Weights from a start in inference mode can be replaced outside of it, and the other way round."""
        sampling = SamplingParams(n=2, max_tokens=8)
        for inference in (False, True):
            with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16):
                before = state_of_the_process()
                engine.load_weights(hub_weights(policy), version=1)
                groups = engine.generate(BOTH, sampling, keys=keys(BOTH))
                assert state_of_the_process() == before
            assert_trainer_agrees(encoder, policy, groups)

    def test_layers_that_get_no_tensors_are_no_news(
        self, engine: VLLMEngine, policy: Policy, caplog: pytest.LogCaptureFixture
    ) -> None:
        logger = logging.getLogger(NOISY_LOGGER)
        logger.addHandler(caplog.handler)
        try:
            with caplog.at_level(logging.WARNING, NOISY_LOGGER):
                engine.load_weights(hub_weights(policy), version=1)
        finally:
            logger.removeHandler(caplog.handler)
        assert [record.getMessage() for record in caplog.records if record.name == NOISY_LOGGER] == []

    def test_a_sleeping_engine_says_so(self, engine: VLLMEngine, policy: Policy) -> None:
        engine.sleep()
        with pytest.raises(EngineError, match=r"asleep; call wake\(\)"):
            engine.generate(BOTH, GREEDY, keys=keys(BOTH))
        with pytest.raises(EngineError, match=r"asleep; call wake\(\)"):
            engine.load_weights(hub_weights(policy), version=1)
        engine.wake()
        engine.generate(BOTH, GREEDY, keys=keys(BOTH))

    def test_one_engine_per_process(self, engine: VLLMEngine, encoder: PromptEncoder, policy: Policy) -> None:
        with pytest.raises(EngineError, match="another VLLMEngine"):
            VLLMEngine().start(encoder, policy)
        engine.start(encoder, policy)  # the same again is no other
        engine.generate(BOTH, GREEDY, keys=keys(BOTH))

    def test_an_engine_that_died_says_so(
        self, engine: VLLMEngine, encoder: PromptEncoder, policy: Policy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("the GPU fell off the bus")

        model = engine._llm.collective_rpc(lambda worker: weakref.ref(worker.model_runner.get_model()))[0]
        monkeypatch.setattr(model(), "forward", fail)
        message = r"the last of them question pictures: RuntimeError: the GPU fell off"
        with pytest.raises(EngineError, match=message) as raised:
            engine.generate(BOTH, GREEDY, keys=keys(BOTH))
        monkeypatch.undo()
        with pytest.raises(EngineError, match=r"dead: vLLM failed .* fell off the bus; close"):
            engine.generate(BOTH, GREEDY, keys=keys(BOTH))
        with pytest.raises(EngineError, match="dead"):
            engine.load_weights(hub_weights(policy), version=1)
        other = replace(encoder, images=ImageLimits())
        engine.start(other, policy)  # starts again, with other limits
        assert model() is None  # whoever keeps the error does not keep the first engine
        assert "fell off" in str(raised.value)
        sample = question("large", picture(1, 300, 300))
        groups = engine.generate([sample], GREEDY, keys=keys([sample]))
        assert list(groups[0].prompt_token_ids) == other.encode(sample).token_ids.tolist()
        assert len(groups[0].prompt_token_ids) > 100
        stream = hub_weights(policy)
        monkeypatch.setattr(engine._llm, "collective_rpc", fail)
        with pytest.raises(EngineError, match="while it loaded weights: RuntimeError: the GPU fell off"):
            engine.load_weights(stream, version=1)
        assert list(stream) == []  # read to its end, as other ranks gather the same tensors
        with pytest.raises(EngineError, match="dead"):
            engine.generate(BOTH, GREEDY, keys=keys(BOTH))
        engine.start(encoder, policy)  # and again
        groups = engine.generate([sample], GREEDY, keys=keys([sample]))
        assert list(groups[0].prompt_token_ids) == encoder.encode(sample).token_ids.tolist()


@pytest.mark.vllm
@pytest.mark.slow
def test_a_start_that_fails_leaves_nothing_behind(encoder: PromptEncoder, policy: Policy) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed", exc_type=ImportError)
    with pytest.raises(ConfigurationError, match=r"too little memory.*raise gpu_memory_utilization or kv_cache_gib"):
        VLLMEngine(**SMALL | {"kv_cache_gib": 1e-4}).start(encoder, policy)
    assert not torch.distributed.is_initialized()
    with pytest.raises(ConfigurationError, match="neither a model folder"):
        VLLMEngine("/nowhere").start(encoder, policy)


@pytest.mark.vllm
@pytest.mark.slow
def test_a_tied_model_in_half_precision(tiny_folder: Path, tmp_path: Path) -> None:
    """The 3B model ties its embeddings; weights sent in float32 are turned into the engine's type."""
    pytest.importorskip("vllm", reason="vLLM is not installed", exc_type=ImportError)
    encoder = PromptEncoder(str(tiny_folder), template="plain", images=LIMITS)
    config = Qwen2_5_VLConfig.from_pretrained(tiny_folder)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    torch.manual_seed(1)
    folder = shutil.copytree(tiny_folder, tmp_path / "tied")
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    policy = Policy(load_backbone(Backbone(str(folder))))
    engine = VLLMEngine(str(folder), dtype="bfloat16", **SMALL)
    engine.start(encoder, policy)
    try:
        assert_trainer_agrees(encoder, policy, engine.generate(BOTH, GREEDY, keys=keys(BOTH)), tolerance=0.1)
        with torch.no_grad():
            policy.base.lm_head.weight.mul_(1.3)  # the embedding too
            policy.base.lm_head.weight.add_(0.05 * torch.randn_like(policy.base.lm_head.weight))
        engine.load_weights(hub_weights(policy), version=2)
        assert_trainer_agrees(encoder, policy, engine.generate(BOTH, GREEDY, keys=keys(BOTH)), tolerance=0.1)
        renamed = {"model.language_model.embed_tokens.weight": "lm_head.weight"}
        stream = [(renamed.get(name, name), weight) for name, weight in hub_weights(policy)]
        with pytest.raises(EngineError, match=r"1 missing: \S+embed_tokens\.weight; 1 unknown: lm_head\.weight"):
            engine.load_weights(stream, version=3)
    finally:
        engine.close()
