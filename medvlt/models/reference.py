# SPDX-License-Identifier: Apache-2.0
"""The reference policy of a KL penalty: the weights that training began with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.device_mesh import DeviceMesh

from medvlt.models.loading import Backbone, load_pretrained
from medvlt.models.policy import Policy
from medvlt.models.sharding import shard


class ReferencePolicy:
    """Gives the starting weights for a while.

    With LoRA these are the policy's own base weights, adapters switched off: no second model. Otherwise a frozen copy
    is loaded from where the policy came from. It is no submodule of anything, so no optimizer, checkpoint or weight
    stream sees it.

    Args:
        policy: The policy that is trained.
        settings: How its backbone was loaded.
        mesh: Shards the copy like the policy; None leaves it whole.
        on_cpu: Keep the copy in main memory while it is not used: 4 bytes per parameter (float32) less on the device
            for two transfers per iteration.
    """

    def __init__(self, policy: Policy, settings: Backbone, *, mesh: DeviceMesh | None, on_cpu: bool) -> None:
        self.policy = policy
        self.on_cpu = on_cpu
        self.copy: Policy | None = None
        if settings.lora is None:
            model = load_pretrained(settings).eval().requires_grad_(False)
            self.copy = shard(Policy(model, always_run_vision=policy.always_run_vision), mesh)
            if on_cpu:  # the strategy may have loaded it onto the device
                self.copy.to("cpu")

    @contextmanager
    def active(self, device: torch.device) -> Iterator[Policy]:
        """Yields a policy with the starting weights on `device`."""
        if self.copy is None:
            with self.policy.backbone.disable_adapter():
                yield self.policy
            return
        self.copy.to(device)
        try:
            yield self.copy
        finally:
            if self.on_cpu:
                self.copy.to("cpu")
