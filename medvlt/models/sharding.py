# SPDX-License-Identifier: Apache-2.0
"""Which parts of a policy are sharded together (FSDP2), and whether it is sharded."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer, Qwen2_5_VLVisionBlock

from medvlt.errors import ConfigurationError
from medvlt.models.policy import Policy

SHARDED_BLOCKS = (Qwen2_5_VLDecoderLayer, Qwen2_5_VLVisionBlock)
"""Each of these is gathered on its own; everything else, embeddings and head included, belongs to the root."""


def shard(policy: Policy, mesh: DeviceMesh | None) -> Policy:
    """Shards a policy over the data-parallel ranks of a mesh; without a mesh it is left whole.

    Args:
        policy: Its `forward` becomes the unit of the root, so the head's weight is whole inside it.
        mesh: The strategy's mesh with a dimension `data_parallel` (`ModelParallelStrategy`), or None.

    Returns:
        The same policy.

    Raises:
        ConfigurationError: If the mesh asks for tensor parallelism.
    """
    if mesh is None:
        return policy
    if mesh["tensor_parallel"].size() != 1:
        raise ConfigurationError(
            f"the strategy splits each layer over {mesh['tensor_parallel'].size()} ranks; this model is not written "
            "for tensor parallelism; set tensor_parallel_size: 1 and data_parallel_size to the number of all ranks"
        )
    data_parallel = mesh["data_parallel"]
    for module in policy.modules():
        if isinstance(module, SHARDED_BLOCKS):
            fully_shard(module, mesh=data_parallel)
    fully_shard(policy, mesh=data_parallel)
    return policy


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
