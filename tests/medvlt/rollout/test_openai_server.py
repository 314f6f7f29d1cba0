# SPDX-License-Identifier: Apache-2.0
"""The engine against vLLM's own OpenAI server, on a CPU with the tiny model."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medvlt.data.encoder import PromptEncoder
from medvlt.data.images import ImageLimits
from medvlt.data.prompts import PromptTemplate
from medvlt.errors import EngineError
from medvlt.models.loading import Backbone, load_backbone
from medvlt.models.policy import Policy
from medvlt.rollout.openai import OpenAIEngine
from medvlt.rollout.openai_limits import Limits
from medvlt.rollout.transformers import TransformersEngine
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

START_SECONDS = 300
"""Longest wait for the server; some 40 seconds on two idle cores."""


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


OPTIONS = {"A": "Left", "B": "Right"}
SAMPLES = [
    Sample("text:1", "A question about a patient who is old.", OPTIONS, "A", "Left"),
    Sample("picture:1", "Which side?", OPTIONS, "B", "Right", (picture(1, 90, 61),)),
    Sample("picture:2", "Which of the two, and why?", OPTIONS, "A", "Left", (picture(2, 56, 56), picture(3, 112, 84))),
    Sample("text:2", "Short.", OPTIONS, "B", "Right"),
]
KEYS = [RolloutKey(7, 3, sample.uid) for sample in SAMPLES]
SAMPLING = SamplingParams(n=3, temperature=0.9, max_tokens=12)
GREEDY = SamplingParams(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> PromptEncoder:
    limits = ImageLimits(max_pixels=64 * 28 * 28)
    return PromptEncoder(str(tiny_folder), template=PromptTemplate(instruction=""), images=limits)


@pytest.fixture(scope="module")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a vLLM server with the tiny model; ended with all its children."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    pytest.importorskip("openai", reason="the extra api is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_folder),
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16", "--generation-config", "vllm",
        # a seed and a prompt cut into chunks do not go together on a CPU
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048",
        "--limit-mm-per-prompt", '{"image": 2, "video": 0}',
    ]  # fmt: skip
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "OPENAI_"))},
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True, cwd=log.parent
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            end(process)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < limit:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"vLLM's server is not up ({process.poll()}):\n{log.read_text(errors='replace')[-4000:]}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process group: first by asking, then, for what is left of it, by force."""
    for name, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, name)
        except ProcessLookupError:
            break
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
    process.wait(10)


def build(server: str, encoder: PromptEncoder) -> OpenAIEngine:
    ends = list(encoder.end_token_ids)
    rows = json.loads((Path(encoder.model) / "config.json").read_text())["text_config"]["vocab_size"]
    banned = {str(token): -100 for token in encoder.unsampled_token_ids(rows)}
    body = {"return_token_ids": True, "stop_token_ids": ends, "logit_bias": banned}
    return OpenAIEngine("tiny", server, limits=Limits(timeout_seconds=120), extra_body=body)


@pytest.fixture(scope="module")
def engine(server: str, encoder: PromptEncoder) -> Iterator[OpenAIEngine]:
    built = build(server, encoder)
    built.start(encoder, None)
    yield built
    built.close()


def texts(groups: list[RolloutGroup]) -> list[list[str]]:
    return [[whole(completion.text) for completion in group.completions] for group in groups]


def whole(text: str) -> str:
    """Without the half of a character at the end, which the server does not send."""
    return text.rstrip("\ufffd")


def test_greedy_text_is_that_of_transformers(engine: OpenAIEngine, encoder: PromptEncoder) -> None:
    ours = engine.generate(SAMPLES, GREEDY, keys=KEYS)
    local = TransformersEngine()
    local.start(encoder, Policy(load_backbone(Backbone(encoder.model))))
    with torch.inference_mode():
        theirs = local.generate(SAMPLES, GREEDY, keys=KEYS)
    assert [g.completions[0].token_ids for g in ours] == [g.completions[0].token_ids for g in theirs]
    assert texts(ours) == texts(theirs)
    assert [g.completions[0].finish_reason for g in ours] == [g.completions[0].finish_reason for g in theirs]
    assert len({group[0] for group in texts(ours)}) > 1


def test_prompt_ids_are_those_of_the_trainer(engine: OpenAIEngine, encoder: PromptEncoder) -> None:
    """The server renders the messages as the encoder does, and sees the pictures at the same size."""
    for group in engine.generate(SAMPLES, SAMPLING, keys=KEYS):
        assert list(group.prompt_token_ids) == encoder.encode(group.sample).token_ids.tolist()


