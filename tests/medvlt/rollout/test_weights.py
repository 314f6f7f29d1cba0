# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from medvlt.data.encoder import PromptEncoder
from medvlt.errors import ConfigurationError
from medvlt.models.loading import Backbone, LoRA, load_backbone
from medvlt.models.policy import Policy
from medvlt.models.sharding import shard
from medvlt.rollout.transformers import TransformersEngine
from medvlt.rollout.weights import CheckedWeights, hub_weights, model_shapes


def adapted(folder: Path, dtype: Literal["float32", "bfloat16"] = "float32") -> Policy:
    """A policy with adapters that do something: peft starts them as zero."""
    lora = LoRA(rank=4, alpha=6, components=("vision", "projector", "language"))
    policy = Policy(load_backbone(Backbone(str(folder), dtype=dtype, lora=lora)))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def merged_by_peft(policy: Policy) -> dict[str, Tensor]:
    """What peft's own merge makes of a policy, which it destroys."""
    return dict(policy.backbone.merge_and_unload().state_dict())


def plain_weights(folder: Path) -> dict[str, Tensor]:
    return dict(Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict())


def test_every_tensor_of_the_model_comes_once(tiny_folder: Path) -> None:
    stored = plain_weights(tiny_folder)
    sent = list(hub_weights(Policy(load_backbone(Backbone(str(tiny_folder))))))
    assert len(sent) == len(stored) == len(load_file(tiny_folder / "model.safetensors"))
    for name, weight in sent:
        assert torch.equal(weight, stored[name])
        assert not weight.requires_grad
    shapes = model_shapes(Qwen2_5_VLConfig.from_pretrained(tiny_folder))
    assert shapes == {name: weight.shape for name, weight in stored.items()}


def test_tied_embeddings_are_sent_once(tiny_folder: Path, tmp_path: Path) -> None:
    config = Qwen2_5_VLConfig.from_pretrained(tiny_folder)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path)
    sent = [name for name, _ in hub_weights(Policy(load_backbone(Backbone(str(tmp_path)))))]
    assert set(sent) == set(model_shapes(config)) == plain_weights(tiny_folder).keys() - {"lm_head.weight"}
    assert len(sent) == len(set(sent)) == len(load_file(tmp_path / "model.safetensors"))


def test_adapters_are_added_as_peft_would_and_the_base_is_left_alone(tiny_folder: Path) -> None:
    policy = adapted(tiny_folder)
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    plain = plain_weights(tiny_folder)
    for _ in range(3):
        sent = dict(hub_weights(policy))
    assert sent.keys() == plain.keys()
    assert sum(not torch.equal(sent[name], plain[name]) for name in plain) == 2 * 7 + 2 * 5 + 2  # every adapted layer
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.named_parameters())
    for name, weight in merged_by_peft(policy).items():
        torch.testing.assert_close(sent[name], weight, rtol=0, atol=1e-6)


def test_half_precision_weights_get_their_update_in_float32(tiny_folder: Path) -> None:
    policy = adapted(tiny_folder, "bfloat16").to(torch.bfloat16)  # the factors too, which peft keeps in float32
    sent = dict(hub_weights(policy))
    layer = policy.base.model.language_model.layers[0].self_attn.q_proj
    factors = [layer.lora_B["default"].weight, layer.lora_A["default"].weight]
    expected = layer.base_layer.weight.double() + 6 / 4 * (factors[0].double() @ factors[1].double())
    ours = sent["model.language_model.layers.0.self_attn.q_proj.weight"]
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, expected.to(torch.bfloat16), rtol=2**-8, atol=1e-6)  # one rounding, not several
    assert (ours != expected.to(torch.bfloat16)).float().mean() < 1e-3


