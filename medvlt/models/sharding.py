# SPDX-License-Identifier: Apache-2.0
"""How a policy is split over the ranks: one description for FSDP2 and FSDP1, and whether it is split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffload,
    CPUOffloadPolicy,
    FSDPModule,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    OffloadPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp._runtime_utils import _reshard
from torch.distributed.fsdp.wrap import wrap
from torch.distributed.tensor import DTensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer, Qwen2_5_VLVisionBlock

from medvlt.errors import ConfigurationError
from medvlt.models.policy import Policy

SHARDED_BLOCKS = (Qwen2_5_VLDecoderLayer, Qwen2_5_VLVisionBlock)
"""Each of these is gathered on its own; everything else, embeddings and head included, belongs to the root."""


@dataclass(frozen=True)
class Sharding:
    """How FSDP keeps and gathers the weights; what is stored, optimized and saved is the same in every case.

    Attributes:
        gather_dtype: Type in which the weights of a block are sent and used; None for the type they are stored in.
            "bfloat16" is for `bf16-mixed`, whose matrix products see the same numbers either way: half the traffic, and
            no copies that autocast would keep until the backward pass. Scales of norms are rounded too. The root, with
            the head, is always gathered as it is stored, and gradients are always averaged in float32.
        cpu_offload: Keep shards, gradients and optimizer state in main memory; the optimizer steps there.
        reshard_after_forward: Let the gathered weights of a block go until the backward pass. False saves the second
            of two gathers for the memory of all weights.
    """

    gather_dtype: Literal["bfloat16"] | None = None
    cpu_offload: bool = False
    reshard_after_forward: bool = True


def shard(policy: Policy, mesh: DeviceMesh | None, sharding: Sharding | None = None) -> Policy:
    """Splits a policy over the ranks: each block, and the rest of it together.

    Args:
        policy: Its `forward` becomes the unit of the root, so the head's weight is whole inside it.
        mesh: The strategy's mesh with a dimension `data_parallel` (FSDP2). With None the blocks are wrapped for FSDP1
            if `FSDP1Strategy` asks for it (`enable_wrap`, in `configure_model`); otherwise the policy is left whole.
        sharding: Its settings; None for the default.

    Returns:
        The policy; under FSDP1 the wrapper around it, which has its attributes.

    Raises:
        ConfigurationError: If the mesh asks for tensor parallelism.
    """
    policy.sharding = sharding = sharding or Sharding()
    if mesh is None:
        return _wrapped(policy, sharding)
    data_parallel = data_parallel_mesh(mesh)
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if sharding.gather_dtype == "bfloat16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the residual stream stays float32, as under autocast
    )
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if sharding.cpu_offload else OffloadPolicy()
    for module in policy.modules():
        if isinstance(module, SHARDED_BLOCKS):
            fully_shard(
                module,
                mesh=data_parallel,
                reshard_after_forward=sharding.reshard_after_forward,
                mp_policy=precision,
                offload_policy=offload,
            )
    whole = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(policy, mesh=data_parallel, mp_policy=whole, offload_policy=offload)
    return policy


def data_parallel_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Returns the dimension of a strategy's mesh that weights are split over.

    Raises:
        ConfigurationError: If the mesh asks for tensor parallelism.
    """
    if mesh["tensor_parallel"].size() != 1:
        raise ConfigurationError(
            f"the strategy splits each layer over {mesh['tensor_parallel'].size()} ranks; this model is not written "
            "for tensor parallelism; use FSDP2Strategy (strategy: fsdp2), or set tensor_parallel_size: 1 and "
            "data_parallel_size to the number of all ranks"
        )
    return mesh["data_parallel"]


def _wrapped(policy: Policy, sharding: Sharding) -> Policy:
    """Wraps the same units for FSDP1; does nothing outside `enable_wrap`."""
    blocks = None
    if sharding.gather_dtype == "bfloat16":
        blocks = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    shared = {
        "cpu_offload": CPUOffload(offload_params=sharding.cpu_offload),
        "sharding_strategy": (
            ShardingStrategy.FULL_SHARD if sharding.reshard_after_forward else ShardingStrategy.SHARD_GRAD_OP
        ),
    }
    for parameter in policy.parameters():  # a rank sees a flat part of it from now on
        parameter.whole_shape = parameter.shape  # type: ignore[attr-defined]
    dtypes = sorted({str(parameter.dtype) for parameter in policy.parameters()})
    try:
        for parent in list(policy.modules()):
            for name, child in parent.named_children():
                if isinstance(child, SHARDED_BLOCKS):
                    setattr(parent, name, wrap(child, mixed_precision=blocks, **shared))
        # None is said, not left out: under bf16-mixed Lightning's own choice is bfloat16 for the head, the averaging of
        # gradients and the rotary frequencies, which put a token at another place when rounded
        return cast(Policy, wrap(policy, mixed_precision=None, **shared))
    except ValueError as error:
        if len(dtypes) == 1:
            raise
        raise ConfigurationError(
            f"FSDP1 cannot split weights of several types, here {' and '.join(dtypes)} ({error}); use FSDP2Strategy "
            "(strategy: fsdp2), or backbone.dtype: float32"
        ) from error


def as_policy(module: nn.Module | None) -> Policy | None:
    """Returns what a module has as its `policy`: a policy, or FSDP1's wrapper around one; None where there is none.

    Raises:
        ConfigurationError: If it is something else, of which no weights could be sent to an engine.
    """
    if module is None or isinstance(module, Policy):
        return module
    if isinstance(module, FullyShardedDataParallel) and isinstance(module.module, Policy):
        return cast(Policy, module)
    raise ConfigurationError(
        f"the module's `policy` is a {type(module).__name__}, expected a medvlt.models.policy.Policy or one "
        "that FSDP1Strategy has wrapped; leave it as `configure_model` built it"
    )


def reshard(policy: nn.Module) -> None:
    """Lets go of gathered weights, of which FSDP keeps the root's after a forward in case a backward follows."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for root in FullyShardedDataParallel.fsdp_modules(policy, root_only=True):
        for unit in FullyShardedDataParallel.fsdp_modules(root):
            handle = unit._handle
            if handle is not None and handle.uses_sharded_strategy:
                _reshard(unit, handle, True)  # FSDP1 has no public name for it


def sharded_by(policy: nn.Module) -> Literal["FSDP2", "DeepSpeed ZeRO-3", "FSDP1"] | None:
    """Returns what has split the policy's parameters over the ranks; None if each rank has them whole."""
    parameters = list(policy.parameters())
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        return "FSDP2"
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        return "DeepSpeed ZeRO-3"
    flat = any(getattr(parameter, "_is_flat_param", False) for parameter in parameters)
    # with `use_orig_params`, Lightning's default, the parameters look like any others
    if flat or any(getattr(module, "_is_fsdp_managed_module", False) for module in policy.modules()):
        return "FSDP1"
    return None
