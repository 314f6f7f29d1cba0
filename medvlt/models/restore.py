# SPDX-License-Identifier: Apache-2.0
"""The policy of a checkpoint, built again in one process, and the base it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]  # peft brings it
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import PreTrainedConfig, Qwen2_5_VLForConditionalGeneration

from medvlt.data.encoder import PromptEncoder
from medvlt.data.images import ImageLimits
from medvlt.data.prompts import PromptTemplate
from medvlt.errors import ConfigurationError, listed
from medvlt.models.checkpoints import StoredCheckpoint, read_weights
from medvlt.models.loading import Backbone, load_backbone, model_not_found, prepare_backbone, read_config
from medvlt.models.policy import Policy
from medvlt.models.quantization import expand
from medvlt.rollout.store_identity import encoder_identity, model_identity

PROMPT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
"""What of a model folder makes its prompts."""

BASE_FILES = ("config.json", "generation_config.json", "README.md", "LICENSE", "NOTICE", *PROMPT_FILES)
"""What is needed of a base beside its weights."""

REMEDY = "say with --base where it is"


@dataclass(frozen=True)
class Base:
    """The model that was trained, as it was before.

    Attributes:
        name: Folder or Hub name.
        revision: Branch, tag or commit on the Hub.
        folder: Where its files are.
        config: Of the model.
    """

    name: str
    revision: str | None
    folder: Path
    config: PreTrainedConfig


def read_base(name: str, revision: str | None = None, *, weights: bool = False) -> Base:
    """Finds what a base has beside its weights; fetches it if it is a name on the Hub.

    Args:
        name: Folder or Hub name.
        revision: Branch, tag or commit on the Hub.
        weights: Fetch its weights, too.

    Raises:
        ConfigurationError: If it is not there, is not a Qwen2.5-VL, or lacks its tokenizer or picture settings.
    """
    folder, called = Path(name), f"the base {name!r}"
    if not folder.is_dir():
        wanted = [*BASE_FILES, *(("*.safetensors", "*.safetensors.index.json") if weights else ())]
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        except (OSError, ValueError) as error:
            raise model_not_found(called, REMEDY, error) from error
    config = read_config(str(folder), None, called=called, remedy=REMEDY)
    for needed in (["tokenizer_config.json"], ["preprocessor_config.json", "processor_config.json"]):
        if not any((folder / file).is_file() for file in needed):
            raise ConfigurationError(
                f"{called} has no {' or '.join(needed)}, without which no prompt can be encoded; name a "
                "complete model with --base"
            )
    return Base(name, revision, folder, config)


def trained_encoder(stored: StoredCheckpoint, base: Base) -> PromptEncoder:
    """Returns the encoder of the run, with the files of the base; of older checkpoints the default one.

    Raises:
        ConfigurationError: If the base's tokenizer or chat template is not the one that was trained with.
    """
    prompt = stored.record.get("prompt") or {}
    encoder = PromptEncoder(str(base.folder))
    if "template" in prompt and "images" in prompt:
        try:
            template, limits = PromptTemplate(**prompt["template"]), ImageLimits(**prompt["images"])
        except TypeError as error:
            raise ConfigurationError(
                f"the prompt recorded in {stored.path} is not one of this version ({error}); use the version that "
                "wrote it"
            ) from error
        encoder = PromptEncoder(str(base.folder), template=template, images=limits)
    recorded = prompt.get("tokenizer")
    if recorded and recorded != encoder_identity(encoder)["tokenizer"]:
        raise ConfigurationError(
            f"the base {base.name!r} has another vocabulary or chat template than the one that {stored.path} was "
            "trained with, so its prompts would be other ones; name the base that was trained with --base"
        )
    return encoder


def restore_policy(stored: StoredCheckpoint, base: Base) -> Policy:
    """Builds the policy in main memory and gives it the weights of the checkpoint, each exactly once.

    Where only adapters are stored, the others are those of the base. All weights come in the narrowest type that holds
    every one of them exactly, so that float32 adapters on a bfloat16 base are computed, and merged, in float32.
    Four-bit weights become the floats that they stand for.

    Args:
        stored: The checkpoint.
        base: Compared by `unknown_base` where its weights are used.

    Raises:
        ConfigurationError: If names or shapes differ, which are then listed.
    """
    settings = replace(
        stored.backbone,
        name=str(base.folder),
        revision=None,
        vision_attention="sdpa",
        gradient_checkpointing=False,
    )
    if stored.adapters_only:
        policy = Policy(load_backbone(settings))
        expected: Mapping[str, Tensor] = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    else:
        policy = _empty_policy(settings, base.config)
        expected = policy.state_dict()
    weights = read_weights(stored)
    _compare(weights, expected, stored)
    policy.load_state_dict(weights, strict=False, assign=True)
    policy.base.tie_weights()  # assigned one by one, tied embeddings are two parameters
    policy.requires_grad_(False)
    if settings.quantization is not None:
        expand(policy)
    policy.to(dtype=reduce(torch.promote_types, {parameter.dtype for parameter in policy.parameters()}))
    return policy


def _empty_policy(settings: Backbone, config: PreTrainedConfig) -> Policy:
    """Returns a policy whose parameters take no memory; its buffers, which no checkpoint holds, are computed."""
    with init_empty_weights(include_buffers=False):
        return Policy(prepare_backbone(Qwen2_5_VLForConditionalGeneration(config).float(), settings))


def unknown_base(stored: StoredCheckpoint, base: Base) -> str:
    """Compares the base that adapters are for with the one that was trained, by the fingerprints of their weights.

    Where the run could not take one, only names are left to compare: another name or revision on the Hub is another
    model, and is refused; a folder may be a copy of any, and is taken.

    Args:
        stored: With the name, revision and fingerprint of the base that was trained.
        base: The one that is there, with its weights.

    Returns:
        What to tell the user where nobody can know that they are the same; else "".

    Raises:
        ConfigurationError: If they are not the same.
    """
    trained, found = str(stored.record.get("base") or ""), model_identity(str(base.folder))
    if trained and "@" not in trained and "@" not in found:
        if trained == found:
            return ""
        raise ConfigurationError(
            f"{stored.path} holds adapters for {stored.backbone.name!r} with the weights {trained}, and {base.name!r} "
            f"has the weights {found}; name the base that was trained with --base"
        )
    wanted = (stored.backbone.name, stored.backbone.revision or "main")
    given = (base.name, base.revision or "main")
    if given != wanted and not any(Path(name).is_dir() for name, _ in (given, wanted)):
        raise ConfigurationError(
            f"{stored.path} holds adapters for {'@'.join(wanted)}, without a fingerprint of its weights, and --base "
            f"names {'@'.join(given)}; leave --base out, or name a folder with a copy of the base that was trained"
        )
    return (
        f"the weights of the base {base.name!r} could not be compared with those that were trained "
        f"({stored.backbone.name!r}), of which the checkpoint has no fingerprint"
    )


def _compare(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], stored: StoredCheckpoint) -> None:
    faults = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    if any(faults.values()):
        found = "; ".join(f"{len(names)} {fault}: {listed(names)}" for fault, names in faults.items() if names)
        raise ConfigurationError(
            f"the weights of the checkpoint are not those of {stored.backbone.name!r} with "
            f"lora={stored.backbone.lora}. {found}. Name the model that was trained with --base"
        )
