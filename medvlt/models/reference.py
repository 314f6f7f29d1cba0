# SPDX-License-Identifier: Apache-2.0
"""The reference policy of a KL penalty: the weights that training began with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.distributed.device_mesh import DeviceMesh

from medvlt.models.building import build_reference
from medvlt.models.loading import Backbone
from medvlt.models.policy import Policy
from medvlt.models.sharding import Sharding, reshard, sharded_by


class ReferencePolicy:
    """Gives the starting weights for a while.

    With LoRA these are the policy's own base weights, adapters switched off: no second model. Otherwise a frozen copy
    is loaded from where the policy came from, and split over the ranks like the policy. It is no submodule of anything,
    so no optimizer, checkpoint or weight stream sees it.

    Args:
        policy: The policy that is trained.
        settings: How its backbone was loaded.
        mesh: Shards the copy like the policy (FSDP2); None leaves it whole.
        on_cpu: Keep the copy in main memory while it is not used: 4 bytes per parameter (float32) less on the device
            for two transfers per iteration. A copy that FSDP2 or FSDP1 has split stays in main memory while it is
            used, too: its blocks come to the device one at a time.
    """

    def __init__(self, policy: Policy, settings: Backbone, *, mesh: DeviceMesh | None, on_cpu: bool) -> None:
        self.policy = policy
        self.copy: Policy | None = None
        if settings.lora is None:
            sharding = policy.sharding or Sharding()
            self.copy = build_reference(
                settings,
                always_run_vision=policy.always_run_vision,
                mesh=mesh,
                sharding=replace(sharding, cpu_offload=on_cpu or sharding.cpu_offload),
            )
        # the shards of a strategy are where it wants them
        self._whole = self.copy is not None and sharded_by(self.copy) is None
        self._on_cpu = on_cpu and self._whole
        if self.copy is not None and self._on_cpu:  # the strategy may have loaded it onto the device
            self.copy.to("cpu")

    @contextmanager
    def active(self, device: torch.device) -> Iterator[Policy]:
        """Yields a policy with the starting weights on `device`."""
        if self.copy is None:
            with self.policy.backbone.disable_adapter():
                yield self.policy
            return
        if self._whole:
            self.copy.to(device)
            # DeepSpeed computes in bfloat16 weights under bf16-mixed; buffers (rotary frequencies) stay as they are
            dtype = self.policy.base.lm_head.weight.dtype
            for parameter in self.copy.parameters():
                parameter.data = parameter.data.to(dtype)
        try:
            yield self.copy
        finally:
            if self._on_cpu:
                self.copy.to("cpu")
            reshard(self.copy)