def test_scale_of_rank_stabilised_adapters(tiny_folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = load_backbone(Backbone(str(tiny_folder)))
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj"]))
    policy = Policy(model)
    layer = policy.base.model.language_model.layers[1].self_attn.q_proj
    layer.lora_B["default"].weight.data.fill_(0.1)
    name = "model.language_model.layers.1.self_attn.q_proj.weight"
    change = dict(hub_weights(policy))[name] - layer.base_layer.weight
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(change, 6 / 4**0.5 * product, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("switched_off", [False, True])
def test_state_of_the_adapters_is_honoured(merged: bool, switched_off: bool, tiny_folder: Path) -> None:
    policy = adapted(tiny_folder)
    expected = plain_weights(tiny_folder) if switched_off else dict(hub_weights(policy))
    if merged:
        policy.backbone.base_model.merge_adapter()
    if switched_off:
        for module in policy.base.modules():  # `disable_adapter()` of peft unmerges on the way
            if hasattr(module, "_disable_adapters"):
                module._disable_adapters = True
    for name, weight in hub_weights(policy):
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


def test_other_adapters_are_refused(tiny_folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        load_backbone(Backbone(str(tiny_folder))), LoraConfig(use_dora=True, target_modules=["q_proj"])
    )
    with pytest.raises(ConfigurationError, match="only plain LoRA"):
        dict(hub_weights(Policy(model)))


def split_by(kind: str, policy: Policy) -> None:
    """Does to the policy what strategies do, or only what shows of it."""
    if kind == "DeepSpeed ZeRO-3":
        for number, parameter in enumerate(policy.parameters()):
            parameter.ds_id = number
    elif kind == "FSDP2":
        shard(policy, init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel")))
    elif kind.startswith("FSDP1"):
        FullyShardedDataParallel(
            torch.nn.Sequential(policy), device_id=torch.device("cpu"), use_orig_params="original" in kind
        )


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:FSDP is switching")
@pytest.mark.parametrize("kind", ["whole", "FSDP2", "FSDP1", "FSDP1, original parameters", "DeepSpeed ZeRO-3"])
def test_policies_that_cannot_be_made_whole_are_refused(kind: str, tiny_folder: Path, one_rank: None) -> None:
    policy = Policy(load_backbone(Backbone(str(tiny_folder))))
    encoder = PromptEncoder(str(tiny_folder), template="plain")
    split_by(kind, policy)
    name = kind.partition(",")[0]
    if kind == "whole":
        TransformersEngine().start(encoder, policy)
    else:
        with pytest.raises(ConfigurationError, match=f"a policy sharded by {name}: .*auto, ddp.*vLLM engine"):
            TransformersEngine().start(encoder, policy)
    if kind in ("whole", "FSDP2"):
        assert {name: weight.shape for name, weight in hub_weights(policy)} == {
            name: weight.shape for name, weight in plain_weights(tiny_folder).items()
        }
    elif name == "FSDP1":  # from around the policy, where it cannot be opened block by block
        with pytest.raises(ConfigurationError, match=r"wrapped the module around the policy.*use .*FSDP1Strategy"):
            hub_weights(policy)  # before anything is read: an engine takes errors of its source for its own


def stream(*names: str) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        if name == "error":
            raise OSError("the disk is full")
        yield name.rstrip("+"), torch.ones(2, 3) if name.endswith("+") else torch.ones(2)


@pytest.mark.parametrize(
    ("names", "passed", "problems"),
    [
        (["a", "b"], ["a", "b"], []),
        (["b"], ["b"], ["1 missing: a"]),
        (["a", "b", "c", "c"], ["a", "b"], ["1 unknown: c"]),
        (["a", "b", "a"], ["a", "b"], ["1 sent more than once: a"]),
        (["a", "b+"], ["a"], ["1 of another shape: b (2, 3) in place of (2,)"]),
        (["a", "error"], ["a"], ["the source failed: OSError: the disk is full", "1 missing: b"]),
    ],
)
def test_a_stream_is_checked_and_never_breaks_off(names: list[str], passed: list[str], problems: list[str]) -> None:
    checked = CheckedWeights(stream(*names), {"a": torch.Size([2]), "b": torch.Size([2])}, torch.bfloat16)
    received = list(checked)
    assert [name for name, _ in received] == passed
    assert {weight.dtype for _, weight in received} == {torch.bfloat16}
    assert checked.problems() == problems


@pytest.mark.parametrize(
    ("names", "problems"),
    [
        (["a", "b", "c"], ["1 unknown: c"]),  # what the receiver left is not missing
        (["a", "error"], ["the source failed: OSError: the disk is full", "1 missing: b"]),
    ],
)
def test_what_the_receiver_leaves_is_read_and_checked(names: list[str], problems: list[str]) -> None:
    source = stream(*names)
    checked = CheckedWeights(source, {"a": torch.Size([2]), "b": torch.Size([2])}, torch.float32)
    next(iter(checked))
    checked.drain()
    assert list(source) == []
    assert checked.problems() == problems
