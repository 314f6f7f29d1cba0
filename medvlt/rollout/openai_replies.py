# SPDX-License-Identifier: Apache-2.0
"""What an OpenAI-compatible endpoint answers: a completion, or a failure of a known kind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from medvlt.types import Completion, FinishReason

LONGEST_EXCERPT = 80
"""Characters shown of what cannot be read."""

LONGEST_MESSAGE = 300
"""Characters kept of what an endpoint says: some repeat the whole prompt."""

FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
}
"""What the providers' own words mean; any other word is an error of that name."""

PASSING = frozenset({"insufficient_system_resource", "error"})
"""Reasons for the end of a reply that may pass: DeepSeek's when it is short of machines, OpenRouter's when the provider
behind it failed."""

TEXT_PARTS = {"text": "text", "output_text": "text", "refusal": "refusal"}
"""Parts of a content that are its text: type, and the field that holds it."""

REASONING_PARTS = {
    "thinking": "thinking",
    "reasoning": "text",
    "redacted_thinking": None,
    "reasoning.text": "text",
    "reasoning.summary": "summary",
    "reasoning.encrypted": None,
}
"""Parts that are reasoning: type, and the field that holds it; None where it cannot be read."""

RETRIED = frozenset({408, 409, 425, 429})
"""Statuses below 500 that may pass."""

