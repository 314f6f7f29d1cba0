# SPDX-License-Identifier: Apache-2.0
"""What needs two processes is in `tests/distributed`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from medvlt.errors import ConfigurationError
from medvlt.models.loading import Backbone, load_backbone
from medvlt.models.policy import Policy
from medvlt.models.sharding import SHARDED_BLOCKS, as_policy, shard


def test_without_a_mesh_nothing_happens(tiny_folder: Path) -> None:
    policy = Policy(load_backbone(Backbone(str(tiny_folder))))
    before = dict(policy.named_parameters())
    assert shard(policy, None) is policy
    assert dict(policy.named_parameters()) == before


def test_tensor_parallelism_is_refused(tiny_folder: Path) -> None:
    """Lightning's default splits layers over the GPUs of a node; each would train a model of its own."""
    policy = Policy(load_backbone(Backbone(str(tiny_folder))))
    mesh = {"data_parallel": SimpleNamespace(size=lambda: 1), "tensor_parallel": SimpleNamespace(size=lambda: 8)}
    with pytest.raises(ConfigurationError, match=r"over 8 ranks.*tensor_parallel_size: 1"):
        shard(policy, mesh)


def test_the_blocks_hold_nearly_everything(tiny_folder: Path) -> None:
    model = load_backbone(Backbone(str(tiny_folder)))
    inside = sum(p.numel() for m in model.modules() if isinstance(m, SHARDED_BLOCKS) for p in m.parameters())
    outside = {n for n, _ in model.named_parameters() if ".layers." not in n and ".blocks." not in n}
    assert inside + sum(dict(model.named_parameters())[n].numel() for n in outside) == model.num_parameters()


def test_what_is_no_policy_is_refused(tiny_folder: Path) -> None:
    """A policy in another wrapper would be one whose weights an engine never gets."""
    policy = Policy(load_backbone(Backbone(str(tiny_folder))))
    assert as_policy(None) is None
    assert as_policy(policy) is policy
    for other in (nn.Linear(2, 2), nn.Sequential(policy)):
        with pytest.raises(ConfigurationError, match=rf"is a {type(other).__name__}, expected a medvlt"):
            as_policy(other)
