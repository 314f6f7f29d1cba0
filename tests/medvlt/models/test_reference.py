# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medvlt.data.packing import EncodedPrompt, Group, PackedBatch, pack
from medvlt.models.loading import Backbone, LoRA, load_backbone, load_pretrained
from medvlt.models.policy import Policy
from medvlt.models.reference import ReferencePolicy

CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("lora", [LoRA(rank=2), None], ids=["lora", "copy"])


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    generator = torch.Generator().manual_seed(0)
    prompt, *completions = [torch.randint(3, 250, (length,), generator=generator) for length in (9, 5, 7)]
    return pack([Group(EncodedPrompt(prompt, torch.arange(9).expand(3, 9)), completions, [1.0, 1.0])])


def moved(policy: Policy) -> Policy:
    """As after some training: every trained weight is another one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def logprobs(policy: Policy, batch: PackedBatch) -> Tensor:
    with torch.no_grad():
        found: Tensor = policy(batch)
    return found


@KINDS
def test_the_start_is_kept_while_the_policy_moves(lora: LoRA | None, tiny_folder: Path, batch: PackedBatch) -> None:
    start = logprobs(Policy(load_pretrained(Backbone(str(tiny_folder)))), batch)
    settings = Backbone(str(tiny_folder), lora=lora)
    policy = Policy(load_backbone(settings))
    reference = ReferencePolicy(policy, settings, mesh=None, on_cpu=False)
    after = logprobs(moved(policy), batch)
    assert (after - start).abs().max() > 0.1
    with reference.active(CPU) as frozen:
        torch.testing.assert_close(logprobs(frozen, batch), start, rtol=0, atol=0)
    assert torch.equal(logprobs(policy, batch), after)


@KINDS
def test_the_policy_can_be_trained_afterwards(lora: LoRA | None, tiny_folder: Path, batch: PackedBatch) -> None:
    """Adapters that are switched off do not ask for gradients; this must not last, not even after an error."""
    settings = Backbone(str(tiny_folder), lora=lora)
    policy = moved(Policy(load_backbone(settings)))
    reference = ReferencePolicy(policy, settings, mesh=None, on_cpu=False)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    after = logprobs(policy, batch)
    with pytest.raises(KeyError), reference.active(CPU):
        raise KeyError
    assert {name for name, parameter in policy.named_parameters() if parameter.requires_grad} == trained
    assert policy.training
    assert torch.equal(logprobs(policy, batch), after)


@KINDS
def test_nothing_else_sees_it(lora: LoRA | None, tiny_folder: Path) -> None:
    """No optimizer, checkpoint or weight stream; and it has nothing of its own to train."""

    class Holder(nn.Module):
        def __init__(self, policy: Policy, settings: Backbone) -> None:
            super().__init__()
            self.policy = policy
            self.reference = ReferencePolicy(policy, settings, mesh=None, on_cpu=False)

    settings = Backbone(str(tiny_folder), lora=lora)
    policy = Policy(load_backbone(settings))
    names = [f"policy.{name}" for name in policy.state_dict()]
    holder = Holder(policy, settings)
    assert list(holder.state_dict()) == names
    assert len(list(holder.parameters())) == len(list(policy.parameters()))
    copy = holder.reference.copy
    if lora is not None:
        assert copy is None  # no second model
    else:
        assert copy is not None
        assert not any(parameter.requires_grad for parameter in copy.parameters())
        shared = {p.data_ptr() for p in copy.parameters()} & {p.data_ptr() for p in policy.parameters()}
        assert not shared


@pytest.mark.parametrize("on_cpu", [True, False])
def test_where_the_copy_is_kept(on_cpu: bool, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Backbone(str(tiny_folder))
    reference = ReferencePolicy(Policy(load_backbone(settings)), settings, mesh=None, on_cpu=on_cpu)
    places: list[str] = []

    def to(self: Policy, device: Any) -> Policy:
        assert self is reference.copy
        places.append(str(device))
        return self

    monkeypatch.setattr(Policy, "to", to)
    with reference.active(torch.device("cuda", 1)):
        assert places == ["cuda:1"]
    assert places[1:] == (["cpu"] if on_cpu else [])


def test_the_copy_runs_the_vision_tower_like_the_policy(tiny_folder: Path) -> None:
    """Sharded ranks gather its parameters too, and must do so in one order."""
    settings = Backbone(str(tiny_folder))
    for always in (True, False):
        policy = Policy(load_backbone(settings), always_run_vision=always)
        copy = ReferencePolicy(policy, settings, mesh=None, on_cpu=False).copy
        assert copy is not None
        assert copy.always_run_vision is always