ACCESS = frozenset({401, 402, 403, 404})
"""Statuses that concern the key, the account, the address or the model, and so every request."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply that could be read.

    Attributes:
        completion: Its completion; "error" where the endpoint stopped it for a reason of its own, as a filter.
        kind: That reason; empty if there was none.
        prompt_token_ids: The prompt as the endpoint saw it; empty where it does not say.
        prompt_tokens: Tokens of the prompt as it counts them.
        completion_tokens: Tokens of the completion, reasoning included.
    """

    completion: Completion
    kind: str
    prompt_token_ids: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt without a reply.

    Attributes:
        kind: For counting: "rate_limit", "server_error", "timeout", "connection", "malformed", "html", "bad_request",
            "access", "quota", "given_up", or a reason in `PASSING`.
        message: What happened, without the key.
        retry: Whether another attempt may help.
        retry_after_seconds: How long the endpoint asks to wait; None if it does not say.
    """

    kind: str
    message: str
    retry: bool
    retry_after_seconds: float | None = None

    @property
    def text(self) -> str:
        """Kind and message."""
        return f"{self.kind}: {self.message}"


class MalformedReply(ValueError):
    """A body with status 200 that holds no completion."""


def read_reply(body: bytes, clean: Callable[[str], str] = str) -> Reply:
    """Reads the body of a chat completion.

    A provider's reasoning (`reasoning_content`, `reasoning`, the thinking parts of the content, or `reasoning_details`;
    the first of these that is there) goes in front of the text as `<think>...</think>` and a newline, unless the text
    begins with a think block itself; it stays open where the token limit ended it before the text.

    Args:
        body: As received, with status 200.
        clean: Takes the key out of what is shown of it; the completion's text stays as it is.

    Raises:
        MalformedReply: If it is not a chat completion with one choice, a text and a reason for its end.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedReply(f"expected JSON, got {excerpt(body, clean)} ({error})") from error
    choices = data.get("choices") if isinstance(data, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise MalformedReply(f"expected choices[0].message, got {excerpt(body, clean)}")
    ended = choice.get("finish_reason")
    if not isinstance(ended, str) or not ended:
        raise MalformedReply(f"expected choices[0].finish_reason, got {_shown(ended, clean)} in {excerpt(body, clean)}")
    finish = FINISH_REASONS.get(ended, "error")
    usage = data.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    prompt_tokens, completion_tokens = (_count(counts.get(f"{part}_tokens")) for part in ("prompt", "completion"))
    ids = _ids(choice.get("token_ids"))
    if finish == "error":
        ended = clean(ended)[:LONGEST_MESSAGE]
        said = choice.get("error")  # OpenRouter says more
        said = said.get("message") if isinstance(said, dict) else said
        why = _shown(said, clean) if said else "the endpoint ended the reply with this reason"
        completion = Completion((), "", (), "error", error=f"{ended}: {why}")
    else:
        text = _text(message, cut=finish == "length", clean=clean)
        completion = Completion(ids, text, (), finish, reported_tokens=None if ids else completion_tokens)
    prompt_ids = _ids(data.get("prompt_token_ids"))
    kind = "" if finish != "error" else ended
    return Reply(completion, kind, prompt_ids, prompt_tokens or 0, completion_tokens or 0)


def failed_status(status: int, body: bytes, headers: Mapping[str, str], clean: Callable[[str], str]) -> Failure:
    """Returns what a status other than 200 means.

    Args:
        status: Of HTTP.
        body: Its text is shown in part.
        headers: For Retry-After.
        clean: Takes the key out of a text.
    """
    said, code = _error_of(body, clean)
    message = f"HTTP {status}: {said[:LONGEST_MESSAGE]}"
    if status == 429 and code == "insufficient_quota":
        return Failure("quota", message, retry=False)
    if status in RETRIED or status >= 500:
        kind = {429: "rate_limit", 408: "timeout"}.get(status, "server_error")
        return Failure(kind, message, retry=True, retry_after_seconds=retry_after_seconds(headers))
    if status in ACCESS:
        return Failure("access", message, retry=False)
    return Failure("bad_request", message, retry=False)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Returns how long to wait as the headers have it: milliseconds, seconds or a date; None if they do not say."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        if re.fullmatch(r"\s*[0-9]{1,9}(\.[0-9]{0,9})?\s*", value):
            return float(value) * unit
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            continue
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    return None


def is_html(body: bytes) -> bool:
    """Whether a body is a web page, which no endpoint answers with and a wrong address often does."""
    return body.lstrip()[:20].lower().startswith((b"<!doctype html", b"<html", b"<head", b"<?xml"))


def excerpt(body: bytes, clean: Callable[[str], str] = str) -> str:
    """Returns the beginning of a body in quotes, for messages."""
    return _shown(body.decode(errors="replace"), clean) if body else "an empty body"


def _shown(value: Any, clean: Callable[[str], str]) -> str:
    """Returns the beginning of a value as Python writes it; the key is taken out before it is cut."""
    text = clean(value if isinstance(value, str) else repr(value))
    text = text if len(text) <= LONGEST_EXCERPT else text[:LONGEST_EXCERPT] + "..."
    return repr(text) if isinstance(value, str) else text


def _text(message: Mapping[str, Any], *, cut: bool, clean: Callable[[str], str]) -> str:
    content, thoughts = message.get("content"), ""
    if isinstance(content, list):  # parts, as some servers write them
        content, thoughts = _parts(content, clean)
    elif content is not None and not isinstance(content, str):
        raise MalformedReply(f"expected a text or a list of parts in message.content, got {_shown(content, clean)}")
    refusal = message.get("refusal")  # what OpenAI's models say in place of an answer
    text: str = content or (refusal if isinstance(refusal, str) else "")
    reasoning = message.get("reasoning_content") or message.get("reasoning") or thoughts
    details = message.get("reasoning_details")  # OpenRouter's
    if not reasoning and isinstance(details, list):
        known = [part for part in details if isinstance(part, dict) and str(part.get("type")) in REASONING_PARTS]
        reasoning = _parts(known, clean)[1]
    if isinstance(reasoning, str) and reasoning and not text.lstrip().startswith("<think>"):
        text = f"<think>{reasoning}" if cut and not text else f"<think>{reasoning}</think>\n{text}"
    return text.encode(errors="replace").decode()  # JSON can hold halves of characters, which no file takes


def _parts(parts: list[Any], clean: Callable[[str], str]) -> tuple[str, str]:
    """Returns the text and the reasoning in a list of parts."""
    text, reasoning = "", ""
    for part in parts:
        kind = str(part.get("type")) if isinstance(part, dict) else ""
        if kind in TEXT_PARTS and isinstance(found := part.get(TEXT_PARTS[kind]), str):
            text += found
        elif kind in REASONING_PARTS:
            name = REASONING_PARTS[kind]
            found = part.get(name) if name else None
            if isinstance(found, list):  # Mistral's have parts of their own
                found = "".join(str(inner.get("text") or "") for inner in found if isinstance(inner, dict))
            reasoning += found if isinstance(found, str) else ""
        else:
            raise MalformedReply(f"expected parts of text or reasoning, got {_shown(part, clean)}")
    return text, reasoning


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or any(_count(token) is None for token in value):
        return ()
    return tuple(value)


def _error_of(body: bytes, clean: Callable[[str], str]) -> tuple[str, str]:
    """Returns the message and the code in the body of an error, without the key."""
    if is_html(body):
        return "an HTML page", ""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return excerpt(body, clean), ""
    error = data.get("error", data) if isinstance(data, dict) else data
    if isinstance(error, dict):
        return clean(str(error.get("message") or error)), str(error.get("code") or error.get("type") or "")
    return clean(str(error)), ""
