# SPDX-License-Identifier: Apache-2.0
"""Write a policy as an ordinary model folder, or its adapters as a folder for peft."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, Qwen2_5_VLForConditionalGeneration

from medvlt.errors import ConfigurationError
from medvlt.models.policy import Policy
from medvlt.models.restore import PROMPT_FILES, Base
from medvlt.rollout.weights import hub_weights

COPIED_FILES = ("generation_config.json", "LICENSE", "NOTICE", *PROMPT_FILES)
"""What a folder takes over from its base, byte for byte, where the base has it."""

SHARD_SIZE = "5GB"
"""Largest weight file, as on the Hub."""


def merged_weights(policy: Policy, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Returns the weights by their Hub names, adapters merged, tied embeddings once.

    Args:
        policy: With weights of one type.
        dtype: Of the result; None for the policy's.
    """
    return {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in hub_weights(policy)}


def save_model(folder: Path, weights: Mapping[str, Tensor], config: PreTrainedConfig) -> torch.dtype:
    """Writes weights and configuration as transformers does, and returns the type of the weights."""
    dtype = next(iter(weights.values())).dtype
    config.text_config.dtype = config.vision_config.dtype = dtype  # transformers sets the outer one alone
    with torch.device("meta"):
        shell = Qwen2_5_VLForConditionalGeneration(config).to(dtype)
    shell.save_pretrained(folder, state_dict=dict(weights), max_shard_size=SHARD_SIZE)  # it empties the dict
    return dtype


def save_adapter(folder: Path, policy: Policy, base: Base, dtype: torch.dtype | None = None) -> torch.dtype:
    """Writes the adapters as peft does, and returns their type.

    Args:
        folder: For `PeftModel.from_pretrained(base, folder)`.
        policy: With adapters.
        base: The model that the adapters are for.
        dtype: Of the written adapters; None for the policy's.

    Raises:
        ConfigurationError: If the policy has no adapters.
    """
    from peft import PeftModel  # slow to import

    model = policy.backbone
    if not isinstance(model, PeftModel):
        raise ConfigurationError(
            "adapter=true writes LoRA adapters alone, and this checkpoint has none: all weights were trained; leave it "
            "out for a whole model"
        )
    adapters = {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}
    if dtype is not None:
        adapters = {name: tensor.to(dtype) for name, tensor in adapters.items()}
    config = model.peft_config[model.active_adapter]
    config.base_model_name_or_path, config.revision = base.name, base.revision
    config.inference_mode = True
    # it would look on the Hub whether the vocabulary has grown
    model.save_pretrained(str(folder), state_dict=adapters, save_embedding_layers=False)
    written: torch.dtype = next(iter(adapters.values())).dtype
    return written


def copy_files(base: Path, folder: Path) -> None:
    """Copies the base's files for prompts, generation and licence."""
    for name in COPIED_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
