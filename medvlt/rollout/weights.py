# SPDX-License-Identifier: Apache-2.0
"""Weights on their way from the policy to an engine: full tensors under Hub names, each exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from medvlt.errors import ConfigurationError, listed
from medvlt.models.quantization import dequantized, is_quantized
from medvlt.models.sharding import sharded_by

if TYPE_CHECKING:
    from medvlt.models.policy import Policy

FSDP1_WRAPPER = "._fsdp_wrapped_module"
"""What FSDP1 puts into the names of modules."""


def hub_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Returns an iterator over every weight of the policy, as full tensors under Hub names, one at a time.

    Hub names are those of the transformers model's `state_dict`, without a trace of adapters or sharding.

    - LoRA: a weight W with adapters is sent as W + scale B A, computed in float32 from the factors into a fresh tensor
      of W's dtype. The policy's own weights are never touched, so nothing accumulates over repeated syncs. The sum is
      over the adapters that are switched on; what is already merged into W is not added again.
    - Sharded policies (FSDP2, FSDP1, ZeRO-3): each tensor is gathered, used and let go before the next; FSDP1 gathers
      a block at a time. Gathering is collective, so every rank must go through the whole iterator, also a rank that has
      no use for the tensors, and may not use the policy meanwhile.
    - Tied embeddings are one parameter and come once, as `model.language_model.embed_tokens.weight`: checkpoints store
      them under that name, and whoever loads them ties the head to it.
    - Quantised weights come as the floats that the forward computes with.
    - Buffers that a checkpoint does not hold (rotary frequencies) follow from the configuration and are not sent.

    Args:
        policy: Plain, with adapters, sharded, or both.

    Returns:
        Names and tensors. A weight without adapters may be the policy's own memory: copy it to keep it beyond the next
        tensor.

    Raises:
        ConfigurationError: For adapters other than plain LoRA on linear layers, and where FSDP1 has wrapped not the
            policy but what is around it.
    """
    if sharded_by(policy) == "FSDP1" and not isinstance(policy, FullyShardedDataParallel):
        raise ConfigurationError(
            "FSDP1 has wrapped the module around the policy, whose weights cannot be made whole one block at a time; "
            "use lightning_modules.strategies.FSDP1Strategy, or strategy: fsdp2"
        )
    return _full_weights(policy, _adapted_layers(policy))


@torch.no_grad()
def _full_weights(policy: Policy, layers: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    sent: set[int] = set()  # the second name of a tied parameter is left out
    for unit, modules in _units(policy).items():
        fsdp1 = isinstance(unit, FullyShardedDataParallel)
        with _opened(unit):
            for owner, module in modules:
                if owner.partition(".lora_")[0] in layers and ".lora_" in owner:
                    continue  # factors come with the weight they belong to
                for leaf, parameter in module.named_parameters(recurse=False):
                    if id(parameter) not in sent:
                        sent.add(id(parameter))
                        base, within, _ = owner.partition(".base_layer")
                        adapted = layers[base] if within and leaf == "weight" else None
                        weight = _full_weight(parameter, adapted)
                        # FSDP1 frees what it has gathered when the unit is closed; vLLM keeps a tensor until it has
                        # all of a layer
                        yield f"{base}.{leaf}", weight.clone() if fsdp1 else weight
                for leaf, buffer in module.named_buffers(recurse=False):
                    if leaf not in module._non_persistent_buffers_set:
                        yield f"{owner}.{leaf}", full_tensor(buffer)


def _units(policy: Policy) -> dict[nn.Module, list[tuple[str, nn.Module]]]:
    """Returns the modules of the model with their names, grouped by what is gathered together.

    These are the modules that FSDP1 wraps; without it there is one group.
    """
    owners: dict[str, nn.Module] = {}
    units: dict[nn.Module, list[tuple[str, nn.Module]]] = {}
    for name, module in policy.base.named_modules():
        around = owners[name.rpartition(".")[0]] if name else policy
        owners[name] = module if isinstance(module, FullyShardedDataParallel) else around
        units.setdefault(owners[name], []).append((name.replace(FSDP1_WRAPPER, ""), module))
    return units


def _opened(unit: nn.Module) -> AbstractContextManager[None]:
    """Makes what FSDP1 has split whole for a while."""
    if isinstance(unit, FullyShardedDataParallel):
        return cast(
            AbstractContextManager[None],
            FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False),
        )
    return nullcontext()


def _full_weight(parameter: nn.Parameter, adapted: Any | None = None) -> Tensor:
    """Returns a weight with its adapters, if it has any; the one place where base weights become full float tensors."""
    with _gathered(parameter):
        weight = dequantized(parameter) if is_quantized(parameter) else full_tensor(parameter)
    return weight if adapted is None else _with_adapters(adapted, weight)


