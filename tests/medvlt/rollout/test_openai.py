# SPDX-License-Identifier: Apache-2.0
"""The engine against an endpoint with faults; `test_openai_server.py` has it against a real one."""

from __future__ import annotations

import logging
import os
import random
import re
import secrets
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from medvlt.data.encoder import PromptEncoder
from medvlt.errors import ConfigurationError, EngineError
from medvlt.rollout.base import RolloutEngine
from medvlt.rollout.openai import OpenAIEngine
from medvlt.rollout.openai_limits import Limits
from medvlt.rollout.openai_requests import request_messages
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams

if TYPE_CHECKING:
    FaultyServer = Any  # in conftest.py, which cannot be imported

pytest.importorskip("openai", reason="the extra api is not installed")

ENCODER = PromptEncoder(template="clean")
OPTIONS = {"A": "Left", "B": "Right"}
ONE = SamplingParams(max_tokens=50)


def questions(count: int) -> list[Sample]:
    return [Sample(f"q:{i}", f"Question number {i}?", OPTIONS, "A", "Left") for i in range(count)]


def keys(samples: list[Sample], first: int = 0) -> list[RolloutKey]:
    return [RolloutKey(42, -1, sample.uid, first) for sample in samples]


def texts(groups: list[RolloutGroup]) -> list[list[str]]:
    return [[completion.text for completion in group.completions] for group in groups]


@pytest.fixture(autouse=True)
def no_settings_of_the_user(no_openai_settings: None) -> None:
    """Whatever OPENAI_API_KEY the machine has."""


def answer(engine: OpenAIEngine, count: int = 1, params: SamplingParams = ONE) -> list[RolloutGroup]:
    samples = questions(count)
    return engine.generate(samples, params, keys=keys(samples))


