# SPDX-License-Identifier: Apache-2.0
"""Failures of an endpoint, as the engine deals with them."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from medvlt.data.encoder import PromptEncoder
from medvlt.errors import EngineError
from medvlt.rollout.openai import OpenAIEngine
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams

if TYPE_CHECKING:
    FaultyServer = Any  # in conftest.py, which cannot be imported

pytest.importorskip("openai", reason="the extra api is not installed")

ENCODER = PromptEncoder(template="clean")
OPTIONS = {"A": "Left", "B": "Right"}
ONE = SamplingParams(max_tokens=50)


def questions(count: int) -> list[Sample]:
    return [Sample(f"q:{i}", f"Question number {i}?", OPTIONS, "A", "Left") for i in range(count)]


def keys(samples: list[Sample]) -> list[RolloutKey]:
    return [RolloutKey(42, -1, sample.uid) for sample in samples]


def answer(engine: OpenAIEngine, count: int = 1, params: SamplingParams = ONE) -> list[RolloutGroup]:
    samples = questions(count)
    return engine.generate(samples, params, keys=keys(samples))


class TestFaults:
    @pytest.mark.parametrize(
        "fault",
        ["429", "408", "409", "500", "502", "503", "529", "502 html", "no json", "empty", "no choices", "no message",
         "no reason", "a list", "null", "reset", "cut"],
    )  # fmt: skip
    def test_what_may_pass_is_tried_again(
        self, fault: str, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        faulty.fault = lambda body, attempt: fault if attempt <= 2 else ""
        engine = build()
        (group,) = answer(engine)
        assert group.completions[0].finish_reason == "stop"
        assert (engine.usage.attempts, engine.usage.retries, engine.usage.answered) == (3, 2, 1)

    @pytest.mark.parametrize("fault", ["stalled", "silent", "trickling"])
    def test_a_reply_that_does_not_end_is_ended(
        self, fault: str, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        faulty.fault = lambda body, attempt: fault if attempt == 1 else ""
        began = time.monotonic()
        (group,) = answer(build(timeout_seconds=1.0))
        assert group.completions[0].finish_reason == "stop"
        assert 1 <= time.monotonic() - began < 5

    def test_retry_after_is_honoured_by_all_requests(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        came: list[float] = []

        def fault(body: dict[str, Any], attempt: int) -> str:
            came.append(time.monotonic())
            return {1: "429 for a second", 2: "slow"}.get(len(came), "")

        faulty.fault = fault
        answer(build(concurrency=2), 5)
        assert len(came) == 6
        assert all(later - came[0] >= 1 for later in came[2:])  # also those that were not turned away themselves

    def test_a_request_waits_for_its_own_next_attempt_alone(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        """The endpoint asks for 20 ms; what this request waits beyond that is no affair of the others."""
        came: list[float] = []

        def fault(body: dict[str, Any], attempt: int) -> str:
            came.append(time.monotonic())
            return "429" if len(came) == 1 else ""

        faulty.fault = fault
        answer(build(concurrency=2, retry_wait_seconds=2.0), 12)
        assert came[-1] - came[0] >= 1
        assert came[-2] - came[0] < 1

    @pytest.mark.parametrize("reason", ["insufficient_system_resource", "error"])
    def test_a_reply_that_the_endpoint_could_not_end_is_tried_again(
        self, reason: str, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        choice = {"message": {"content": "Half"}, "finish_reason": reason}
        half = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
        faulty.fault = lambda body, attempt: half if attempt <= 2 else ""
        engine = build()
        assert answer(engine)[0].completions[0].finish_reason == "stop"
        assert (engine.usage.attempts, engine.usage.answered) == (3, 1)
        assert engine.usage.prompt_tokens == 3 + 3 + 11  # all are billed
        faulty.fault = lambda body, attempt: half
        completion = answer(engine)[0].completions[0]
        assert (completion.finish_reason, completion.error.split(":")[0]) == ("error", reason)
        assert engine.usage.failed == {reason: 1}

    @pytest.mark.parametrize(
        ("fault", "kind"), [("500", "server_error"), ("no choices", "malformed"), ("429", "rate_limit")]
    )
    def test_what_fails_for_good_ends_as_an_error_with_its_reason(
        self, fault: str, kind: str, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        faulty.fault = lambda body, attempt: fault if "number 1?" in body["messages"][0]["content"] else ""
        engine = build(max_attempts=3)
        groups = answer(engine, 3)
        failed = groups[1].completions[0]
        assert (failed.finish_reason, failed.text, failed.token_ids) == ("error", "", ())
        assert failed.error.startswith(f"{kind}: ")
        assert failed.error.endswith("(after 3 attempts)")
        assert [group.completions[0].finish_reason for group in groups] == ["stop", "error", "stop"]
        assert engine.usage.failed == {kind: 1}
        assert engine.usage.attempts == 2 + 2 * 3  # once more in the second pass
        assert engine.refused == {kind: 1}

    def test_the_second_pass_comes_after_all_others(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        def fault(body: dict[str, Any], attempt: int) -> str:
            return "500" if attempt <= 2 and "number 0?" in body["messages"][0]["content"] else ""

        faulty.fault = fault
        groups = answer(build(max_attempts=2, concurrency=1), 5)
        assert all(group.completions[0].finish_reason == "stop" for group in groups)
        assert "number 0?" in faulty.requests[-1]["messages"][0]["content"]

    @pytest.mark.parametrize("fault", ["400", "413", "422"])
    def test_a_prompt_the_endpoint_refuses_is_not_sent_again(
        self, fault: str, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        faulty.fault = lambda body, attempt: fault
        engine = build()
        (group,) = answer(engine)
        assert group.completions[0].error == f"bad_request: HTTP {fault}: no: {fault}"
        assert len(faulty.requests) == 1
        assert engine.usage.failed == {"bad_request": 1}

    def test_a_filtered_reply_is_an_error_of_one_completion(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        filtered = {"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}
        first = keys(questions(1))[0].sample_seed(0) >> 32
        faulty.fault = lambda body, attempt: filtered if body["seed"] == first else ""
        engine = build()
        (group,) = answer(engine, params=SamplingParams(n=2))
        assert [completion.finish_reason for completion in group.completions] == ["error", "stop"]
        assert engine.usage.failed == {"content_filter": 1}
        assert len(faulty.requests) == 2
        assert engine.refused == {}  # the prompt did get a completion


class TestGivingUp:
    @pytest.mark.parametrize("fault", ["401", "402", "403", "404"])
    def test_a_refused_key_stops_the_run_at_once(
        self, fault: str, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        faulty.fault = lambda body, attempt: fault
        engine = build(concurrency=4)
        with pytest.raises(
            EngineError, match=rf"HTTP {fault}: no: {fault}\. Check the key in .* OPENAI_API_KEY, .*/v1"
        ):
            answer(engine, 100)
        assert len(faulty.requests) <= 4
        assert engine.usage.failed == {"given_up": 100}

    def test_what_is_under_way_then_is_not_waited_for(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        faulty.fault = lambda body, attempt: "401" if len(faulty.requests) == 4 else "silent"
        began = time.monotonic()
        with pytest.raises(EngineError, match="HTTP 401"):
            answer(build(concurrency=4), 100)
        assert time.monotonic() - began < 10  # the time-out is 20 seconds

    def test_an_empty_account_stops_the_run(self, build: Callable[..., OpenAIEngine], faulty: FaultyServer) -> None:
        faulty.fault = lambda body, attempt: "quota"
        with pytest.raises(EngineError, match=r"HTTP 429: pay\. The account has nothing left"):
            answer(build(concurrency=4), 100)

    def test_web_pages_stop_the_run(self, build: Callable[..., OpenAIEngine], faulty: FaultyServer) -> None:
        faulty.fault = lambda body, attempt: "html"
        with pytest.raises(EngineError, match=r"expected JSON from http://127.*, got an HTML page.*ends in /v1"):
            answer(build(), 100)

    def test_an_endpoint_that_was_never_reached_stops_the_run(self, build: Callable[..., OpenAIEngine]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(EngineError, match=f"{url}/ was never reached, connection: .*Check base_url"):
            answer(build(base_url=url, max_attempts=2), 100)

    def test_nothing_but_failures_stops_the_run(self, build: Callable[..., OpenAIEngine], faulty: FaultyServer) -> None:
        faulty.fault = lambda body, attempt: "400"
        with pytest.raises(EngineError, match=r"10 requests in a row failed \(bad_request x 10\).*Check sampling"):
            answer(build(give_up_after=10, concurrency=4), 100)
        assert len(faulty.requests) <= 14

    def test_a_row_of_failures_goes_on_from_call_to_call(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        """Or small batches would go on for days, each with nothing but failures."""
        engine = build(give_up_after=7, max_attempts=1, retry_passes=0)
        answer(engine, 2)
        faulty.fault = lambda body, attempt: "500"
        for _ in range(3):
            answer(engine, 2)
        with pytest.raises(EngineError, match=r"7 requests in a row failed \(server_error x 7\)"):
            answer(engine, 2)

    def test_an_answer_ends_the_row(self, build: Callable[..., OpenAIEngine], faulty: FaultyServer) -> None:
        faulty.fault = lambda body, attempt: "500" if "number 1?" in body["messages"][0]["content"] else ""
        engine = build(give_up_after=3, concurrency=1, max_attempts=1)
        for _ in range(6):
            answer(engine, 3)
        assert engine.usage.answered == 12

    def test_filtered_replies_do_not_end_the_row_nor_count_as_answers(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        filtered = {"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}
        faulty.fault = lambda body, attempt: "500" if len(faulty.requests) % 2 else filtered
        with pytest.raises(EngineError, match=r"5 requests in a row failed \(server_error x 5\)"):
            answer(build(give_up_after=5, concurrency=1, max_attempts=1), 30)

    def test_nothing_but_filtered_replies_does_not_stop_the_run(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        faulty.fault = lambda body, attempt: {
            "choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]
        }
        engine = build(give_up_after=2)
        answer(engine, 6)
        assert engine.usage.failed == {"content_filter": 6}

    @pytest.mark.parametrize("fault", ["400", "500", "empty"])
    def test_a_first_call_without_any_answer_stops_the_run(
        self, fault: str, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        faulty.fault = lambda body, attempt: fault
        engine = build(max_attempts=2)
        with pytest.raises(
            EngineError, match=r"all 3 requests failed \(\w+ x 3\), the last one with .*(Check|Run again)"
        ):
            answer(engine, 3)
        faulty.fault = lambda body, attempt: ""
        answer(engine, 3)
        faulty.fault = lambda body, attempt: fault
        groups = answer(engine, 3)  # once it has answered, a few failures are no reason
        assert all(group.completions[0].finish_reason == "error" for group in groups)

    def test_a_login_page_in_mid_run_is_named(self, build: Callable[..., OpenAIEngine], faulty: FaultyServer) -> None:
        engine = build(give_up_after=4, max_attempts=1)
        answer(engine, 2)
        faulty.fault = lambda body, attempt: "html"
        with pytest.raises(EngineError, match=r"html x 4\), the last one with html: .*A login page .*log in again"):
            answer(engine, 9)

    def test_what_was_answered_before_is_kept(self, build: Callable[..., OpenAIEngine], faulty: FaultyServer) -> None:
        faulty.fault = lambda body, attempt: "500" if len(faulty.requests) > 20 else ""
        engine = build(give_up_after=5, concurrency=4, max_attempts=1)
        groups = answer(engine, 100)
        reasons = [group.completions[0].finish_reason for group in groups]
        assert reasons.count("stop") == 20
        assert "given_up: not asked" in groups[-1].completions[0].error
        assert engine.usage.answered == 20
        assert engine.usage.failed.total() == 80
        with pytest.raises(EngineError, match="5 requests in a row failed"):  # and the next call finds out anew
            answer(engine, 100)

    def test_prompts_that_are_refused_later_do_not_stop_the_run(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        faulty.fault = lambda body, attempt: "400" if len(faulty.requests) > 20 else ""
        engine = build(give_up_after=5, concurrency=4)
        answer(engine, 60)
        assert engine.usage.failed == {"bad_request": 40}

    def test_a_second_pass_of_hopeless_requests_does_not_stop_the_run(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        """Among all requests these were rare; among those that failed before they are in a row."""

        def fault(body: dict[str, Any], attempt: int) -> str:
            number = int(re.search(r"number (\d+)", body["messages"][0]["content"])[1])  # type: ignore[index]
            return "500" if number % 4 == 0 or (number == 19 and attempt == 1) else ""

        faulty.fault = fault
        engine = build(give_up_after=3, concurrency=1, max_attempts=1)
        groups = answer(engine, 20)
        assert engine.usage.failed == {"server_error": 5}
        assert groups[19].completions[0].finish_reason == "stop"

    def test_failures_between_replies_do_not_stop_the_run(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        faulty.fault = lambda body, attempt: "500" if len(faulty.requests) % 2 else ""
        engine = build(give_up_after=3, concurrency=1, max_attempts=1, retry_passes=0)
        answer(engine, 20)
        assert engine.usage.failed == {"server_error": 10}

    def test_closing_ends_a_call(self, build: Callable[..., OpenAIEngine], faulty: FaultyServer) -> None:
        faulty.fault = lambda body, attempt: "silent"
        engine = build()
        threading.Timer(0.3, engine.close).start()
        began = time.monotonic()
        with pytest.raises(EngineError, match="closed while it sampled"):
            answer(engine, 5)
        assert time.monotonic() - began < 5

    def test_an_interrupt_cancels_what_is_under_way(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        faulty.fault = lambda body, attempt: "slow"  # 25 half seconds, were they asked to the end
        engine = build(concurrency=2)

        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("rich.progress.Progress.update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            answer(engine, 50)
        asked = len(faulty.requests)
        time.sleep(1.2)
        assert len(faulty.requests) <= asked + 1 < 10
        monkeypatch.undo()
        assert answer(engine, 1)[0].completions[0].finish_reason == "stop"
