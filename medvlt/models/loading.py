# SPDX-License-Identifier: Apache-2.0
"""Load a Qwen2.5-VL: precision, attention, gradient checkpointing, frozen components, LoRA."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from medvlt.errors import ConfigurationError
from medvlt.models.quantization import Quantization, keep_layout, quantization_config

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

Component: TypeAlias = Literal["vision", "projector", "language"]
"""The vision tower, the projector that merges its patches into language tokens, the language model with its head."""

CHECK_NAME = "give a folder with config.json, check the name, the network and your access"
"""What to do about a model that cannot be found."""

LORA_LAYERS: dict[Component, str] = {
    "vision": r"visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate_proj|up_proj|down_proj))",
    "projector": r"visual\.merger\.mlp\.(0|2)",
    "language": r"language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)",
}
"""Linear layers of each component that adapters are put on."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (arXiv 2106.09685): each chosen weight W becomes W + (alpha / rank) B A.

    Attributes:
        rank: Rank of the update, at least 1.
        alpha: Scale of the update, above 0; the factor is alpha / rank.
        dropout: On the input of A, in [0, 1). Must be 0 in RL, where a prompt is shared by its completions.
        components: Which parts get adapters; everything else is frozen.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    components: tuple[Component, ...] = ("language",)

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1 or not self.components:
            raise ConfigurationError(
                "backbone.lora needs rank >= 1, alpha > 0, dropout in [0, 1) and at least one of the components "
                f"{', '.join(LORA_LAYERS)}; got {self.rank}, {self.alpha}, {self.dropout} and {self.components}"
            )


@dataclass(frozen=True)
class Backbone:
    """Which model to load, and how.

    Attributes:
        name: Folder, or name on the Hugging Face Hub, of any Qwen2.5-VL.
        revision: Branch, tag or commit on the Hub.
        dtype: Of the weights. float32 with the Trainer's `bf16-mixed` is what the reference trains with; "auto" keeps
            the dtype of the files.
        vision_attention: Attention of the vision tower. The text model always uses packed attention.
        gradient_checkpointing: Compute activations again in the backward pass: about a third more compute, memory
            that hardly grows with depth.
        freeze: Components that are not trained. The reference freezes nothing.
        lora: Train adapters instead of the weights.
        quantization: Store the frozen weights under the adapters in four bits: "nf4", the language model's linear
            layers, about 0.55 bytes each; `dtype` is then the type they are brought back to in a product. Every rank
            holds them whole (auto, ddp). Needs `lora` and the extra `quantization`.
    """

    name: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    vision_attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    freeze: tuple[Component, ...] = ()
    lora: LoRA | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if self.quantization is not None and (self.lora is None or self.dtype == "auto"):
            raise ConfigurationError(
                f"backbone.quantization={self.quantization!r} stores weights so that they cannot be trained, and needs "
                f"adapters to train and a type to compute in; got lora={self.lora} and dtype={self.dtype!r}: set "
                "backbone.lora.rank, and backbone.dtype: bfloat16"
            )


def load_backbone(settings: Backbone) -> Qwen2_5_VLForConditionalGeneration | PeftModel:
    """Loads the model in training mode, from safetensors only and without remote code.

    Raises:
        ConfigurationError: If the model cannot be found, is not a Qwen2.5-VL, lacks weights, or nothing is trainable.
    """
    return prepare_backbone(load_pretrained(settings), settings)


