# SPDX-License-Identifier: Apache-2.0
"""Four-bit weights under adapters, on the CPU, where bitsandbytes runs as well."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medvlt.errors import MissingExtraError
from medvlt.models.loading import Backbone, LoRA, load_backbone
from medvlt.models.policy import Policy
from medvlt.models.quantization import dequantized, expand, is_quantized
from medvlt.rollout.weights import hub_weights, model_shapes

# the code table of nf4 (QLoRA, appendix E): quantiles of a normal distribution, scaled to [-1, 1]
NF4 = torch.tensor(
    [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
     0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
)  # fmt: skip
BLOCK = 64


@pytest.fixture(scope="module")
def policy(tiny_folder: Path) -> Policy:
    pytest.importorskip("bitsandbytes")
    settings = Backbone(str(tiny_folder), quantization="nf4", lora=LoRA(rank=2, components=("vision", "language")))
    loaded = Policy(load_backbone(settings))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in loaded.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return loaded


def rounded(weight: Tensor) -> Tensor:
    """Nearest code of each number in blocks of 64 that are scaled by their largest; the scales are not rounded here."""
    blocks = weight.reshape(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True)
    nearest = ((blocks / scales)[..., None] - NF4).abs().argmin(-1)
    return (NF4[nearest] * scales).reshape(weight.shape)


def test_the_language_model_alone_is_quantized(policy: Policy) -> None:
    for name, parameter in policy.base.named_parameters():
        linear = "language_model.layers" in name and name.endswith("base_layer.weight")
        assert is_quantized(parameter) == linear, name
        assert not (linear and parameter.requires_grad)


def test_an_engine_gets_what_the_forward_computes_with(policy: Policy, tiny_folder: Path) -> None:
    whole = load_backbone(Backbone(str(tiny_folder))).state_dict()
    sent = dict(hub_weights(policy))
    assert {name: tensor.shape for name, tensor in sent.items()} == model_shapes(policy.base.config)
    name = "model.language_model.layers.1.mlp.gate_proj"
    layer = policy.base.get_submodule(name)
    base = dequantized(layer.base_layer.weight)
    # double quantization rounds the scale of a block by at most 1 part in 127 of the range of the scales
    torch.testing.assert_close(base, rounded(whole[f"{name}.weight"]), rtol=0.02, atol=2e-3)
    assert not torch.equal(base, whole[f"{name}.weight"])
    inputs = torch.randn(5, base.shape[1])
    plain = nn.functional.linear(inputs, sent[f"{name}.weight"])
    torch.testing.assert_close(layer(inputs), plain, rtol=1e-4, atol=1e-4)


def test_a_forward_leaves_the_weights_as_they_are(policy: Policy) -> None:
    """bitsandbytes would pack them anew, in place, on CPUs with AVX512-BF16, and an engine would get garbage."""
    from bitsandbytes.nn import Linear4bit

    before = {name: tensor.clone() for name, tensor in hub_weights(policy)}
    policy.eval()
    with torch.no_grad():
        policy.backbone(input_ids=torch.arange(12)[None])
    policy.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in hub_weights(policy))
    layers = [module for module in policy.modules() if isinstance(module, Linear4bit)]
    assert layers
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_expanded_layers_compute_the_same(policy: Policy) -> None:
    name = "model.language_model.layers.0.self_attn.q_proj"
    holder = nn.ModuleDict({"adapted": copy.deepcopy(policy.base.get_submodule(name)).eval()})
    weight = dequantized(holder["adapted"].base_layer.weight)
    inputs = torch.randn(5, weight.shape[1])
    expected = holder["adapted"](inputs)
    expand(holder)
    assert type(holder["adapted"].base_layer) is nn.Linear
    assert torch.equal(holder["adapted"].base_layer.weight, weight)
    torch.testing.assert_close(holder["adapted"](inputs), expected, rtol=1e-4, atol=1e-4)


def test_only_adapters_get_a_gradient(policy: Policy) -> None:
    output = policy.backbone(input_ids=torch.arange(12)[None], labels=torch.arange(12)[None])
    output.loss.backward()
    for name, parameter in policy.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name and "visual" not in name), name


def test_without_the_package(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"medvlt\[quantization\]"):
        load_backbone(Backbone(str(tiny_folder), quantization="nf4", lora=LoRA()))
