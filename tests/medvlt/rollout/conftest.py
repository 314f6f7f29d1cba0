# SPDX-License-Identifier: Apache-2.0
"""An endpoint with faults, for the engine that asks endpoints. Made of the standard library, one thread."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

if TYPE_CHECKING:
    from medvlt.rollout.openai import OpenAIEngine

Fault: TypeAlias = Callable[[dict[str, Any], int], "str | dict[str, Any] | tuple[int, str]"]
"""From a request and the number of times it came, the first included, to the name of a fault, "" for none, a reply, or
a status with a body."""

HTML = "<!DOCTYPE html>\n<html><body>Sign in</body></html>"

STATUSES = {
    "429": (429, {"retry-after-ms": "20"}),
    "429 for a second": (429, {"retry-after": "1"}),
    **{str(code): (code, {}) for code in (400, 401, 402, 403, 404, 408, 409, 413, 422, 500, 502, 503, 529)},
}


def text_of(body: dict[str, Any]) -> str:
    """The question, of whichever form the message has."""
    content = body["messages"][-1]["content"]
    return str(content if isinstance(content, str) else content[-1]["text"])


def reply(text: str, *, finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


class FaultyServer:
    """Answers chat completions with the seed they came with; faults are chosen by the test.

    Attributes:
        fault: Chooses what happens to a request.
        seen: How often each (question, seed) came.
        answered: How often each was answered in full.
        requests: Bodies, in the order in which they came.
        headers: Of the last request.
        together: Most requests under way at a time.
    """

    def __init__(self) -> None:
        self.fault: Fault = lambda body, attempt: ""
        self.seen: Counter[tuple[str, int | None]] = Counter()
        self.answered: Counter[tuple[str, int | None]] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.headers = ""
        self.together = 0
        self._now = 0
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    int(line.split(":")[1]) for line in head.split("\r\n") if "content-length" in line.lower()
                )
                self.headers = head
                self._now += 1
                self.together = max(self.together, self._now)
                try:
                    await self._answer(json.loads(await reader.readexactly(length)), writer)
                finally:
                    self._now -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            writer.close()

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        key = (text_of(body), body.get("seed"))
        self.requests.append(body)
        self.seen[key] += 1
        fault = self.fault(body, self.seen[key])
        if isinstance(fault, dict):
            await send(writer, 200, json.dumps(fault))
        elif isinstance(fault, tuple):
            await send(writer, *fault)
        elif fault in STATUSES:
            status, headers = STATUSES[fault]
            await send(writer, status, json.dumps({"error": {"message": f"no: {fault}", "code": None}}), headers)
        elif fault == "quota":
            await send(writer, 429, json.dumps({"error": {"message": "pay", "code": "insufficient_quota"}}))
        elif fault in ("html", "502 html"):
            await send(writer, 200 if fault == "html" else 502, HTML, {"content-type": "text/html"})
        elif fault in BODIES:
            await send(writer, 200, BODIES[fault])
        elif fault == "reset":
            writer.transport.abort()
            raise ConnectionResetError
        elif fault == "cut":
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"id":')
            await writer.drain()
            raise ConnectionResetError
        elif fault == "stalled":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(60)
        elif fault == "trickling":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n")
            for _ in range(300):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.1)
        elif fault == "silent":
            await asyncio.sleep(60)
        else:
            wrong_order = int(hashlib.sha256(repr(key).encode()).hexdigest()[:2], 16) / 256 / 50
            await asyncio.sleep(0.5 if fault == "slow" else wrong_order)
            await send(writer, 200, json.dumps(reply(f"<think> {key[1]} </think>\n<answer> A </answer>")))
            self.answered[key] += 1


BODIES = {
    "no json": "{'id': 1}",
    "empty": "",
    "no choices": json.dumps({"id": "x", "choices": []}),
    "no message": json.dumps({"choices": [{"finish_reason": "stop"}]}),
    "no reason": json.dumps(reply("B", finish=None)),
    "a list": "[1, 2]",
    "null": "null",
}


async def send(writer: asyncio.StreamWriter, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    data = text.encode()
    lines = {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + data)
    await writer.drain()


@pytest.fixture
def faulty() -> Iterator[FaultyServer]:
    """An endpoint with faults."""
    server = FaultyServer()
    yield server
    server.close()


@pytest.fixture
def no_openai_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without the settings of the client."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_LOG", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def build(faulty: FaultyServer, no_openai_settings: None) -> Iterator[Callable[..., OpenAIEngine]]:
    """Returns a started engine that asks the endpoint with faults, and waits for little; limits are settings too."""
    from medvlt.data.encoder import PromptEncoder
    from medvlt.rollout.openai import OpenAIEngine
    from medvlt.rollout.openai_limits import Limits

    built: list[OpenAIEngine] = []

    def make(**settings: Any) -> OpenAIEngine:
        quick = {"base_url": faulty.url, "retry_wait_seconds": 0.01, "timeout_seconds": 20.0, **settings}
        limits = {name: quick.pop(name) for name in Limits.__dataclass_fields__ if name in quick}
        engine = OpenAIEngine("m", limits=Limits(**limits), **quick)
        built.append(engine)
        engine.start(PromptEncoder(template="clean"), None)
        return engine

    yield make
    for engine in built:
        engine.close()
