# SPDX-License-Identifier: Apache-2.0
"""A random Qwen2.5-VL of about a million parameters, saved as an ordinary model folder.

transformers and vLLM load the folder like any other, so everything that runs on a 7B model runs on this one in
seconds on a CPU. The tokenizer is byte-level: any text round-trips.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from medvlt.data.files import replacing
from medvlt.errors import ConfigurationError

END_OF_TEXT, END_OF_TURN, IMAGE_PAD, VIDEO_PAD = "<|endoftext|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    END_OF_TURN,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    VISION_START,
    VISION_END,
    "<|vision_pad|>",
    IMAGE_PAD,
    VIDEO_PAD,
)
"""The special tokens of the Qwen2.5-VL tokenizer, in its order."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if loop.first and message.role != 'system' -%}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}"
    "{%- endif -%}"
    "{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part.type == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- else -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""Renders what Qwen2.5-VL's own template renders for text and pictures (tested against it)."""


@dataclass(frozen=True)
class TinySize:
    """Sizes of the tiny model. Head size 32 is the smallest that vLLM accepts on a CPU.

    Attributes:
        hidden_size: Width of the text model; must be a multiple of 4 heads times 32.
        intermediate_size: Width of its MLP.
        layers: Its depth.
        vision_hidden_size: Width of the vision tower, a multiple of 2 heads.
        vision_layers: Its depth; the last layer attends over the whole picture, the others in windows of 112 pixels.
        max_position_embeddings: Longest prompt and completion together, in tokens.
        initializer_range: Standard deviation of the weights; 0.05 learns faster at this width than the usual 0.02.
    """

    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 4
    vision_hidden_size: int = 64
    vision_layers: int = 2
    max_position_embeddings: int = 4096
    initializer_range: float = 0.05


def train_tokenizer(corpus: Iterable[str], *, vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE: any byte can be encoded, a frequent word with its space is one token, a digit is one.

    Args:
        corpus: Texts to learn merges from; may be empty, then every byte is a token.
        vocab_size: Upper bound of the vocabulary without special tokens, at least 256.
    """
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        additional_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_config(tokenizer: PreTrainedTokenizerBase, size: TinySize) -> Qwen2_5_VLConfig:
    """Returns the configuration of a tiny model for a tokenizer; the vocabulary is padded to a multiple of 64."""
    if size.hidden_size % 128:
        raise ConfigurationError(f"hidden_size must be a multiple of 128 (4 heads of 32), got {size.hidden_size}")
    head_size = size.hidden_size // 4
    token = tokenizer.convert_tokens_to_ids
    vocab_size = -(-len(tokenizer) // 64) * 64
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": size.hidden_size,
            "intermediate_size": size.intermediate_size,
            "num_hidden_layers": size.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": size.max_position_embeddings,
            # time, height and width share the head_size / 2 frequencies in the proportions of the real model
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [head_size // 8, head_size * 3 // 16, head_size * 3 // 16],
            },
            "bos_token_id": token(END_OF_TEXT),
            "eos_token_id": token(END_OF_TURN),
            "pad_token_id": token(END_OF_TEXT),
            "initializer_range": size.initializer_range,
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden_size,
            "intermediate_size": 2 * size.vision_hidden_size,
            "num_heads": 2,
            "out_hidden_size": size.hidden_size,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [size.vision_layers - 1],
            "initializer_range": size.initializer_range,
        },
        image_token_id=token(IMAGE_PAD),
        video_token_id=token(VIDEO_PAD),
        vision_start_token_id=token(VISION_START),
        vision_end_token_id=token(VISION_END),
        tie_word_embeddings=False,
    )


def build_tiny(
    output: Path,
    *,
    corpus: Iterable[str] = (),
    tokenizer_from: str | None = None,
    size: TinySize | None = None,
    seed: int = 0,
) -> Path:
    """Writes a random tiny Qwen2.5-VL with its tokenizer, chat template and picture processor.

    Args:
        output: Folder to create.
        corpus: Texts on which the byte-level tokenizer learns its merges; ignored with `tokenizer_from`.
        tokenizer_from: Folder or Hub name whose tokenizer is used instead, such as the real one.
        size: Sizes; None for the defaults.
        seed: Of the random weights.

    Returns:
        The folder.

    Raises:
        ConfigurationError: If the folder exists and is not empty, so that no model is overwritten, or there is no
            tokenizer at `tokenizer_from`.
        DataError: If the folder cannot be written.
    """
    if output.exists() and any(output.iterdir()):
        raise ConfigurationError(f"{output} exists and is not empty; choose another folder or delete it first")
    if tokenizer_from is None:
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(corpus)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_from, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"tokenizer_from={tokenizer_from!r} holds no tokenizer: {error}") from error
    config = tiny_config(tokenizer, size or TinySize())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    ends = [config.text_config.eos_token_id, config.text_config.bos_token_id]
    model.generation_config = GenerationConfig(
        do_sample=True, bos_token_id=ends[1], eos_token_id=ends, pad_token_id=ends[1]
    )
    if output.exists():
        output.rmdir()
    with replacing(output, overwrite=False) as folder:  # whole or not at all
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        Qwen2VLImageProcessorPil(min_pixels=4 * 28 * 28, max_pixels=16384 * 28 * 28).save_pretrained(folder)
    return output
