# SPDX-License-Identifier: Apache-2.0
"""A policy of which rank 0 alone has read the weights, against a plain load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cpu_strategies import spawn
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import enable_wrap
from torch.distributed.tensor import DTensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from medvlt.data.packing import EncodedPrompt, Group, PackedBatch, pack
from medvlt.errors import ConfigurationError
from medvlt.models.building import build_policy, build_reference
from medvlt.models.loading import Backbone, LoRA
from medvlt.models.policy import Policy
from medvlt.models.reference import ReferencePolicy
from medvlt.models.sharding import Sharding


def cases(folder: Path, tied: Path) -> dict[str, Backbone]:
    whole = Backbone(str(folder))
    return {
        "float32": whole,
        "checkpointing": replace(whole, gradient_checkpointing=True, vision_attention="eager", freeze=("vision",)),
        "lora": replace(whole, lora=LoRA(rank=2, components=("vision", "language"))),
        "lora on bfloat16": replace(whole, dtype="bfloat16", lora=LoRA(rank=2)),
        "tied": Backbone(str(tied)),
        "auto": Backbone(str(tied), dtype="auto"),
    }


def a_batch() -> PackedBatch:
    generator = torch.Generator().manual_seed(0)
    prompt, *completions = [torch.randint(3, 250, (length,), generator=generator) for length in (9, 5, 7)]
    return pack([Group(EncodedPrompt(prompt, torch.arange(9).expand(3, 9)), completions, [1.0, 1.0])])


def build(settings: Backbone, mesh: Any = None, sharding: Sharding | None = None) -> Policy:
    torch.manual_seed(3)  # of the adapters
    return build_policy(settings, ranks=2, mesh=mesh, sharding=sharding)


def facts(policy: Policy) -> dict[str, Any]:
    """Everything a policy consists of, with the gradient of its log-probabilities; the same on every rank."""
    stored = policy.state_dict(keep_vars=True)
    weights = {name: full(tensor) for name, tensor in stored.items()}
    buffers = {name: buffer.clone() for name, buffer in policy.named_buffers()}
    logprobs = policy(a_batch())
    logprobs.sum().backward()
    return {
        "weights": weights,
        "buffers": buffers,
        "trained": sorted(name for name, parameter in policy.named_parameters() if parameter.requires_grad),
        "names": sorted(name for name, _ in policy.named_parameters()),
        "logprobs": logprobs.detach(),
        "gradients": {name: full(p.grad) for name, p in policy.named_parameters() if p.grad is not None},
        "attention": policy.base.config.vision_config._attn_implementation,
        "training": {name: module.training for name, module in policy.named_modules()},
    }


def full(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def work(rank: int, folder: Path, tied: Path, broken: Path, output: Path) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    read: list[str] = []
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained.__func__

    def from_pretrained(cls: type, name: str, **kwargs: Any) -> Any:
        read.append(name)
        return plain(cls, name, **kwargs)

    Qwen2_5_VLForConditionalGeneration.from_pretrained = classmethod(from_pretrained)
    found: dict[str, Any] = {}
    for name, settings in cases(folder, tied).items():
        policy = build(settings, mesh)
        found[name] = facts(policy) | {"local": sum(p.to_local().numel() for p in policy.parameters())}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found["gathered in bfloat16"] = facts(build(Backbone(str(folder)), mesh, Sharding("bfloat16")))
    found["offloaded"] = facts(build(Backbone(str(folder)), mesh, Sharding(cpu_offload=True)))
    policy = build(replace(Backbone(str(folder)), freeze=("language",)), mesh, Sharding(reshard_after_forward=False))
    reference = ReferencePolicy(policy, Backbone(str(folder)), mesh=mesh, on_cpu=True)
    with torch.no_grad(), reference.active(torch.device("cpu")) as copy:
        found["reference"] = copy(a_batch())
        assert copy.sharding == Sharding(cpu_offload=True, reshard_after_forward=False)
    assert all(isinstance(parameter, DTensor) for parameter in copy.parameters())
    found["read"] = list(read)
    try:
        build(Backbone(str(broken)), mesh)
    except ConfigurationError as error:
        found["refusal"] = str(error)
    fsdp1 = enable_wrap(wrapper_cls=FullyShardedDataParallel, device_id=torch.device("cpu"), use_orig_params=True)
    with fsdp1, pytest.raises(ConfigurationError, match=r"torch\.bfloat16 and torch\.float32 .*use FSDP2Strategy"):
        build(cases(folder, tied)["lora on bfloat16"])
    torch.save(found, output / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def tied(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Qwen2.5-VL 3B: one matrix for embeddings and head, stored in bfloat16."""
    config = Qwen2_5_VLConfig.from_pretrained(tiny_folder)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tied"
    Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_only_rank_0_reads_and_all_ranks_have_the_same(tiny_folder: Path, tied: Path, tmp_path: Path) -> None:
    spawn(work, tiny_folder, tied, tmp_path / "nowhere", tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    settings = cases(tiny_folder, tied)
    assert ranks[0]["read"] == [*(case.name for case in settings.values()), *[str(tiny_folder)] * 4]
    assert ranks[1]["read"] == []
    for name, case in (settings | {"offloaded": settings["float32"]}).items():
        expected = facts(build(case))
        for rank in ranks:
            found = rank[name]
            assert found["trained"] == expected["trained"], name
            assert found["names"] == expected["names"], name
            assert found["attention"] == expected["attention"], name
            assert found["training"] == expected["training"], name
            for kind in ("weights", "buffers", "gradients"):
                torch.testing.assert_close(found[kind], expected[kind], rtol=0, atol=0)
            torch.testing.assert_close(found["logprobs"], expected["logprobs"], rtol=0, atol=0)
        size = sum(tensor.numel() for tensor in expected["weights"].values())
        if "local" in found:
            assert ranks[0][name]["local"] < 0.52 * size
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = facts(build(settings["float32"]))
    for rank in ranks:
        check_gathered_in_bfloat16(rank["gathered in bfloat16"], expected)
    with torch.no_grad():
        start = build_reference(settings["float32"], always_run_vision=True)(a_batch())
    for rank in ranks:
        torch.testing.assert_close(rank["reference"], start, rtol=0, atol=0)
    assert ranks[0]["refusal"].startswith("backbone.name=")
    assert ranks[1]["refusal"] == f"rank 0: {ranks[0]['refusal']}"


def check_gathered_in_bfloat16(found: dict[str, Any], autocast: dict[str, Any]) -> None:
    """The numbers of autocast, of which the tiny model's norms, all 1, are no exception; gradients of norms differ."""
    torch.testing.assert_close(found["weights"], autocast["weights"], rtol=0, atol=0)  # stored in float32
    torch.testing.assert_close(found["logprobs"], autocast["logprobs"], rtol=0, atol=0)
    for name, gradient in autocast["gradients"].items():
        assert found["gradients"][name].dtype == torch.float32
        exact = "norm" not in name
        torch.testing.assert_close(
            found["gradients"][name], gradient, rtol=0 if exact else 0.02, atol=0 if exact else 0.02
        )
