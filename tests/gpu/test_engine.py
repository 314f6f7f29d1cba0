# SPDX-License-Identifier: Apache-2.0
"""vLLM on a GPU: what sleep gives back, weights that arrive while the cache is away, bfloat16, a model of real size."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from callbacks import VLLMRolloutCallback
from datamodules import PromptDataModule
from lightning_modules import GRPOModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.models.loading import Backbone, load_backbone
from medvlt.models.optimization import Optimization
from medvlt.models.policy import Policy
from medvlt.rollout.parity import ParityGate, compare
from medvlt.rollout.vllm import VLLMEngine
from medvlt.rollout.weights import hub_weights
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

GIB = 2**30
CACHE_GIB = 2.0
"""Far more than everything else of a tiny engine, so that one can tell where it is."""

SMALL: dict[str, Any] = {
    "max_model_len": 512, "max_images": 1, "max_num_seqs": 16, "gpu_memory_utilization": 0.3, "kv_cache_gib": CACHE_GIB,
    "enforce_eager": True,
}  # fmt: skip
OPTIONS = {"A": "Left", "B": "Right"}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (84, 56, 3), dtype=np.uint8))
SAMPLES = [
    Sample("text", "A long question. " * 12, OPTIONS, "A", "Left"),
    Sample("picture", "Which side?", OPTIONS, "B", "Right", (PICTURE,)),
]
SAMPLING = SamplingParams(n=2, max_tokens=16)


@pytest.fixture(scope="module", autouse=True)
def vllm_is_there() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed", exc_type=ImportError)


@pytest.fixture
def encoder(tiny_folder: Path) -> PromptEncoder:
    return PromptEncoder(str(tiny_folder), template="plain")


@pytest.fixture
def policy(tiny_folder: Path) -> Policy:
    return Policy(load_backbone(Backbone(str(tiny_folder)))).cuda()


@pytest.fixture
def started(encoder: PromptEncoder, policy: Policy) -> Iterator[Callable[..., VLLMEngine]]:
    """Starts an engine in float32, and closes it whatever happens."""
    engines: list[VLLMEngine] = []

    def start(**settings: Any) -> VLLMEngine:
        engines.append(VLLMEngine(dtype="float32", **SMALL | settings))
        engines[-1].start(encoder, policy)
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def sample(engine: VLLMEngine, sampling: SamplingParams = SAMPLING) -> list[RolloutGroup]:
    return engine.generate(SAMPLES, sampling, keys=[RolloutKey(1, 2, question.uid) for question in SAMPLES])


def token_ids(groups: list[RolloutGroup]) -> list[tuple[int, ...]]:
    return [completion.token_ids for group in groups for completion in group.completions]


def used_gib() -> float:
    """Memory of the GPU in use, by vLLM beside torch too."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / GIB