def load_pretrained(settings: Backbone) -> Qwen2_5_VLForConditionalGeneration:
    """Loads the model as it is stored, without adapters and with nothing frozen.

    Raises:
        ConfigurationError: If the model cannot be found, is not a Qwen2.5-VL, or lacks weights.
    """
    read_config(settings.name, settings.revision, called=f"backbone.name={settings.name!r}")
    dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    quantized = None
    if settings.quantization is not None:
        quantized = quantization_config(settings.quantization, getattr(torch, settings.dtype))
    try:
        model: Qwen2_5_VLForConditionalGeneration
        model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            settings.name,
            revision=settings.revision,
            dtype=dtype,
            quantization_config=quantized,
            attn_implementation={"vision_config": settings.vision_attention, "text_config": "sdpa"},
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ImportError, ValueError, SafetensorError) as error:
        raise ConfigurationError(
            f"backbone.name={settings.name!r} cannot be loaded as safetensors weights with vision_attention="
            f"{settings.vision_attention!r} and dtype={settings.dtype!r}: {error}"
        ) from error
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise ConfigurationError(
            f"the weights of {settings.name!r} do not cover the model: {len(missing)} tensors are missing or "
            f"of another shape and would be random, such as {', '.join(missing[:3])}. Use a complete checkpoint."
        )
    if settings.quantization is not None:
        keep_layout(model)
    return model


def read_config(name: str, revision: str | None, *, called: str, remedy: str = CHECK_NAME) -> Qwen2_5_VLConfig:
    """Returns the configuration of a Qwen2.5-VL.

    Args:
        name: Folder or Hub name.
        revision: Branch, tag or commit on the Hub.
        called: What a message calls the model.
        remedy: What to do if it is not there.

    Raises:
        ConfigurationError: If it cannot be found, or is another kind of model.
    """
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise model_not_found(called, remedy, error) from error
    if config.model_type != "qwen2_5_vl":
        raise ConfigurationError(
            f"{called} is a {config.model_type!r} model; expected 'qwen2_5_vl' (Qwen2.5-VL 3B, 7B, 32B or 72B, or a "
            "model exported from one)"
        )
    return config


def model_not_found(called: str, remedy: str, error: Exception) -> ConfigurationError:
    """Returns what to raise where a model is neither a folder nor on the Hub; see `read_config`."""
    return ConfigurationError(
        f"{called} is neither a model folder here nor a model that can be fetched from the Hugging Face Hub; {remedy}. "
        f"({error})"
    )


def prepare_backbone(
    model: Qwen2_5_VLForConditionalGeneration, settings: Backbone
) -> Qwen2_5_VLForConditionalGeneration | PeftModel:
    """Applies freezing, adapters and gradient checkpointing to a loaded model."""
    for component in settings.freeze:
        for parameter in component_parameters(model, component):
            parameter.requires_grad_(False)
    prepared: Qwen2_5_VLForConditionalGeneration | PeftModel = model
    if settings.lora is not None:
        from peft import LoraConfig, get_peft_model  # slow to import, needed only here

        lora = settings.lora
        if set(lora.components) & set(settings.freeze):
            raise ConfigurationError(
                f"backbone.freeze={settings.freeze} and backbone.lora.components={lora.components} overlap; adapters "
                "already leave the weights as they are, so remove the component from one of the two"
            )
        targets = "|".join(f"(.*{LORA_LAYERS[component]})" for component in lora.components)
        prepared = get_peft_model(
            model,
            LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none"
            ),
        )
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainable = sum(p.numel() for p in prepared.parameters() if p.requires_grad)
    total = sum(p.numel() for p in prepared.parameters())
    if trainable == 0:
        raise ConfigurationError(f"nothing is left to train: backbone.freeze={settings.freeze}")
    half = [p.dtype for p in prepared.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
    if half:
        logger.warning(
            "%d trained tensors are %s: at usual learning rates most updates round to nothing; use dtype float32 with "
            "precision bf16-mixed, or LoRA",
            len(half),
            half[0],
        )
    logger.info("%s: %s of %s parameters are trained", settings.name, f"{trainable:,}", f"{total:,}")
    prepared.train()
    return prepared


def component_parameters(model: Qwen2_5_VLForConditionalGeneration, component: Component) -> list[nn.Parameter]:
    """Returns the parameters of one component; the three together are all parameters, each once."""
    merger = list(model.model.visual.merger.parameters())
    if component == "projector":
        return merger
    if component == "vision":
        projector = {id(parameter) for parameter in merger}
        return [parameter for parameter in model.model.visual.parameters() if id(parameter) not in projector]
    language = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    return list({id(parameter): parameter for parameter in language}.values())  # tied embeddings are one parameter
