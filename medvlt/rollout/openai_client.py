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
from medvlt.rollout.openai_limits import LONGEST_RETRY_AFTER_SECONDS, Limits, Pace
from medvlt.rollout.openai_replies import (
    PASSING,
    Failure,
    MalformedReply,
    Reply,
    excerpt,
    failed_status,
    is_html,
    read_reply,
)
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
        self._replied = False  # whether a reply was ever read, so that key, address and model are right
        self._reached = False  # whether anything ever came back
        self._warned = False  # that it was not
        self._pages = 0  # web pages among what came back
        self._again = False  # whether only what failed before is asked
        self._row: Counter[str] = Counter()  # failures since the last answer, also of the calls before

    async def ask(
        self,
        items: Sequence[Item],
        build: Callable[[Item], Awaitable[dict[str, Any]]],
        usage: Usage,
        ended: Callable[[], None],
    ) -> list[Outcome]:
        """Asks all, then once more those whose failure may have passed.

        If too many fail in a row, those of the calls before counted, the others are not asked: what this call has of
        answers is kept, and the others end as failures too. If it has none, that is an error. So it is if all of a call
        fail and nothing was ever answered; a single prompt that is refused may be at fault itself.

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
                if isinstance(outcome, Failure):
                    self._failed(outcome)
                elif isinstance(outcome, Reply) and not outcome.kind:  # one that was filtered says nothing of others
                    replies += 1
                    self._row.clear()

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
            self._check_some_answered(outcomes)
        except GiveUp as reason:
            self._row.clear()  # the next call finds out anew
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
                self._pace.hold(min(outcome.retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS))
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
        body = raw.http_response.content
        usage.responses[raw.http_response.status_code] += 1
        try:
            reply = read_reply(body, self._clean)
        except MalformedReply as error:
            return self._unreadable(body, str(error))
        usage.prompt_tokens += reply.prompt_tokens
        usage.completion_tokens += reply.completion_tokens
        if reply.kind in PASSING:
            return Failure(reply.kind, reply.completion.error.removeprefix(f"{reply.kind}: "), retry=True)
        self._replied = True
        return reply

    def _unreadable(self, body: bytes, message: str) -> Failure:
        if not is_html(body):
            return Failure("malformed", message, retry=True)
        self._pages += 1
        message = f"expected JSON from {self.url}, got an HTML page: {excerpt(body, self._clean)}"
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
        self._row[failure.kind] += 1
        if self._row.total() >= self._limits.give_up_after:
            raise GiveUp(f"{self.url}: {self._row.total()} requests in a row failed {self._told(self._row, failure)}")

    def _check_some_answered(self, outcomes: Sequence[Outcome]) -> None:
        """Stops the call if all of it failed and nothing was ever answered: more of the same would fail too."""
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        if self._replied or not failures or len(failures) < len(outcomes):
            return
        if [failure.kind for failure in failures] == ["bad_request"]:
            return  # perhaps of this prompt
        kinds = Counter(failure.kind for failure in failures)
        raise GiveUp(f"{self.url}: all {len(failures)} requests failed {self._told(kinds, failures[-1])}")

    def _told(self, kinds: Counter[str], last: Failure) -> str:
        counts = ", ".join(f"{kind} x {count}" for kind, count in kinds.most_common())
        return f"({counts}), the last one with {last.text}. {self._advice(last)}"

    def _advice(self, failure: Failure) -> str:
        if failure.kind == "access":
            return f"Check {self._key_hint}, the account, the model's name, and base_url, which usually ends in /v1"
        if failure.kind == "quota":
            return "The account has nothing left; pay it or use another key"
        if failure.kind == "bad_request":
            return "Check sampling, token_parameter, send_seed and extra_body: endpoints refuse fields they do not know"
        if failure.kind == "html":
            return "A login page or a proxy's stands before the endpoint: log in again, or ask it without the proxy"
        return "Run again later, or raise give_up_after, max_attempts or timeout_seconds"

    def _clean(self, text: str) -> str:
        for written in (self._key, self._key.replace("/", "\\/")):  # the second as some servers write JSON
            text = text.replace(written, "***") if written else text
        return text


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
