# SPDX-License-Identifier: Apache-2.0
"""LightningModules: what is computed in a step."""

from lightning_modules.grpo import GRPOModule
from lightning_modules.policy import PolicyModule
from lightning_modules.rollout import RolloutModule
from lightning_modules.sft import SFTModule
from lightning_modules.strategies import FSDP1Strategy, FSDP2Strategy

__all__ = ["FSDP1Strategy", "FSDP2Strategy", "GRPOModule", "PolicyModule", "RolloutModule", "SFTModule"]
