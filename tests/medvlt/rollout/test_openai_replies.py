# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvlt.rollout.openai_replies import (
    MalformedReply,
    failed_status,
    is_html,
    read_reply,
    retry_after_seconds,
)


def body(
    finish: Any = "stop", *, top: dict[str, Any] | None = None, choice: dict[str, Any] | None = None, **message: Any
) -> bytes:
    found = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, **(choice or {})}
    return json.dumps({"id": "x", "choices": [found], **(top or {})}).encode()


def text(**message: Any) -> str:
    return read_reply(body(**message)).completion.text


def test_a_plain_reply() -> None:
    reply = read_reply(body(content="B", top={"usage": {"prompt_tokens": 11, "completion_tokens": 7}}))
    completion = reply.completion
    assert (completion.text, completion.finish_reason, completion.error) == ("B", "stop", "")
    assert (completion.token_ids, completion.sampler_logprobs) == ((), ())
    assert (completion.reported_tokens, completion.length) == (7, 7)
    assert (reply.prompt_tokens, reply.completion_tokens, reply.prompt_token_ids, reply.kind) == (11, 7, (), "")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_goes_in_front_as_a_think_block(name: str) -> None:
    assert text(content="<answer> B </answer>", **{name: "Since."}) == "<think>Since.</think>\n<answer> B </answer>"


def test_a_think_block_of_the_text_itself_is_kept_alone() -> None:
    own = "<think>x</think>\n<answer>B</answer>"
    assert text(content=own, reasoning_content="hidden") == own
    assert text(content="B", reasoning_content=None, reasoning="") == "B"


def test_reasoning_that_was_cut_stays_open() -> None:
    reply = read_reply(body("length", content=None, reasoning_content="Since"))
    assert (reply.completion.text, reply.completion.finish_reason) == ("<think>Since", "length")


def test_other_forms_of_the_text() -> None:
    assert text(content=None) == ""
    assert text(content=None, refusal="I cannot.") == text(content="", refusal="I cannot.") == "I cannot."
    assert text(content="half a \ud83d character") == "half a ? character"
    assert text(content=[{"type": "text", "text": "A"}, {"type": "output_text", "text": "B"}]) == "AB"
    assert text(content=[{"type": "refusal", "refusal": "I cannot."}]) == "I cannot."
    assert text(content=[]) == ""


@pytest.mark.parametrize(
    "content",
    [
        5,
        True,
        {"text": "A"},
        ["A"],
        [None],
        [{"text": "A"}],
        [{"type": "text", "text": None}],
        [{"type": "text", "text": "A"}, {"type": "image_url"}],
        [{"type": []}],
    ],
)
def test_a_content_of_another_form_is_malformed(content: Any) -> None:
    """It would be a text that nobody wrote, or one without a part of it."""
    with pytest.raises(MalformedReply, match=r"expected .*parts .*, got"):
        text(content=content)


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "thinking", "thinking": "Since."}, {"type": "text", "text": "B"}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "Since."}]},
                {"type": "text", "text": "B"},
            ]
        },
        {"content": "B", "reasoning_details": [{"type": "reasoning.text", "text": "Since."}, {"type": "new"}, 5]},
        {"content": "B", "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}], "reasoning": "Since."},
        {"content": "B", "reasoning_details": [{"type": "reasoning.summary", "summary": "Since."}]},
        {"content": "B", "reasoning_details": [{"type": "reasoning.text", "text": "Since."}], "reasoning": "Since."},
    ],
)
def test_other_forms_of_the_reasoning(message: dict[str, Any]) -> None:
    assert text(**message) == "<think>Since.</think>\nB"


def test_a_text_that_speaks_of_think_blocks_keeps_its_reasoning() -> None:
    assert text(content="In <think> tags.", reasoning="Since.") == "<think>Since.</think>\nIn <think> tags."
    assert text(content="\n <think>x</think>B", reasoning="hidden") == "\n <think>x</think>B"


def test_the_key_is_taken_out_of_what_is_shown_and_out_of_nothing_else() -> None:
    def clean(said: str) -> str:
        return said.replace("EMPTY", "***")

    assert read_reply(body(content="EMPTY", reasoning="EMPTY"), clean).completion.text == "<think>EMPTY</think>\nEMPTY"
    stopped = read_reply(body("is EMPTY"), clean)
    assert (stopped.kind, stopped.completion.error[:8]) == ("is ***", "is ***: ")
    for bad in (b"EMPTY", b'{"id": "EMPTY"}', body(5, content="EMPTY"), body(content=["EMPTY"]), b"x" * 78 + b"EMPTY"):
        with pytest.raises(MalformedReply) as caught:
            read_reply(bad, clean)
        assert "EM" not in str(caught.value)
    assert "EM" not in failed_status(500, b"x" * 78 + b"EMPTY", {}, clean).message


def test_what_a_provider_says_of_its_failure_is_told() -> None:
    reply = read_reply(body("error", content="Half", choice={"error": {"code": 502, "message": "overloaded"}}))
    assert reply.completion.error == "error: 'overloaded'"


@pytest.mark.parametrize(("ended", "expected"), [("stop", "stop"), ("length", "length"), ("max_tokens", "length")])
def test_finish_reasons(ended: str, expected: str) -> None:
    assert read_reply(body(ended, content="B")).completion.finish_reason == expected