class TestSampling:
    def test_is_a_rollout_engine(self) -> None:
        assert isinstance(OpenAIEngine("m"), RolloutEngine)

    def test_one_request_per_completion_with_a_seed_of_its_own_in_order(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        samples = questions(7)
        groups = build().generate(samples, SamplingParams(n=3, max_tokens=50), keys=keys(samples))
        assert [group.sample.uid for group in groups] == [sample.uid for sample in samples]
        for group, key in zip(groups, keys(samples), strict=True):
            for index, completion in enumerate(group.completions):
                seed = key.sample_seed(index) >> 32
                assert completion.text == f"<think> {seed} </think>\n<answer> A </answer>"
                assert faulty.answered[ENCODER.wording.prompt_text(group.sample), seed] == 1
        assert len(faulty.requests) == 21
        assert {request["max_tokens"] for request in faulty.requests} == {50}

    def test_part_of_a_group_is_what_it_is_in_the_whole(self, build: Callable[..., OpenAIEngine]) -> None:
        engine, samples = build(), questions(2)
        whole = texts(engine.generate(samples, SamplingParams(n=4), keys=keys(samples)))
        part = texts(engine.generate(samples[1:], SamplingParams(n=2), keys=keys(samples[1:], first=1)))
        assert part == [whole[1][1:3]]

    def test_greedy_asks_once_and_repeats_the_completion(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        (group,) = answer(build(), params=SamplingParams(n=3, temperature=0))
        assert len(faulty.requests) == 1
        assert len(group.completions) == 3
        assert len(set(group.completions)) == 1

    def test_an_empty_call_asks_nothing(self, build: Callable[..., OpenAIEngine], faulty: FaultyServer) -> None:
        assert build().generate([], ONE, keys=[]) == []
        assert faulty.requests == []

    def test_concurrency_is_reached_and_kept(self, build: Callable[..., OpenAIEngine], faulty: FaultyServer) -> None:
        faulty.fault = lambda body, attempt: "slow" if len(faulty.requests) <= 5 else ""
        answer(build(concurrency=5), 60)
        assert faulty.together == 5

    def test_the_times_and_no_retries_reach_the_client(
        self, build: Callable[..., OpenAIEngine], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The retries are the engine's own, and the client's default is ten minutes."""
        import openai

        seen: dict[str, Any] = {}
        client = openai.AsyncOpenAI

        def record(**settings: Any) -> openai.AsyncOpenAI:
            seen.update(settings)
            return client(**settings)

        monkeypatch.setattr(openai, "AsyncOpenAI", record)
        build(timeout_seconds=7.0, connect_timeout_seconds=3.5)
        assert (seen["timeout"].read, seen["timeout"].connect, seen["max_retries"]) == (7.0, 3.5, 0)

    def test_the_rate_is_kept(self, build: Callable[..., OpenAIEngine]) -> None:
        began = time.monotonic()
        engine = build(requests_per_minute=1200)
        answer(engine, 11)
        assert time.monotonic() - began >= 10 * 0.05
        assert engine.usage.waiting_seconds > 0

    def test_prompts_that_cannot_be_built_are_refused_and_not_sent(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        engine, good = build(), questions(2)
        damaged = Sample("damaged", "Which side?", OPTIONS, "A", "Left", (b"no picture",))
        samples = [good[0], damaged, good[1]]
        groups = engine.generate(samples, SamplingParams(n=2), keys=keys(samples))
        assert [c.finish_reason for c in groups[1].completions] == ["error"] * 2
        assert texts([groups[0], groups[2]]) == texts(engine.generate(good, SamplingParams(n=2), keys=keys(good)))
        assert engine.refused == {"corrupt_image": 1}
        assert engine.usage.prompts_refused == 2
        assert len(faulty.requests) == 8

    def test_prompts_of_ended_questions_are_let_go(
        self, build: Callable[..., OpenAIEngine], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They hold the pictures: of a call with a hundred thousand, all would be in memory."""
        from medvlt.rollout import openai

        class Messages(list[dict[str, Any]]):
            """A list that can be referred to weakly."""

        made: list[weakref.ref[Messages]] = []
        held: list[int] = []

        def messages(encoder: PromptEncoder, sample: Sample) -> Messages:
            new = Messages(request_messages(encoder, sample))
            made.append(weakref.ref(new))
            held.append(sum(one() is not None for one in made))
            return new

        monkeypatch.setattr(openai, "request_messages", messages)
        assert len(texts(answer(build(concurrency=2), 30, SamplingParams(n=2)))) == 30
        assert len(made) == 30  # once per question, not per completion
        assert max(held) <= 8

    def test_tokens_and_cost_are_counted_and_told(
        self,
        build: Callable[..., OpenAIEngine],
        caplog: pytest.LogCaptureFixture,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        engine = build(prompt_price=1e6, completion_price=1e6)
        with caplog.at_level(logging.INFO, "medvlt"):
            (group, _) = answer(engine, 2)
            engine.close()
        assert group.completions[0].length == 7
        assert (engine.usage.prompt_tokens, engine.usage.completion_tokens) == (22, 14)
        printed = capsys.readouterr().err
        assert "in this process: 2 requests" in printed  # not those of a run that was killed
        for told in (caplog.text, printed):  # of the call, and in all
            assert "2 requests: 2 answered" in told
            assert "cost 36.00" in told


class TestLife:
    def test_a_closed_engine_says_so_and_can_be_started_again(self, build: Callable[..., OpenAIEngine]) -> None:
        engine = build()
        engine.start(ENCODER, None)  # changes nothing
        before = threading.active_count()
        engine.close()
        engine.close()
        assert threading.active_count() < before
        with pytest.raises(EngineError, match="not started, or was closed"):
            answer(engine)
        engine.start(ENCODER, None)
        assert answer(engine)[0].completions[0].finish_reason == "stop"

    def test_sleep_and_wake_do_nothing(self, build: Callable[..., OpenAIEngine]) -> None:
        engine = build()
        for step in (engine.sleep, engine.sleep, engine.wake, engine.wake):
            step()
        assert answer(engine)[0].completions[0].finish_reason == "stop"

    def test_weights_are_refused(self) -> None:
        with pytest.raises(EngineError, match=r"cannot be replaced.*RolloutModule"):
            OpenAIEngine("m").load_weights([], version=1)

    def test_the_identity_holds_what_completions_depend_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
        one = OpenAIEngine("m", "http://a/v1", extra_body={"reasoning_effort": "high"}).identity()
        assert one["model"] == "m"
        assert "sk-secret" not in repr(one)
        assert (
            one
            == OpenAIEngine(
                "m", "http://a/v1", limits=Limits(concurrency=2), extra_body={"reasoning_effort": "high"}
            ).identity()
        )
        moved = OpenAIEngine("m", "http://b/v1", extra_body={"reasoning_effort": "high"})
        assert moved.identity() == one  # a server that is started again elsewhere
        others = [
            OpenAIEngine("m2", "http://a/v1", extra_body={"reasoning_effort": "high"}),
            OpenAIEngine("m", "http://a/v1"),
            OpenAIEngine("m", "http://a/v1", send_seed=False, extra_body={"reasoning_effort": "high"}),
        ]
        assert all(other.identity() != one for other in others)

    @pytest.mark.parametrize(
        "url",
        ["localhost:8000/v1", "ftp://host/v1", "http://", "/v1", "", "http://[::1/v1", "http://host:99999/v1",
         "http://host:0/v1", "http://host:port/v1", "http://ho st/v1", " http://host/v1", "http://host/v1\n",
         "http://ho\tst/v1", "http://\u2603../v1"],
    )  # fmt: skip
    def test_bad_addresses_are_refused(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="base_url must begin with http"):
            OpenAIEngine("m", url)


class TestKey:
    KEY = f"sk-{secrets.token_hex(8)}/{secrets.token_hex(8)}"

    def test_a_key_is_needed_without_an_address(self) -> None:
        with pytest.raises(ConfigurationError, match=r"OTHER_KEY holds no key; set it \(export OTHER_KEY=\.\.\.\)"):
            OpenAIEngine("m", api_key_variable="OTHER_KEY").start(ENCODER, None)

    def test_it_is_sent(
        self, build: Callable[..., OpenAIEngine], faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OTHER_KEY", f"{self.KEY}\n")  # as `cat file` leaves it
        answer(build(api_key_variable="OTHER_KEY"))
        assert f"authorization: bearer {self.KEY}\r\n" in faulty.headers.lower()

    def test_a_key_in_place_of_a_name_or_in_an_address_is_refused_and_not_shown(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for settings in (
            {"api_key_variable": self.KEY},
            {"base_url": f"https://user:{self.KEY}@host/v1"},
            {"base_url": f"https://host/v1?key={self.KEY}"},
        ):
            with pytest.raises(ConfigurationError) as caught:
                OpenAIEngine("m", **settings)  # type: ignore[arg-type]
            assert self.KEY not in str(caught.value)
        for name, value in (
            ("OPENAI_BASE_URL", f"https://u:{self.KEY}@host/v1"),
            ("OPENAI_API_KEY", f"{self.KEY} \x07b"),
        ):
            monkeypatch.setenv(name, value)
            with pytest.raises(ConfigurationError) as caught:
                OpenAIEngine("m").start(ENCODER, None)
            assert self.KEY not in str(caught.value)
            monkeypatch.delenv(name)

    @pytest.mark.parametrize("key", ["EMPTY", "a"])
    def test_what_stands_for_a_key_is_kept_in_replies(
        self, key: str, build: Callable[..., OpenAIEngine], faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Servers that ask for no key are given such words; they are no secret, and words of medicine."""
        monkeypatch.setenv("OPENAI_API_KEY", key)
        said = "<think> EMPTY bladder </think>\n<answer> A </answer>"
        faulty.fault = lambda body, attempt: {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}
        assert texts(answer(build())) == [[said]]

    def test_it_is_shown_nowhere_whatever_happens(
        self,
        build: Callable[..., OpenAIEngine],
        faulty: FaultyServer,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """Every kind of failure, with bodies and errors that repeat the key, at the level of INFO."""
        monkeypatch.setenv("OPENAI_API_KEY", self.KEY)
        names = [
            "",
            "400",
            "401",
            "404",
            "429",
            "quota",
            "500",
            "html",
            "502 html",
            "empty",
            "cut",
            "reset",
            "echo",
            "silent",
        ]
        seen: list[str] = []
        escaped = self.KEY.replace("/", "\\/")  # as some servers write JSON
        echoes = {
            "in a reply": {"choices": [{"message": self.KEY, "finish_reason": "stop"}]},
            "as a reason": {"choices": [{"message": {"content": ""}, "finish_reason": self.KEY}]},
            "in an error": (401, f'{{"error": {{"message": "wrong key {self.KEY}"}}}}'),
            "in an escaped error": (401, f'{{"error": {{"message": "wrong key {escaped}"}}}}'),
            "in a text": (500, f"wrong key {self.KEY}"),
        }
        with caplog.at_level(logging.INFO):
            for name in [*names, *echoes]:
                faulty.fault = lambda body, attempt, name=name: echoes.get(name, name)  # type: ignore[misc]
                engine = build(max_attempts=2, give_up_after=2, timeout_seconds=0.3)
                try:
                    groups = answer(engine, 3)
                    seen += [completion.error for group in groups for completion in group.completions]
                except EngineError as error:
                    seen += traceback.format_exception(error)
                engine.close()
                seen += [repr(engine), repr(vars(engine)), repr(engine.identity()), repr(engine.usage)]
        captured = capfd.readouterr()
        everything = "\n".join([*seen, caplog.text, captured.out, captured.err])
        assert self.KEY not in everything
        assert "HTTP 401: wrong key ***" in everything
        assert "Question number" not in caplog.text + captured.out + captured.err  # nor any prompt


class TestManyRequests:
    """Each request ends once; what the server says it answered is what came back."""

    FAULTS = (
        *(["429"] * 3 + ["500"] * 3),
        *("503", "html", "502 html", "no json", "empty", "no choices", "no message", "reset", "cut", "slow"),
    )

    @pytest.mark.parametrize("count", [int(os.environ.get("MEDVLT_TEST_REQUESTS", "1000"))])  # 10,000 take a minute
    def test_every_request_is_accounted_for_and_none_twice(
        self, count: int, build: Callable[..., OpenAIEngine], faulty: FaultyServer
    ) -> None:
        def fault(body: dict[str, Any], attempt: int) -> str:
            text, seed = body["messages"][0]["content"], body["seed"]
            draw = random.Random(f"{text} {seed} {attempt}")
            if seed % 97 == 0:
                return "400"
            if seed % 89 == 0:
                return "500"
            if draw.random() < 2 / count:
                return draw.choice(["stalled", "429 for a second"])
            return draw.choice(self.FAULTS) if draw.random() < 0.3 else ""

        faulty.fault = fault
        engine = build(concurrency=64, timeout_seconds=4.0)
        samples = questions(count // 4)
        groups = engine.generate(samples, SamplingParams(n=4), keys=keys(samples))
        usage = engine.usage
        expected = {"stop": 0, "bad_request": 0, "server_error": 0}
        for group, key in zip(groups, keys(samples), strict=True):
            question = ENCODER.wording.prompt_text(group.sample)
            assert len(group.completions) == 4
            for index, completion in enumerate(group.completions):
                seed = key.sample_seed(index) >> 32
                kind = "bad_request" if seed % 97 == 0 else "server_error" if seed % 89 == 0 else "stop"
                expected[kind] += 1
                if kind == "stop":
                    assert completion.text.startswith(f"<think> {seed} </think>")
                    assert faulty.answered[question, seed] == 1
                else:
                    assert completion.error.startswith(kind)
                    assert faulty.answered[question, seed] == 0
        assert faulty.answered.total() == usage.answered == expected["stop"]
        assert usage.failed == {kind: expected[kind] for kind in ("bad_request", "server_error")}
        assert usage.requests == count == usage.answered + usage.failed.total()
        assert usage.attempts == faulty.seen.total()
        assert expected["bad_request"] > 0 < expected["server_error"]


def test_no_file_imports_the_client_when_it_is_imported_itself() -> None:
    folder = Path(__file__).resolve().parents[3] / "medvlt" / "rollout"
    files = list(folder.glob("openai*.py"))
    assert len(files) >= 6
    for file in files:
        assert not re.search(r"^\s*(import|from) (openai|httpx)", file.read_text(), re.MULTILINE), file


@pytest.mark.parametrize("name", ["api_key", "Authorization", "access-token", "x-api-key"])
def test_a_key_in_the_extra_body_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"must not hold .*api_key_variable") as caught:
        OpenAIEngine("m", "http://a/v1", extra_body={name: "sk-very-secret", "token_budget": 3})
    assert "sk-very-secret" not in str(caught.value)
