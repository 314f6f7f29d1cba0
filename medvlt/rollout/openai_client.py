# SPDX-License-Identifier: Apache-2.0
"""Requests to an OpenAI-compatible endpoint, many at a time: each ends as a reply or as a failure, none is lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

from medvlt.errors import DataError, EngineError
from medvlt.rollout.openai_limits import Limits, Pace
from medvlt.rollout.openai_replies import Failure, MalformedReply, Reply, excerpt, failed_status, is_html, read_reply
from medvlt.rollout.openai_usage import Usage

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

Outcome: TypeAlias = Reply | Failure | DataError
"""What becomes of a request; a DataError if its prompt cannot be built."""

HTML_REPLIES = 3
"""Web pages in place of replies after which the address is taken to be wrong, if nothing else ever came."""

PLACEHOLDER_KEY = "none"
"""Sent to a server that asks for no key; the client wants one."""

GIVEN_UP = Failure("given_up", "not asked, or not to the end: too many requests before it failed", retry=False)


class GiveUp(Exception):
    """The rest of a call is not worth asking."""


class EndpointClient:
    """Asks an endpoint, with the limits and the patience of the settings. Lives on one event loop.

    The retries of the official client are switched off: they do not cover replies that cannot be read, and are not
    counted.

    Args:
        openai: The official package.
        api_key: Sent to the endpoint and shown nowhere; empty for a server that asks for none.
        base_url: None for the client's default.
        key_hint: How the key is given, for messages.
        limits: How fast and how often.
    """

    def __init__(
        self, openai: ModuleType, *, api_key: str, base_url: str | None, key_hint: str, limits: Limits
    ) -> None:
        self._openai = openai
        self._key = api_key
        self._key_hint = key_hint
        self._limits = limits
        self._pace = Pace(limits.requests_per_minute)
        timeout = openai.Timeout(limits.timeout_seconds, connect=limits.connect_timeout_seconds)
        self._client = openai.AsyncOpenAI(
            api_key=api_key or PLACEHOLDER_KEY, base_url=base_url, timeout=timeout, max_retries=0
        )
        self.url = str(self._client.base_url)
        self._replied = False  # whether a reply was ever read
        self._reached = False  # whether anything ever came back
        self._warned = False  # that it was not
        self._pages = 0  # web pages among what came back
        self._again = False  # whether only what failed before is asked
        self._in_a_row = 0
        self._row: Counter[str] = Counter()

    async def ask(
        self,
        items: Sequence[Item],
        build: Callable[[Item], Awaitable[dict[str, Any]]],
        usage: Usage,
        ended: Callable[[], None],
    ) -> list[Outcome]:
        """Asks all, then once more those whose failure may have passed.

        If too many fail in a row, the others are not asked: what was answered before is kept, and the others end as
        failures too. If nothing was answered before, that is an error.

        Args:
            items: One per request; begun in this order.
            build: Returns the arguments of a request; called when its turn comes.
            usage: Counts what happens; the outcomes themselves are counted by the caller.
            ended: Called as often as requests end in the first pass.

        Returns:
            One outcome per item, in the same order.

        Raises:
            EngineError: If the endpoint cannot be used: never reached, key or address refused, nothing but failures.
        """
        outcomes: list[Outcome] = [GIVEN_UP] * len(items)
        places: Sequence[int] = range(len(items))
        replies = 0

        async def work(queue: Any) -> None:
            nonlocal replies
            for place in queue:
                outcome = await self._ask_one(items[place], build, usage)
                outcomes[place] = outcome
                ended()
                if isinstance(outcome, Reply):
                    replies += 1
                    self._in_a_row, self._row = 0, Counter()
                elif isinstance(outcome, Failure):
                    self._failed(outcome)

        self._in_a_row, self._row = 0, Counter()
        try:
            for number in range(1 + self._limits.retry_passes):
                self._again = number > 0
                if self._again:
                    places = [i for i, o in enumerate(outcomes) if isinstance(o, Failure) and o.retry]
                    ended = _nothing
                    if places:
                        logger.info("asking %d requests again that failed", len(places))
                queue = iter(places)
                await _all_or_none([work(queue) for _ in range(min(self._limits.concurrency, len(places)))])
        except GiveUp as reason:
            if not replies:
                raise EngineError(str(reason)) from None
            logger.error("%s\nThe other requests of this call end as failures.", reason)
        return outcomes

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.close()

    async def _ask_one(self, item: Item, build: Callable[[Item], Awaitable[dict[str, Any]]], usage: Usage) -> Outcome:
        try:
            arguments = await build(item)
        except DataError as error:
            return error
        attempt = 1
        while True:
            began = time.monotonic()
            await self._pace.turn()
            usage.waiting_seconds += time.monotonic() - began
            usage.attempts += 1
            outcome = await self._attempt(arguments, usage)
            if isinstance(outcome, Reply) or not outcome.retry or attempt >= self._limits.max_attempts:
                return outcome if isinstance(outcome, Reply) else _after(outcome, attempt)
            chance = self._pace.random.random()
            wait = self._limits.backoff_seconds(attempt, outcome.retry_after_seconds, chance)
            if outcome.retry_after_seconds is not None:
                self._pace.hold(wait)
            if not self._reached and not self._warned:
                self._warned = True
                logger.warning("%s cannot be reached, trying again: %s", self.url, outcome.text)
            began = time.monotonic()
            await asyncio.sleep(wait)
            usage.waiting_seconds += time.monotonic() - began
            usage.retries += 1
            attempt += 1

    async def _attempt(self, arguments: dict[str, Any], usage: Usage) -> Reply | Failure:
        limit = self._limits.timeout_seconds
        try:
            async with asyncio.timeout(limit):  # the client's own counts anew with every byte
                raw = await self._client.chat.completions.with_raw_response.create(**arguments)
        except (TimeoutError, self._openai.APITimeoutError) as error:
            if type(error.__cause__).__name__ == "ConnectTimeout":
                limit = self._limits.connect_timeout_seconds
                return Failure("connection", f"none within connect_timeout_seconds={limit:g}", retry=True)
            return Failure("timeout", f"no whole reply within timeout_seconds={limit:g}", retry=True)
        except self._openai.APIStatusError as error:
            self._reached = True
            usage.responses[error.status_code] += 1
            return failed_status(error.status_code, error.response.content, error.response.headers, self._clean)
        except self._openai.APIConnectionError as error:
            return Failure("connection", self._clean(_cause(error)), retry=True)
        self._reached = True
        body = raw.http_response.content.replace(self._key.encode() or b"\0", b"***")
        usage.responses[raw.http_response.status_code] += 1
        try:
            reply = read_reply(body)
        except MalformedReply as error:
            return self._unreadable(body, self._clean(str(error)))
        self._replied = True
        usage.prompt_tokens += reply.prompt_tokens
        usage.completion_tokens += reply.completion_tokens
        return reply

    def _unreadable(self, body: bytes, message: str) -> Failure:
        if not is_html(body):
            return Failure("malformed", message, retry=True)
        self._pages += 1
        message = f"expected JSON from {self.url}, got an HTML page: {excerpt(body)}"
        if self._pages >= HTML_REPLIES and not self._replied:
            raise GiveUp(f"{message}. base_url usually ends in /v1; check it, and that no login page stands before it")
        return Failure("html", message, retry=True)

    def _failed(self, failure: Failure) -> None:
        """Stops the call if the endpoint, not the prompt, seems to be at fault."""
        if not self._replied:
            if failure.kind in ("access", "quota"):
                raise GiveUp(f"{self.url} refuses every request: {failure.message}. {self._advice(failure)}")
            if not self._reached:
                raise GiveUp(
                    f"{self.url} was never reached, {failure.text}. Check base_url, that the server runs, and that a "
                    "proxy lets it through"
                )
        elif failure.kind == "bad_request" or (self._again and failure.kind != "connection"):
            return  # of this prompt: others were answered
        self._in_a_row += 1
        self._row[failure.kind] += 1
        if self._in_a_row >= self._limits.give_up_after:
            kinds = ", ".join(f"{kind} x {count}" for kind, count in self._row.most_common())
            raise GiveUp(
                f"{self.url}: {self._in_a_row} requests in a row failed ({kinds}), the last one with {failure.text}. "
                f"{self._advice(failure)}"
            )

    def _advice(self, failure: Failure) -> str:
        if failure.kind == "access":
            return f"Check {self._key_hint}, the account, the model's name, and base_url, which usually ends in /v1"
        if failure.kind == "quota":
            return "The account has nothing left; pay it or use another key"
        if failure.kind == "bad_request":
            return "Check sampling, token_parameter, send_seed and extra_body: endpoints refuse fields they do not know"
        return "Run again later, or raise give_up_after, max_attempts or timeout_seconds"

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _after(failure: Failure, attempts: int) -> Failure:
    if attempts == 1:
        return failure
    return replace(failure, message=f"{failure.message} (after {attempts} attempts)")


def _cause(error: BaseException) -> str:
    """Returns the error that a connection ended with; the client's own says only that it did."""
    inner = error.__cause__ or error.__context__
    return f"{type(inner).__name__}: {inner}" if inner is not None else str(error)


def _nothing() -> None:
    """Does nothing."""


async def _all_or_none(works: Sequence[Any]) -> None:
    """Runs all; if one raises, the others are cancelled before its error goes on."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