def test_so_they_are_with_a_system_message(engine: OpenAIEngine, encoder: PromptEncoder) -> None:
    other = replace(encoder, template=PromptTemplate(system="You look closely.", instruction="Think."))
    engine.start(other, None)
    try:
        groups = engine.generate(SAMPLES, GREEDY, keys=KEYS)
    finally:
        engine.start(encoder, None)
    for group in groups:
        assert list(group.prompt_token_ids) == other.encode(group.sample).token_ids.tolist()


def test_pictures_change_the_answer(engine: OpenAIEngine) -> None:
    changed = [replace(sample, images=tuple(picture(9, *p.size) for p in sample.images)) for sample in SAMPLES]
    one, two = (engine.generate(samples, GREEDY, keys=KEYS) for samples in (SAMPLES, changed))
    assert texts(one)[0] == texts(two)[0]
    assert texts(one)[1:3] != texts(two)[1:3]


def test_equal_keys_give_equal_completions_whatever_else_is_asked(engine: OpenAIEngine) -> None:
    together = engine.generate(SAMPLES, SAMPLING, keys=KEYS)
    assert texts(engine.generate(SAMPLES, SAMPLING, keys=KEYS)) == texts(together)
    for sample, key, group in reversed(list(zip(SAMPLES, KEYS, together, strict=True))):
        part = engine.generate([sample], replace(SAMPLING, n=1), keys=[replace(key, first=1)])[0]
        assert part.completions[0].token_ids == group.completions[1].token_ids


def test_other_keys_give_other_completions(engine: OpenAIEngine) -> None:
    seen = {
        tuple(c.token_ids for g in engine.generate(SAMPLES, SAMPLING, keys=keys) for c in g.completions)
        for keys in (KEYS, [RolloutKey(8, 3, k.uid) for k in KEYS], [RolloutKey(7, 4, k.uid) for k in KEYS])
    }
    assert len(seen) == 3
    for group in engine.generate(SAMPLES, SAMPLING, keys=KEYS):
        assert len({completion.token_ids for completion in group.completions}) == SAMPLING.n


def test_finish_reason_length_and_text(engine: OpenAIEngine, encoder: PromptEncoder) -> None:
    reasons = set()
    for seed in range(6):
        keys = [RolloutKey(seed, 0, sample.uid) for sample in SAMPLES]
        for group in engine.generate(SAMPLES, SAMPLING, keys=keys):
            for completion in group.completions:
                ended = completion.token_ids[-1] in encoder.end_token_ids
                assert completion.finish_reason == ("stop" if ended else "length")
                assert completion.length == len(completion.token_ids) <= SAMPLING.max_tokens
                decoded = encoder.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
                assert whole(completion.text) == whole(decoded)
                reasons.add(completion.finish_reason)
    assert reasons == {"stop", "length"}


def test_tokens_are_counted_without_their_ids(server: str, encoder: PromptEncoder) -> None:
    without = OpenAIEngine("tiny", server)
    without.start(replace(encoder, model=""), None)
    groups = without.generate(SAMPLES, SAMPLING, keys=KEYS)
    without.close()
    for group in groups:
        assert group.prompt_token_ids == ()
        assert all(c.token_ids == () and 1 <= c.length <= SAMPLING.max_tokens for c in group.completions)
    lengths = [len(encoder.encode(sample).token_ids) for sample in SAMPLES]
    assert without.usage.prompt_tokens == SAMPLING.n * sum(lengths)
    assert without.usage.completion_tokens == sum(c.length for group in groups for c in group.completions)


def test_a_prompt_that_is_too_long_is_an_error_of_its_own(engine: OpenAIEngine) -> None:
    long = Sample("long", "A very long question. " * 60, OPTIONS, "A", "Left")
    groups = engine.generate([SAMPLES[0], long], SAMPLING, keys=[KEYS[0], RolloutKey(7, 3, "long")])
    assert all(completion.finish_reason != "error" for completion in groups[0].completions)
    assert all(completion.error.startswith("bad_request: HTTP 400") for completion in groups[1].completions)
    assert "512" in groups[1].completions[0].error  # the server says what it allows
    assert texts(groups[1:]) == [[""] * SAMPLING.n]


def test_another_model_is_refused(server: str, encoder: PromptEncoder) -> None:
    other = OpenAIEngine("other", server)
    other.start(encoder, None)
    with pytest.raises(EngineError, match=r"HTTP 404: .*`other` does not exist"):
        other.generate(SAMPLES, SAMPLING, keys=KEYS)
    other.close()


def test_another_path_is_refused(server: str, encoder: PromptEncoder) -> None:
    other = OpenAIEngine("tiny", server.removesuffix("/v1"))
    other.start(encoder, None)
    with pytest.raises(EngineError, match=r"HTTP 404.*base_url, which usually ends in /v1"):
        other.generate(SAMPLES, SAMPLING, keys=KEYS)
    other.close()
