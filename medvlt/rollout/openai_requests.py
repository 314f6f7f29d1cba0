# SPDX-License-Identifier: Apache-2.0
"""What goes to an OpenAI-compatible endpoint for one completion."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

from PIL import Image

from medvlt.data.encoder import PromptEncoder
from medvlt.data.prompts import chat_messages
from medvlt.errors import ConfigurationError
from medvlt.types import RolloutKey, Sample, SamplingParams

TokenParameter = Literal["max_tokens", "max_completion_tokens"]
"""Name of the token limit: OpenAI's reasoning models take the second only, most other endpoints know the first."""

OWN_FIELDS = frozenset(
    {"model", "messages", "n", "stream", "temperature", "top_p", "top_k", "seed", "max_tokens", "max_completion_tokens"}
)
"""Fields of a request that are set here, so that `extra_body` must not hold them."""

_SECRET = re.compile(r"api[-_]?key|authorization|password|secret|(^|[-_])token$", re.IGNORECASE)


@dataclass(frozen=True)
class RequestSettings:
    """What is the same in every request of a run.

    Attributes:
        model: Name of the model at the endpoint.
        token_parameter: Name of the token limit.
        send_seed: Whether every request carries a seed.
        extra_body: Further fields, sent as they are.
    """

    model: str
    token_parameter: TokenParameter
    send_seed: bool
    extra_body: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigurationError("model must be the name of the model at the endpoint, got an empty text")
        if self.token_parameter not in ("max_tokens", "max_completion_tokens"):
            raise ConfigurationError(
                f"token_parameter must be 'max_tokens' or 'max_completion_tokens', got {self.token_parameter!r}"
            )
        if both := sorted(OWN_FIELDS & self.extra_body.keys()):
            raise ConfigurationError(
                f"extra_body must not hold {', '.join(both)}: sampling, token_parameter, send_seed and model set them"
            )
        if secret := sorted(name for name in self.extra_body if _SECRET.search(name)):
            raise ConfigurationError(
                f"extra_body is written down with the results and must not hold {', '.join(secret)}; put the key into "
                "the environment variable that api_key_variable names"
            )

    def arguments(self, messages: list[dict[str, Any]], params: SamplingParams, seed: int) -> dict[str, Any]:
        """Returns the arguments of the client's `chat.completions.create` for one completion.

        Nothing is left out because an endpoint may not know it: one that refuses a field says so. `top_k`, which
        OpenAI's own API does not have, is sent only where it is set; `top_p` too.

        Args:
            messages: Of the prompt.
            params: How the completion is drawn.
            seed: Of this completion.
        """
        arguments: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": params.temperature,
            self.token_parameter: params.max_tokens,
        }
        if params.top_p < 1:
            arguments["top_p"] = params.top_p
        if self.send_seed:
            arguments["seed"] = seed
        extra = dict(self.extra_body)
        if params.top_k:
            extra["top_k"] = params.top_k
        if extra:
            arguments["extra_body"] = extra
        return arguments


def request_seed(key: RolloutKey, index: int) -> int:
    """Returns the seed that is sent for completion `key.first + index`, in [0, 2**31).

    The upper half of the completion's seed: every endpoint takes 31 bits, also those behind JavaScript or a 32-bit
    integer, and the seeds of one question still differ (two of 16 are equal once in 18 million questions).
    """
    return key.sample_seed(index) >> 32


def request_messages(encoder: PromptEncoder, sample: Sample) -> list[dict[str, Any]]:
    """Returns the messages of a question: a system message if the template has one, then the user's.

    The pictures come first, in order, as PNG data URLs at the size the encoder gives them; then the text. A message
    without pictures is a plain text, since some endpoints for text take no lists.

    Args:
        encoder: Wording and size of pictures. Where it names a model, texts with control tokens are refused as in
            every other engine.
        sample: The question.

    Raises:
        DataError: If a picture cannot be read, or the text holds control tokens.
    """
    if encoder.model:
        encoder.check_text(sample)
    pictures = iter(encoder.pictures(sample))
    messages = chat_messages(encoder.wording, sample)
    for message in messages:
        parts = message["content"]
        if [part["type"] for part in parts] == ["text"]:
            message["content"] = parts[0]["text"]
        else:
            message["content"] = [picture_part(next(pictures)) if p["type"] == "image" else p for p in parts]
    return messages


def picture_part(image: Image.Image) -> dict[str, Any]:
    """Returns a picture as a part of a message: PNG, which loses nothing, inside a data URL."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
