# SPDX-License-Identifier: Apache-2.0
"""LightningModules: what is computed in a step."""

from lightning_modules.grpo import GRPOModule
from lightning_modules.policy import PolicyModule
from lightning_modules.rollout import RolloutModule
from lightning_modules.sft import SFTModule

__all__ = ["GRPOModule", "PolicyModule", "RolloutModule", "SFTModule"]
