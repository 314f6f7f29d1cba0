# SPDX-License-Identifier: Apache-2.0
"""Four-bit base weights under adapters (QLoRA, arXiv 2305.14314), through bitsandbytes."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from medvlt.imports import require

Quantization: TypeAlias = Literal["nf4"]
"""How frozen base weights are stored: nf4 is 4-bit NormalFloat, whose scales are quantised once more."""

KEPT = ["lm_head", "model.visual"]
"""Modules that stay as they are: the head, whose rounding would be in every log-probability, and the vision tower."""


def quantization_config(kind: Quantization, compute_dtype: torch.dtype) -> Any:
    """Returns what `from_pretrained` needs to store the language model's linear layers in four bits.

    Args:
        kind: How they are stored.
        compute_dtype: Each weight is brought back to this type for its matrix product.

    Raises:
        MissingExtraError: If bitsandbytes is not installed.
    """
    require("bitsandbytes", extra="quantization")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=KEPT,
    )


def is_quantized(weight: Tensor) -> bool:
    """Returns whether a weight is stored in four bits: bytes in a shape that says nothing, with a state beside them."""
    return getattr(weight, "quant_state", None) is not None


def dequantized(weight: Tensor) -> Tensor:
    """Returns a quantised weight as the policy's forward sees it, a fresh tensor; any other weight as it is.

    A merged copy is made of these values, not of those that were rounded, so that it answers as the policy does.
    """
    if not is_quantized(weight):
        return weight
    from bitsandbytes.functional import dequantize_4bit

    value: Tensor = dequantize_4bit(weight.detach(), weight.quant_state)  # type: ignore[attr-defined]
    return value


def keep_layout(model: nn.Module) -> None:
    """Keeps bitsandbytes from packing four-bit weights anew, in place, at an evaluating forward on some CPUs.

    Where there is AVX512-BF16 it does so for speed, and `dequantize_4bit` then reads garbage from the packed bytes.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def expand(model: nn.Module) -> None:
    """Replaces four-bit linear layers by ordinary ones with the values that their forward computes with."""
    from bitsandbytes.nn import Linear4bit

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear4bit):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
                plain.weight = nn.Parameter(dequantized(layer.weight), requires_grad=False)
                plain.bias = layer.bias
                setattr(parent, name, plain)
