# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's ZeRO-3: a policy that is loaded whole and then split over the ranks, parameter by parameter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from medvlt.models.policy import Policy


def partitions_parameters() -> bool:
    """Returns whether modules made here would be split at once: whether this is inside `deepspeed.zero.Init`.

    Lightning's `DeepSpeedStrategy(stage=3)` calls `configure_model` there.
    """
    return _context() is not None


@contextmanager
def whole_parameters() -> Iterator[None]:
    """Makes modules in the ordinary way inside `deepspeed.zero.Init`; elsewhere it does nothing.

    transformers initialises and loads weights by their shape, and peft adapters, which fails on split parameters, or
    silently leaves them as they are.
    """
    if not partitions_parameters():
        yield
        return
    from deepspeed.runtime.zero import partition_parameters

    partition_parameters.shutdown_init_context()  # what `deepspeed.initialize` does around itself
    try:
        yield
    finally:
        partition_parameters.restore_init_context()


def partition(policy: Policy) -> Policy:
    """Splits a whole policy over all ranks; collective, inside `deepspeed.zero.Init`.

    One parameter at a time is whole on the device. Rank 0's values count: on other ranks parameters may be on the meta
    device. They take the type that the strategy's precision computes in (bfloat16 under bf16-mixed), where DeepSpeed
    would only refuse another.
    """
    context = _context()
    split: dict[int, nn.Parameter] = {}  # tied embeddings are one parameter
    for module in policy.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in split:
                split[id(parameter)] = _on(context.local_device, parameter, context.dtype)
                context._convert_to_zero_parameters([split[id(parameter)]])
            setattr(module, name, split[id(parameter)])
    # the head's weight is used in the policy's own forward, which must gather it as its own, and in its backward
    import deepspeed

    deepspeed.zero.register_external_parameter(policy, policy.base.lm_head.weight)
    return policy


def gather_when_used(policy: Policy) -> None:
    """Makes a split policy gather each weight for its use, where no engine of DeepSpeed trains it.

    This is what `deepspeed.initialize` does with a model for inference.
    """
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.utils.timer import NoopTimer

    DeepSpeedZeRoOffload(policy, timers=NoopTimer(), ds_config=None)  # kept alive by the hooks it sets


def _on(device: torch.device, parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    empty = torch.empty_like(parameter, device=device, dtype=dtype) if parameter.is_meta else parameter.detach()
    return nn.Parameter(empty.to(device, dtype), requires_grad=parameter.requires_grad)


def _context() -> Any:
    """Returns the active `deepspeed.zero.Init`, or None; DeepSpeed is not imported for the question."""
    module = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    return None if module is None else module.top_level_context