def _gathered(parameter: nn.Parameter) -> AbstractContextManager[None]:
    """Makes a parameter whole that ZeRO-3 has split; what is read of it meanwhile stays whole."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed  # slow, and there already if it is needed

    return cast(AbstractContextManager[None], deepspeed.zero.GatheredParameters([parameter]))


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns a tensor without its history, gathered from all ranks if FSDP2 has split it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def model_shapes(config: Qwen2_5_VLConfig) -> dict[str, torch.Size]:
    """Returns the shape of every tensor that `hub_weights` sends of a model, by name; no weights are made."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    in_checkpoint = model.state_dict().keys()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return shapes | {name: buffer.shape for name, buffer in model.named_buffers() if name in in_checkpoint}


def _adapted_layers(policy: Policy) -> dict[str, Any]:
    """Returns the linear layers with adapters, by their name in the model."""
    if policy.backbone is policy.base:
        return {}
    from peft.import_utils import is_bnb_4bit_available  # slow to import, and there already if it is needed
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain: set[type] = {Linear}
    if is_bnb_4bit_available():
        from peft.tuners.lora.bnb import Linear4bit

        plain.add(Linear4bit)
    found = ((name, layer) for name, layer in policy.base.named_modules() if isinstance(layer, BaseTunerLayer))
    layers: dict[str, Any] = {name.replace(FSDP1_WRAPPER, ""): layer for name, layer in found}
    for name, layer in layers.items():
        if type(layer) not in plain or any(layer.use_dora.values()) or any(layer.lora_bias.values()):
            raise ConfigurationError(
                f"the adapter on {name} is a {type(layer).__name__} with settings whose product with the weight is not "
                "W + scale B A; only plain LoRA on linear layers can be sent to an engine (no DoRA, no bias)"
            )
    return layers


def _with_adapters(layer: Any, weight: Tensor) -> Tensor:
    """Returns W + scale B A over the adapters that are on and not merged, less those merged and off, in W's dtype."""
    wanted = set() if layer.disable_adapters else set(layer.active_adapters)
    merged = set(layer.merged_adapters)
    changes = [(name, 1.0) for name in layer.lora_A if name in wanted - merged]
    changes += [(name, -1.0) for name in layer.lora_A if name in merged - wanted]
    if not changes:
        return weight
    total = weight.float()  # a copy, except of float32
    for name, sign in changes:
        down, up = _full_weight(layer.lora_A[name].weight), _full_weight(layer.lora_B[name].weight)
        total = total + sign * layer.scaling[name] * (up.float() @ down.float())
    return total.to(weight.dtype)


class CheckedWeights:
    """A stream of weights that is compared, while it passes, with what the receiver expects.

    Tensors that are unknown, come again or have another shape are left out, and an error of the source ends the
    stream: the receiver always gets to finish, and `problems` says afterwards what was wrong.

    Args:
        weights: Names and full tensors.
        expected: Shape of each tensor that must come exactly once.
        dtype: Floating-point tensors are converted to it, one at a time.

    Attributes:
        error: What the source raised, or None.
    """

    def __init__(
        self, weights: Iterable[tuple[str, Tensor]], expected: Mapping[str, torch.Size], dtype: torch.dtype
    ) -> None:
        self.expected = expected
        self.dtype = dtype
        self.error: Exception | None = None
        self._source = iter(weights)
        self._seen: Counter[str] = Counter()
        self._misshapen: dict[str, torch.Size] = {}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yields what can be used of what has not been read yet."""
        try:
            for name, tensor in self._source:
                self._seen[name] += 1
                if name not in self.expected or self._seen[name] > 1:
                    continue
                if tensor.shape != self.expected[name]:
                    self._misshapen[name] = tensor.shape
                    continue
                yield name, tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        except Exception as error:
            self.error = error

    def drain(self) -> None:
        """Reads on to the end, for a receiver that gave up: other ranks may be gathering the same tensors."""
        for _ in self:
            pass

    def problems(self) -> list[str]:
        """Returns what was wrong with the stream, in words; empty if every tensor came once."""
        kinds = {
            "missing": [name for name in self.expected if name not in self._seen],
            "unknown": [name for name in self._seen if name not in self.expected],
            "sent more than once": [name for name, count in self._seen.items() if count > 1 and name in self.expected],
            "of another shape": [
                f"{name} {tuple(shape)} in place of {tuple(self.expected[name])}"
                for name, shape in self._misshapen.items()
            ],
        }
        found = [f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names]
        return [f"the source failed: {type(self.error).__name__}: {self.error}", *found] if self.error else found
