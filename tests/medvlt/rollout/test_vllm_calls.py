# SPDX-License-Identifier: Apache-2.0
"""What the engine asks of vLLM, in which order, and what it does when that fails: vLLM is a recorder here."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from medvlt.data.encoder import PromptEncoder
from medvlt.errors import ConfigurationError, EngineError
from medvlt.rollout import vllm as engine_module
from medvlt.rollout.store_identity import folder_fingerprint
from medvlt.rollout.vllm import VLLMEngine
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams

SAMPLES = [Sample(uid, "Which side?", {"A": "Left", "B": "Right"}, "A", "Left") for uid in ("one", "two")]
KEYS = [RolloutKey(0, 0, sample.uid) for sample in SAMPLES]
TENSORS = {name: torch.zeros(2) for name in "abcdef"}


class Activations:
    """Stands for what takes memory in a frame of vLLM."""


class Recorder:
    """Takes vLLM's place.

    Attributes:
        calls: What was asked of it.
        errors: What a call raises, by name.
        read: How many tensors `collective_rpc` takes before it returns or raises.
        answers: How many prompts are answered; None for all.
        held: What its frames held when it failed.
        free: Free memory of the GPU in bytes, of 1 GiB.
    """

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.errors: dict[str, BaseException] = {}
        self.read = len(TENSORS)
        self.answers: int | None = None
        self.held: list[weakref.ref[Activations]] = []
        self.free = 2**30
        self.model_config = SimpleNamespace(dtype=torch.float32)
        self.llm_engine = SimpleNamespace(
            engine_core=None, reset_encoder_cache=lambda: self.note("reset pictures' features")
        )

    def note(self, name: str) -> None:
        self.calls.append(name)
        activations = Activations()
        if name in self.errors:
            self.held.append(weakref.ref(activations))
            raise self.errors[name]

    def reset_prefix_cache(self) -> bool:
        self.note("reset prefixes")
        return True

    def reset_mm_cache(self) -> None:
        self.note("reset pictures")

    def collective_rpc(self, method: object, args: tuple[Any]) -> list[set[str]]:
        for _, _ in zip(range(self.read), args[0], strict=False):
            pass
        self.note("load")
        return [set()]

    def generate(self, prompts: list[Any], parameters: list[Any], *, use_tqdm: bool) -> list[Any]:
        self.note("generate")
        token = SimpleNamespace(token_ids=[7], finish_reason="stop", logprobs=[{7: SimpleNamespace(logprob=-1.0)}])
        outputs = [SimpleNamespace(prompt_token_ids=prompt, outputs=[token]) for prompt in prompts]
        return outputs[: self.answers]

    def sleep(self, level: int) -> None:
        self.note(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.note(f"wake {', '.join(tags)}")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def engine(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Iterator[VLLMEngine]:
    """Started on what it takes for a GPU."""

    class LLM:
        def __init__(self, **_: Any) -> None:
            recorder.note("build")

        def __getattr__(self, name: str) -> Any:
            return getattr(recorder, name)

    vllm = SimpleNamespace(LLM=LLM, __version__="0.32.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (recorder.free, 2**30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: recorder.calls.append("empty_cache"))
    monkeypatch.setattr(engine_module, "import_vllm", lambda: vllm)
    monkeypatch.setattr(engine_module, "isolated", lambda **_: nullcontext())
    monkeypatch.setattr(engine_module, "end_vllm", lambda *_, **__: recorder.calls.append("end"))
    monkeypatch.setattr(engine_module, "banning_processor", tuple)
    monkeypatch.setattr(engine_module, "model_shapes", lambda _: {name: t.shape for name, t in TENSORS.items()})
    monkeypatch.setattr(
        engine_module, "vllm_inputs", lambda requests, *_: ([request.expanded_ids for request in requests], [])
    )
    built = VLLMEngine()
    start(built, tiny_folder)
    yield built
    VLLMEngine._running = None


def start(engine: VLLMEngine, folder: Path) -> None:
    engine.start(PromptEncoder(str(folder), template="plain"), None)


def sample(engine: VLLMEngine) -> list[RolloutGroup]:
    return engine.generate(SAMPLES, SamplingParams(temperature=0, max_tokens=4), keys=KEYS)


def test_memory_is_there_before_vllm_takes_it(engine: VLLMEngine, recorder: Recorder) -> None:
    """vLLM allocates beside torch, which keeps the blocks of what the trainer has freed."""
    assert recorder.calls == ["empty_cache", "build"]
    recorder.calls.clear()
    for step in (engine.wake, engine.sleep, engine.sleep, engine.wake, engine.wake):
        step()
    assert recorder.calls == ["sleep 1", "empty_cache", "wake weights"]


def test_weights_are_loaded_while_the_cache_has_no_memory(engine: VLLMEngine, recorder: Recorder) -> None:
    """What is gathered of a sharded policy needs room; the cache takes its own when something is sampled."""
    engine.sleep()
    recorder.calls.clear()
    engine.wake()
    engine.load_weights(TENSORS.items(), version=1)
    assert [call for call in recorder.calls if "reset" not in call] == ["empty_cache", "wake weights", "load"]
    recorder.calls.clear()
    for _ in range(2):
        assert len(sample(engine)) == 2
    assert recorder.calls == ["empty_cache", "wake kv_cache", "generate", "generate"]
    engine.sleep()
    engine.wake()
    recorder.calls.clear()
    engine.sleep()  # vLLM does nothing to an engine that sleeps in part
    assert recorder.calls == ["empty_cache", "wake kv_cache", "sleep 1"]


def test_too_little_free_memory_is_found_before_vllm_starts(
    engine: VLLMEngine, recorder: Recorder, tiny_folder: Path
) -> None:
    engine.close()
    recorder.calls.clear()
    recorder.free = 2**28
    with pytest.raises(ConfigurationError, match=r"0\.5 is 0\.5 GiB of this GPU, and 0\.2 GiB are free"):
        start(engine, tiny_folder)
    assert "build" not in recorder.calls
    recorder.free = 2**29
    start(engine, tiny_folder)


def test_an_engine_that_does_not_wake_up_is_dead(engine: VLLMEngine, recorder: Recorder, tiny_folder: Path) -> None:
    engine.sleep()
    recorder.errors["wake weights"] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(EngineError, match=r"vLLM failed while it woke up: OutOfMemoryError: CUDA out of memory; close"):
        engine.wake()
    recorder.errors.clear()
    for step in (engine.wake, lambda: sample(engine)):
        with pytest.raises(EngineError, match="dead: vLLM failed while it woke up"):
            step()
    start(engine, tiny_folder)
    assert len(sample(engine)) == 2
    assert recorder.calls.count("wake weights") == 1


def test_a_cache_that_gets_no_memory_ends_the_engine(engine: VLLMEngine, recorder: Recorder, tiny_folder: Path) -> None:
    engine.sleep()
    engine.wake()
    recorder.errors["wake kv_cache"] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(EngineError, match=r"while it took the memory of its KV cache: OutOfMemoryError"):
        sample(engine)
    recorder.errors.clear()
    start(engine, tiny_folder)
    assert len(sample(engine)) == 2
    assert recorder.calls.count("wake kv_cache") == 1  # a new engine is awake


def test_new_weights_clear_all_caches(engine: VLLMEngine, recorder: Recorder) -> None:
    recorder.calls.clear()
    engine.load_weights(TENSORS.items(), version=1)
    assert recorder.calls[0] == "load"
    assert sorted(recorder.calls[1:]) == ["reset pictures", "reset pictures' features", "reset prefixes"]


@pytest.mark.parametrize("read", [0, 2, len(TENSORS)])
@pytest.mark.parametrize("error", [None, RuntimeError("the GPU fell off the bus")])
def test_the_source_is_read_to_its_end(
    read: int, error: Exception | None, engine: VLLMEngine, recorder: Recorder
) -> None:
    """Where the policy is sharded, every tensor is gathered by all ranks; one that stops early leaves them waiting."""
    sent: list[str] = []

    def stream() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in TENSORS.items():
            yield name, tensor
            sent.append(name)

    recorder.read = read
    if error is None:
        engine.load_weights(stream(), version=1)
    else:
        recorder.errors["load"] = error
        with pytest.raises(EngineError, match="while it loaded weights: RuntimeError: the GPU fell off"):
            engine.load_weights(stream(), version=1)
    assert sent == list(TENSORS)


@pytest.mark.parametrize("doing", ["generate", "load"])
def test_an_interrupted_engine_is_dead(doing: str, engine: VLLMEngine, recorder: Recorder, tiny_folder: Path) -> None:
    """Requests that are still in it would be answered by the next call."""
    recorder.errors[doing] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sample(engine) if doing == "generate" else engine.load_weights(TENSORS.items(), version=1)
    recorder.errors.clear()
    with pytest.raises(EngineError, match="dead: vLLM was interrupted while it"):
        sample(engine)
    start(engine, tiny_folder)
    assert [group.completions[0].token_ids for group in sample(engine)] == [(7,), (7,)]
    assert len(sample(engine)) == 2  # a call that ends well leaves no mark


def test_every_prompt_is_answered(engine: VLLMEngine, recorder: Recorder) -> None:
    recorder.answers = 1
    with pytest.raises(EngineError, match=r"while it sampled 2 prompts.*: it answered 1 prompts"):
        sample(engine)
    with pytest.raises(EngineError, match="dead"):
        sample(engine)


@pytest.mark.parametrize("doing", ["generate", "load"])
def test_who_keeps_an_error_keeps_no_memory_of_the_engine(doing: str, engine: VLLMEngine, recorder: Recorder) -> None:
    """A second engine in this process is refused by vLLM's allocator as long as anything is left of the first."""
    recorder.errors[doing] = RuntimeError("the GPU fell off the bus")
    llm = weakref.ref(engine._llm)
    with pytest.raises(EngineError) as raised:
        sample(engine) if doing == "generate" else engine.load_weights(TENSORS.items(), version=1)
    assert [reference() for reference in recorder.held] == [None]
    engine.close()
    assert llm() is None
    assert "fell off" in str(raised.value.__cause__)