@pytest.mark.parametrize("ended", ["content_filter", "tool_calls", "insufficient_system_resource"])
def test_a_reply_that_the_endpoint_stopped_is_an_error_of_that_name(ended: str) -> None:
    reply = read_reply(body(ended, content="Half", top={"usage": {"completion_tokens": 3}}))
    assert (reply.completion.text, reply.completion.finish_reason) == ("", "error")
    assert reply.completion.error.startswith(f"{ended}: ")
    assert (reply.kind, reply.completion_tokens) == (ended, 3)  # it is billed all the same


def test_token_ids_where_the_server_sends_them() -> None:
    reply = read_reply(body(content="B", choice={"token_ids": [5, 6]}, top={"prompt_token_ids": [1, 2, 3]}))
    assert (reply.completion.token_ids, reply.prompt_token_ids) == ((5, 6), (1, 2, 3))
    assert reply.completion.reported_tokens is None
    assert reply.completion.length == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty body"),
        (b"<html>", "expected JSON"),
        (b"{'id': 1}", "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"null", r"expected choices\[0\].message"),
        (b"[1]", r"expected choices\[0\].message"),
        (b"{}", r"expected choices\[0\].message"),
        (b'{"choices": []}', r"expected choices\[0\].message"),
        (b'{"choices": [1]}', r"expected choices\[0\].message"),
        (b'{"choices": {"0": 1}}', r"expected choices\[0\].message"),
        (b'{"choices": [{"message": "B", "finish_reason": "stop"}]}', r"expected choices\[0\].message"),
        (b'{"choices": [{"message": {"content": "B"}}]}', "finish_reason, got None"),
        (b'{"choices": [{"message": {"content": "B"}, "finish_reason": ""}]}', "finish_reason, got ''"),
    ],
)
def test_what_is_no_reply_says_what_is_missing(data: bytes, message: str) -> None:
    with pytest.raises(MalformedReply, match=message):
        read_reply(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["message", "content", "usage", "reasoning", "token_ids", "type", "text", "thinking", "x"]),
            inner | st.sampled_from(["text", "thinking", "reasoning.summary"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


replies = st.builds(
    lambda message, usage: {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage},
    st.dictionaries(st.sampled_from(["content", "reasoning", "refusal", "reasoning_details"]), json_values),
    json_values,
)


@given(json_values | replies)
def test_any_json_is_a_reply_or_malformed(value: Any) -> None:
    try:
        reply = read_reply(json.dumps(value).encode())
    except MalformedReply:
        return
    assert isinstance(reply.completion.text, str)
    assert reply.prompt_tokens >= 0
    assert reply.completion_tokens >= 0


@given(st.binary(max_size=60))
def test_any_bytes_are_malformed(value: bytes) -> None:
    with pytest.raises(MalformedReply):
        read_reply(value)


@pytest.mark.parametrize(
    ("status", "kind", "retry"),
    [
        (400, "bad_request", False),
        (413, "bad_request", False),
        (418, "bad_request", False),
        (422, "bad_request", False),
        (401, "access", False),
        (402, "access", False),
        (403, "access", False),
        (404, "access", False),
        (408, "timeout", True),
        (409, "server_error", True),
        (425, "server_error", True),
        (429, "rate_limit", True),
        (500, "server_error", True),
        (503, "server_error", True),
        (529, "server_error", True),
    ],
)
def test_what_a_status_means(status: int, kind: str, retry: bool) -> None:
    failure = failed_status(status, b'{"error": {"message": "because"}}', {"retry-after": "3"}, str)
    assert (failure.kind, failure.retry, failure.message) == (kind, retry, f"HTTP {status}: because")
    assert failure.retry_after_seconds == (3.0 if retry else None)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"message": "because", "type": "x"}', "because"),
        (b'{"error": "because"}', "because"),
        (b'{"detail": [1]}', "{'detail': [1]}"),
        (b"because", "'because'"),
        (b"", "an empty body"),
        (b"<!doctype HTML><p>", "an HTML page"),
    ],
)
def test_what_an_error_says(data: bytes, said: str) -> None:
    assert failed_status(500, data, {}, str).message == f"HTTP 500: {said}"


def test_long_errors_are_cut_after_the_key_is_taken_out() -> None:
    key = "sk-0123456789"
    data = json.dumps({"error": {"message": "x" * 295 + key}}).encode()
    message = failed_status(400, data, {}, lambda text: text.replace(key, "***")).message
    assert "sk-" not in message
    assert len(message) < 320


def test_an_empty_account_is_not_asked_again() -> None:
    data = b'{"error": {"message": "pay", "code": "insufficient_quota"}}'
    assert (failed_status(429, data, {}, str).kind, failed_status(429, data, {}, str).retry) == ("quota", False)


def test_retry_after() -> None:
    assert retry_after_seconds({"retry-after": "7"}) == 7
    assert retry_after_seconds({"retry-after": "0.5"}) == 0.5
    assert retry_after_seconds({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after_seconds({"retry-after": soon}) == pytest.approx(30, abs=2)
    assert retry_after_seconds({"retry-after": "Wed, 21 Oct 2015 07:28:00 -0000"}) == 0
    for value in ("", "soon", "-1", "nan", "1e400", "٣"):
        assert retry_after_seconds({"retry-after": value}) is None
    assert retry_after_seconds({}) is None


def test_pages() -> None:
    assert is_html(b"\n <!DOCTYPE html><html>")
    assert is_html(b"<HTML lang=en>")
    assert not is_html(b'{"a": "<html>"}')
    assert not is_html(b"")
