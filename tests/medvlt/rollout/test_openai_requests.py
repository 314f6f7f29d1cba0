# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medvlt.data.encoder import PromptEncoder
from medvlt.data.images import ImageLimits, prepare_image
from medvlt.data.prompts import PromptTemplate
from medvlt.errors import ConfigurationError, DataError
from medvlt.rollout.openai_requests import OWN_FIELDS, RequestSettings, request_messages, request_seed
from medvlt.types import RolloutKey, Sample, SamplingParams

OPTIONS = {"A": "Left", "B": "Right"}
PLAIN = RequestSettings("m", "max_tokens", True, {})


def picture(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def decoded(part: dict) -> Image.Image:
    kind, _, data = part["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(BytesIO(base64.b64decode(data, validate=True)))


def test_a_question_without_pictures_is_a_plain_text() -> None:
    encoder = PromptEncoder(template="reference")
    sample = Sample("1", "Which side?", OPTIONS, "A", "Left")
    messages = request_messages(encoder, sample)
    assert messages == [{"role": "user", "content": encoder.wording.prompt_text(sample)}]
    assert "\\nWrite your final answer" in messages[0]["content"]  # the reference's literal backslash


def test_a_system_message_comes_first() -> None:
    encoder = PromptEncoder(template=PromptTemplate(system="You answer."))
    messages = request_messages(encoder, Sample("1", "Which side?", OPTIONS, "A", "Left", (picture(1, 56, 56),)))
    assert messages[0] == {"role": "system", "content": "You answer."}
    assert messages[1]["role"] == "user"


def test_pictures_come_first_in_order_and_at_the_size_of_the_encoder() -> None:
    limits = ImageLimits(max_pixels=16 * 28 * 28)
    encoder = PromptEncoder(template="plain", images=limits)
    pictures = (picture(1, 300, 200, "RGBA"), picture(2, 30, 61, "L"))
    sample = Sample("1", "Which side?", OPTIONS, "A", "Left", pictures)
    (message,) = request_messages(encoder, sample)
    first, second, text = message["content"]
    assert text == {"type": "text", "text": encoder.wording.prompt_text(sample)}
    for part, source in zip((first, second), pictures, strict=True):
        assert part["type"] == "image_url"
        seen = decoded(part)
        assert seen.mode == "RGB"
        assert np.array_equal(np.asarray(seen), np.asarray(prepare_image(source, limits)))  # PNG loses nothing
    assert decoded(first).width * decoded(first).height <= limits.max_pixels


def test_a_damaged_picture_is_refused() -> None:
    with pytest.raises(DataError, match="picture"):
        request_messages(PromptEncoder(), Sample("1", "Q", OPTIONS, "A", "Left", (b"no picture",)))


def test_control_tokens_are_refused_where_a_tokenizer_is_known(tiny_folder: object) -> None:
    sample = Sample("1", "Which <|im_end|> side?", OPTIONS, "A", "Left")
    with pytest.raises(DataError, match=r"control token <\|im_end\|>"):
        request_messages(PromptEncoder(str(tiny_folder)), sample)
    assert "<|im_end|>" in request_messages(PromptEncoder(), sample)[0]["content"]


def test_the_fields_of_a_request() -> None:
    messages = [{"role": "user", "content": "Q"}]
    params = SamplingParams(n=3, temperature=0.7, top_p=0.9, top_k=20, max_tokens=100)
    settings = RequestSettings("m", "max_completion_tokens", True, {"reasoning_effort": "high"})
    assert settings.arguments(messages, params, 5) == {
        "model": "m",
        "messages": messages,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_completion_tokens": 100,
        "seed": 5,
        "extra_body": {"reasoning_effort": "high", "top_k": 20},
    }
    assert settings.extra_body == {"reasoning_effort": "high"}  # not changed by the request


def test_what_is_not_set_is_not_sent() -> None:
    settings = RequestSettings("m", "max_tokens", False, {})
    assert settings.arguments([], SamplingParams(max_tokens=8), 5) == {
        "model": "m",
        "messages": [],
        "temperature": 1.0,
        "max_tokens": 8,
    }


@pytest.mark.parametrize("name", sorted(OWN_FIELDS))
def test_extra_body_must_not_hold_what_is_set_elsewhere(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"extra_body must not hold {name}"):
        RequestSettings("m", "max_tokens", True, {name: 1, "other": 2})


def test_bad_names_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="model must be"):
        RequestSettings("", "max_tokens", True, {})
    with pytest.raises(ConfigurationError, match="token_parameter"):
        RequestSettings("m", "max_length", True, {})  # type: ignore[arg-type]


@given(st.integers(0, 2**31), st.integers(-2, 10**6), st.text(max_size=20), st.integers(0, 100))
def test_seeds_fit_everywhere_and_do_not_depend_on_where_a_group_is_cut(
    seed: int, iteration: int, uid: str, index: int
) -> None:
    whole = RolloutKey(seed, iteration, uid)
    value = request_seed(whole, index)
    assert 0 <= value < 2**31
    assert value == request_seed(RolloutKey(seed, iteration, uid, first=index), 0)


def test_seeds_differ_within_groups_and_between_questions() -> None:
    seeds = [request_seed(RolloutKey(42, -1, f"q:{q}"), i) for q in range(200) for i in range(16)]
    assert max(Counter(seeds).values()) == 1
    assert max(seeds) > 2**30
