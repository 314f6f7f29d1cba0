# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from medvlt.errors import ConfigurationError
from medvlt.models.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, build_tiny, train_tokenizer

MESSAGES = [
    [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": " Which\nside? {{x}}"}],
        }
    ],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "A"},
    ],
    [{"role": "user", "content": [{"type": "text", "text": "é\\n"}]}],
]


def test_the_library_loads_the_folder(tiny_folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(AutoProcessor.from_pretrained(tiny_folder)).__name__ == "Qwen2_5_VLProcessor"
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert model.generation_config.eos_token_id[0] == tokenizer.eos_token_id


@given(st.text(max_size=40))
def test_any_text_survives(text: str) -> None:
    tokenizer = train_tokenizer([])
    if not any(token in text for token in SPECIAL_TOKENS):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_frequent_words_are_one_token_and_digits_never_merge() -> None:
    tokenizer = train_tokenizer(["rate 135 is tachycardia A"] * 50)
    pieces = [tokenizer.decode([token]) for token in tokenizer("rate 135 is tachycardia A")["input_ids"]]
    assert pieces == ["rate", " ", "1", "3", "5", " is", " tachycardia", " A"]


@pytest.mark.parametrize("messages", MESSAGES)
@pytest.mark.parametrize("prompt", [True, False])
def test_chat_template_renders_like_the_real_one(
    messages: list, prompt: bool, tiny_folder: Path, shared_data: Path
) -> None:
    real = json.loads((shared_data / "qwen2_5_vl_tokenizer" / "chat_template.json").read_text())["chat_template"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    ours, theirs = (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, chat_template=template)
        for template in (CHAT_TEMPLATE, real)
    )
    assert ours == theirs


def test_real_tokenizer(shared_data: Path, tmp_path: Path) -> None:
    folder = build_tiny(tmp_path / "real", tokenizer_from=str(shared_data / "qwen2_5_vl_tokenizer"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("Hello world")["input_ids"] == [9707, 1879]
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.config.image_token_id == 151655
    assert model.lm_head.weight.shape[0] >= len(tokenizer)


def test_an_existing_model_is_not_overwritten(tiny_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="not empty"):
        build_tiny(tiny_folder)