def test_a_start_that_fails_keeps_no_memory(engine: VLLMEngine, recorder: Recorder, tiny_folder: Path) -> None:
    engine.close()
    recorder.calls.clear()
    recorder.errors["build"] = RuntimeError("CUDA error")
    with pytest.raises(EngineError, match="did not start") as raised:
        start(engine, tiny_folder)
    assert [reference() for reference in recorder.held] == [None]
    assert recorder.calls == ["empty_cache", "build", "end", "empty_cache"]
    recorder.errors.clear()
    start(engine, tiny_folder)
    assert raised.value.__cause__ is not None


def test_identity_is_the_folder_s_until_weights_are_loaded(
    engine: VLLMEngine, recorder: Recorder, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = engine.identity()
    assert folder["weights"] == folder_fingerprint(tiny_folder)
    assert (folder["dtype"], folder["max_model_len"]) == ("float32", 2048)
    engine.close()
    start(engine, shutil.copytree(tiny_folder, tmp_path / "copy"))
    assert engine.identity() == folder
    engine.load_weights(TENSORS.items(), version=1)
    loaded = engine.identity()
    assert loaded != folder
    engine.load_weights({name: tensor + 1 for name, tensor in TENSORS.items()}.items(), version=2)
    assert engine.identity() != loaded
    engine.load_weights(TENSORS.items(), version=3)
    assert engine.identity() == loaded
    engine.close()
    start(engine, tiny_folder)
    assert engine.identity() == folder