def change(policy: Policy, scale: float = 0.05) -> None:
    """Changes every matrix, so that other tokens are likely."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    with torch.no_grad():
        for parameter in policy.base.parameters():
            if parameter.ndim == 2:
                noise = torch.randn(parameter.shape, generator=generator, device=parameter.device)
                parameter.add_(scale * noise.to(parameter.dtype))


def test_sleep_gives_the_memory_back(started: Callable[..., VLLMEngine]) -> None:
    """The cache at least; it comes back with the first prompts, and the completions are those of before."""
    engine = started(sleep_level=1)
    before, awake = token_ids(sample(engine)), used_gib()
    for _ in range(2):  # a second time, as an iteration does
        engine.sleep()
        asleep = used_gib()
        assert asleep < awake - 0.9 * CACHE_GIB
        engine.wake()
        assert used_gib() < asleep + 0.5 * CACHE_GIB  # only the weights
        assert token_ids(sample(engine)) == before
        assert used_gib() > awake - 0.1 * CACHE_GIB
    engine.sleep()
    engine.wake()
    engine.sleep()  # with the weights awake and the cache asleep
    assert used_gib() < awake - 0.9 * CACHE_GIB
    engine.close()
    assert used_gib() < awake - 0.9 * CACHE_GIB


def test_level_0_keeps_everything(started: Callable[..., VLLMEngine]) -> None:
    engine = started(sleep_level=0)
    before, awake = token_ids(sample(engine)), used_gib()
    engine.sleep()
    assert used_gib() == pytest.approx(awake, abs=0.1)
    engine.wake()
    assert token_ids(sample(engine)) == before


def test_weights_arrive_while_the_cache_is_away(
    started: Callable[..., VLLMEngine], encoder: PromptEncoder, policy: Policy
) -> None:
    engine = started(sleep_level=1)
    before, awake = token_ids(sample(engine)), used_gib()
    engine.sleep()
    change(policy)
    engine.wake()
    engine.load_weights(hub_weights(policy), version=1)
    assert used_gib() < awake - 0.9 * CACHE_GIB
    after = sample(engine)
    assert token_ids(after) != before
    for found in compare(after, policy, encoder, temperature=SAMPLING.temperature):
        assert found.agrees(1e-3), str(found)


def test_the_gate_passes_in_bfloat16(encoder: PromptEncoder, tiny_folder: Path, tmp_path: Path) -> None:
    """The engine takes autocast's type; an engine of other weights is found out at the same tolerance."""
    engine = VLLMEngine(**SMALL)
    types = []

    class Noting(VLLMRolloutCallback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            super().on_train_epoch_start(trainer, pl_module)
            types.append(self.engine.identity()["dtype"])

    rollout = Noting(engine, group_sampling=SamplingParams(n=4, max_tokens=32), parity=ParityGate(prompts=4))
    trainer = Trainer(
        accelerator="gpu", devices=1, precision="bf16-mixed", max_epochs=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0, callbacks=[rollout],
        default_root_dir=tmp_path,
    )  # fmt: skip
    module = GRPOModule(Backbone(str(tiny_folder)), Optimization(learning_rate=1e-5), kl_coef=0.01)
    trainer.fit(module, PromptDataModule(Phantom("train", 16), encoder, prompts_per_iteration=8))
    assert types == ["bfloat16"] * 2

    policy = Policy(load_backbone(Backbone(str(tiny_folder)))).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        engine.start(encoder, policy)
        try:
            groups = sample(engine)
            assert all(found.agrees(0.05) for found in compare(groups, policy, encoder, temperature=1.0))
            change(policy)
            assert not all(found.agrees(0.05) for found in compare(groups, policy, encoder, temperature=1.0))
        finally:
            engine.close()


def config_of_3b(folder: Path) -> Qwen2_5_VLConfig:
    """The shape of Qwen2.5-VL-3B, with the special tokens of a tiny model."""
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    text: dict[str, Any] = config.text_config.to_dict()
    text |= {
        "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 11_008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "tie_word_embeddings": True, "initializer_range": 0.02,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "layer_types": None,
    }  # fmt: skip
    vision: dict[str, Any] = config.vision_config.to_dict()
    vision |= {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
        "fullatt_block_indexes": [7, 15, 23, 31], "initializer_range": 0.02,
    }  # fmt: skip
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = {name: getattr(config, name) for name in names}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens)


def test_a_model_of_real_size_is_sent_tensor_by_tensor(tiny_folder: Path, tmp_path: Path) -> None:
    """3.75 billion parameters in bfloat16, 7.5 GB: twice on the GPU, and a few tensors more while they are sent."""
    if torch.cuda.mem_get_info()[0] < 40 * GIB or shutil.disk_usage(tmp_path).free < 10 * GIB:
        pytest.skip("needs 40 GiB of free GPU memory and 10 GiB of disk")
    folder = shutil.copytree(tiny_folder, tmp_path / "3b")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = Qwen2_5_VLForConditionalGeneration(config_of_3b(tiny_folder))
    finally:
        torch.set_default_dtype(default)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    policy = Policy(load_backbone(Backbone(str(folder), dtype="bfloat16"))).cuda()
    size = sum(parameter.nbytes for parameter in policy.parameters()) / GIB
    assert 6 < size < 8
    encoder = PromptEncoder(str(folder), template="plain")
    engine = VLLMEngine(max_model_len=512, max_images=1, gpu_memory_utilization=0.4, kv_cache_gib=CACHE_GIB)
    engine.start(encoder, policy)
    try:
        before = token_ids(sample(engine))
        engine.sleep()
        change(policy, 0.01)
        engine.wake()
        torch.cuda.reset_peak_memory_stats()
        begin = torch.cuda.memory_allocated() / GIB
        engine.load_weights(hub_weights(policy), version=1)
        assert torch.cuda.max_memory_allocated() / GIB < begin + 3  # the embedding, 0.6 GiB, a few times
        after = sample(engine)
        assert token_ids(after) != before
        for found in compare(after, policy, encoder, temperature=SAMPLING.temperature):
            assert found.agrees(0.1), str(found)  # 36 layers of random weights round more than trained ones
    finally:
        engine.close()
