# SPDX-License-Identifier: Apache-2.0
"""vLLM under two processes (gloo): an engine on each rank, one engine on both, weights from a sharded policy."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.distributed.device_mesh import init_device_mesh

from medvlt.data.encoder import PromptEncoder
from medvlt.data.packing import Group, pack
from medvlt.errors import EngineError
from medvlt.models.loading import Backbone, LoRA, load_backbone
from medvlt.models.policy import Policy
from medvlt.models.sharding import shard
from medvlt.rollout.vllm import VLLMEngine
from medvlt.rollout.weights import hub_weights
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams

OPTIONS = {"A": "Left", "B": "Right"}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (84, 56, 3), dtype=np.uint8))
SAMPLES = [
    Sample("long", "A very long question. " * 12, OPTIONS, "A", "Left"),
    Sample("picture", "Which side?", OPTIONS, "B", "Right", (PICTURE,)),
    Sample("damaged", "Which side?", OPTIONS, "B", "Right", (b"no picture",)),
    Sample("short", "Which?", OPTIONS, "A", "Left"),
]
SHARES = {"one each": (SAMPLES[:3], SAMPLES[3:]), "one of both": (SAMPLES, [])}
SAMPLING = SamplingParams(n=2, max_tokens=8)


def policy_of(folder: Path) -> Policy:
    """A policy with adapters that do something, the same at every call."""
    policy = Policy(load_backbone(Backbone(str(folder), lora=LoRA(rank=4, components=("vision", "language")))))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def furthest_from_trainer(encoder: PromptEncoder, policy: Policy, groups: list[RolloutGroup]) -> float:
    """Largest difference between the log-probabilities of engine and trainer."""
    furthest = 0.0
    for group in groups:
        completions = [torch.tensor(c.token_ids) for c in group.completions]
        if len(completions[0]):
            batch = pack([Group(encoder.encode(group.sample), completions, [1.0] * len(completions))])
            with torch.no_grad():
                logits = policy.hidden_states(batch) @ policy.base.lm_head.weight.T
            logits[:, encoder.unsampled_token_ids(logits.shape[1])] = -torch.inf
            expected = logits.log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
            ours = torch.tensor([x for c in group.completions for x in c.sampler_logprobs])
            furthest = max(furthest, float((ours - expected).abs().max()))
    return furthest


def sample(engine: VLLMEngine, share: list[Sample]) -> list[RolloutGroup]:
    return engine.generate(share, SAMPLING, keys=[RolloutKey(1, 2, question.uid) for question in share])


def work(rank: int, port: int, folder: Path, output: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    encoder, whole = PromptEncoder(str(folder), template="plain"), policy_of(folder)
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    sharded = shard(policy_of(folder), mesh)
    found: dict[str, Any] = {}
    for kind, size in (("one each", 1), ("one of both", 2)):
        share = SHARES[kind][rank]
        engine = VLLMEngine(
            max_model_len=512, max_images=1, max_num_seqs=16, kv_cache_gib=0.125, tensor_parallel_size=size
        )
        engine.start(encoder, whole)
        before = sample(engine, share)
        missing = "model.language_model.norm.weight" if rank == 1 else ""
        try:
            engine.load_weights(((n, w) for n, w in hub_weights(sharded) if n != missing), version=3)
            message = ""
        except EngineError as error:
            message = str(error)
        engine.load_weights(hub_weights(sharded), version=4)
        after = sample(engine, share)
        engine.close()
        total = torch.tensor([rank + 1.0])
        dist.all_reduce(total)  # the trainer's group has survived
        found[kind] = {
            "before": [[c.token_ids for c in group.completions] for group in before],
            "after": [[c.token_ids for c in group.completions] for group in after],
            "logprobs": [list(c.sampler_logprobs) for group in after for c in group.completions],
            "versions": [c.version for group in after for c in group.completions],
            "refused": dict(engine.refused),
            "furthest": furthest_from_trainer(encoder, whole, after),
            "message": message,
            "total": total.item(),
            "rank": os.environ.get("RANK"),
        }
    torch.save(found, output / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    pytest.importorskip("vllm", reason="vLLM is not installed", exc_type=ImportError)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)  # kv_cache_gib is set
        torch.multiprocessing.spawn(work, (port, tiny_folder, output), nprocs=2)
    return [torch.load(output / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.vllm
class TestTwoRanks:
    @pytest.mark.parametrize("kind", SHARES)
    def test_each_rank_gets_its_own_answers_under_the_new_weights(self, kind: str, ranks: list[dict[str, Any]]) -> None:
        for rank, share in enumerate(SHARES[kind]):
            found = ranks[rank][kind]
            assert len(found["after"]) == len(share)
            assert found["furthest"] < 1e-4
            assert set(found["versions"]) <= {4}
            assert found["refused"] == ({"corrupt_image": 2} if rank == 0 else {})
            assert not share or found["before"] != found["after"]

    def test_a_shared_engine_samples_what_single_ones_do(self, ranks: list[dict[str, Any]]) -> None:
        alone = [ranks[rank]["one each"] for rank in range(2)]
        shared = ranks[0]["one of both"]
        assert shared["before"] == alone[0]["before"] + alone[1]["before"]
        assert shared["after"] == alone[0]["after"] + alone[1]["after"]
        for one, two in zip(shared["logprobs"], alone[0]["logprobs"] + alone[1]["logprobs"], strict=True):
            assert one == pytest.approx(two, abs=1e-4)

    def test_ranks_that_share_an_engine_fail_together(self, ranks: list[dict[str, Any]]) -> None:
        fault = "1 missing: model.language_model.norm.weight"
        assert [fault in rank["one each"]["message"] for rank in ranks] == [False, True]
        assert [fault in rank["one of both"]["message"] for rank in ranks] == [True, True]

    @pytest.mark.parametrize("kind", SHARES)
    def test_the_process_is_left_as_it_was(self, kind: str, ranks: list[dict[str, Any]]) -> None:
        assert [rank[kind]["total"] for rank in ranks] == [3.0, 3.0]
        assert [rank[kind]["rank"] for rank in ranks] == [None, None]
