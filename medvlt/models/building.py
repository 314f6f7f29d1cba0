# SPDX-License-Identifier: Apache-2.0
"""Build a policy from its settings: whole on every rank, or as a shard of what rank 0 reads."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration

from medvlt.distributed import gather, together, world
from medvlt.models import zero
from medvlt.models.loading import Backbone, load_pretrained, prepare_backbone
from medvlt.models.policy import Policy
from medvlt.models.sharding import Sharding, data_parallel_mesh, shard


def build_policy(
    settings: Backbone, *, ranks: int, mesh: DeviceMesh | None = None, sharding: Sharding | None = None
) -> Policy:
    """Builds the policy to be trained.

    With a mesh only rank 0 reads the weights, into main memory; every rank makes the model without memory, splits it
    and receives its share, one tensor at a time. The result has the same numbers as a plain load.

    Args:
        settings: Which model, what of it is trained.
        ranks: Processes that train together.
        mesh: The strategy's mesh (FSDP2), or None.
        sharding: Settings of FSDP.

    Raises:
        ConfigurationError: If the model cannot be loaded, nothing is trained, or the mesh does not fit; on all ranks.
    """

    def assemble(model: Qwen2_5_VLForConditionalGeneration) -> Policy:
        backbone = prepare_backbone(model, settings)
        vision_is_trained = any(p.requires_grad for name, p in backbone.named_parameters() if "visual" in name)
        return Policy(backbone, always_run_vision=vision_is_trained or ranks > 1)

    return _build(settings, assemble, mesh, sharding)


def build_reference(
    settings: Backbone,
    *,
    always_run_vision: bool,
    mesh: DeviceMesh | None = None,
    sharding: Sharding | None = None,
) -> Policy:
    """Builds a frozen policy with the weights as they are stored; see `build_policy`."""

    def assemble(model: Qwen2_5_VLForConditionalGeneration) -> Policy:
        return Policy(model.eval().requires_grad_(False), always_run_vision=always_run_vision)

    policy = _build(settings, assemble, mesh, sharding)
    if zero.partitions_parameters():
        zero.gather_when_used(policy)  # the trained one is DeepSpeed's own affair
    return policy


def _build(
    settings: Backbone,
    assemble: Callable[[Qwen2_5_VLForConditionalGeneration], Policy],
    mesh: DeviceMesh | None,
    sharding: Sharding | None,
) -> Policy:
    if zero.partitions_parameters():
        with zero.whole_parameters():
            source = together(lambda: assemble(load_pretrained(settings)) if world()[1] == 0 else None)
            policy = _without_memory(source, settings, assemble)
        policy = zero.partition(source or policy)
        _copy_buffers(source, policy, next(policy.parameters()).device)
        return policy
    if mesh is None:
        return shard(assemble(load_pretrained(settings)), None, sharding)
    data_parallel_mesh(mesh)  # refuses before anything is read
    sharding = sharding or Sharding()
    source = together(lambda: assemble(load_pretrained(settings)) if world()[1] == 0 else None)
    policy = shard(_without_memory(source, settings, assemble), mesh, sharding)
    device = _device(mesh)
    policy.to_empty(device="cpu" if sharding.cpu_offload else device)
    set_model_state_dict(
        policy,
        source.state_dict() if source is not None else {},
        options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
    )
    _copy_buffers(source, policy, device)
    return policy


def _without_memory(
    source: Policy | None, settings: Backbone, assemble: Callable[[Qwen2_5_VLForConditionalGeneration], Policy]
) -> Policy:
    """Builds on every rank what rank 0 has loaded, on the meta device, each tensor of the same type."""
    config = gather(None if source is None else source.base.config)[0]  # names the type of the loaded weights
    with torch.device("meta"):
        # the vision tower's attention is not in the configuration; the text model's is set by `Policy`
        attention = {"vision_config": settings.vision_attention, "text_config": "sdpa"}
        return assemble(AutoModelForImageTextToText.from_config(config, attn_implementation=attention))


def _copy_buffers(source: Policy | None, policy: Policy, device: torch.device) -> None:
    """Gives every rank the buffers of rank 0; a state dict lacks some, the rotary frequencies among them."""
    for name, buffer in policy.named_buffers():
        value = torch.empty_like(buffer, device=device) if source is None else source.get_buffer(name).to(device)
        dist.broadcast(value, src=0)
        owner, _, leaf = name.rpartition(".")
        setattr(policy.get_submodule(owner), leaf, value)


def _device(mesh: DeviceMesh) -> torch.device:
    """Returns where this rank computes."""
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())
