# SPDX-License-Identifier: Apache-2.0
"""Rollouts from an OpenAI-compatible endpoint: a teacher behind an API, or a server of one's own."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from medvlt.data.encoder import PromptEncoder
from medvlt.errors import ConfigurationError, DataError, EngineError
from medvlt.imports import require
from medvlt.models.policy import Policy
from medvlt.rollout.base import RolloutEngine
from medvlt.rollout.openai_client import GIVEN_UP, EndpointClient, Outcome
from medvlt.rollout.openai_limits import Limits
from medvlt.rollout.openai_replies import Failure, Reply
from medvlt.rollout.openai_requests import RequestSettings, TokenParameter, request_messages, request_seed
from medvlt.rollout.openai_usage import Usage
from medvlt.rollout.refusal import refuse
from medvlt.types import Completion, RolloutGroup, RolloutKey, Sample, SamplingParams

logger = logging.getLogger(__name__)

BAR_FROM = 200
"""Calls with more requests show a progress bar, on a terminal."""

CLOSING_SECONDS = 10.0
"""Longest wait for requests under way to end when the engine is closed."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        place: Of the question in the call.
        seed: Of the completion.
    """

    place: int
    seed: int


class OpenAIEngine(RolloutEngine):
    """Samples with any endpoint that speaks OpenAI's chat completions, through the official client (extra `api`).

    Each completion is a request of its own with a seed of its own, so that each has a status of its own; greedy
    sampling asks once per question and repeats the completion, as vLLM does. Wording and picture sizes are the prompt
    encoder's, whose `model` may be left out. Whether equal seeds give equal completions is the endpoint's affair: the
    server of vLLM keeps that promise, OpenAI's mostly.

    What may pass (HTTP 408, 409, 425, 429 and 5xx, time-outs, lost connections, replies that cannot be read) is tried
    again, with waits that double, and not before the time in Retry-After; what fails all the same is asked once more
    after all others. A completion that never came has finish reason "error", no text, and the reason in `error`; it
    stays in every denominator. A prompt that the endpoint refuses (HTTP 400, 413, 422) is not tried again.

    The run stops if the endpoint was never reached, refuses key, account, address or model (401, 402, 403, 404), sends
    web pages, fails `limits.give_up_after` times in a row, or in a whole call before it ever answered. Completions of
    the same call that had come by then are kept: the call returns them, the others fail, and the next call finds out
    anew.

    It samples in evaluation only (`validate`, `test`, `predict`): there are no weights to load and no
    log-probabilities.

    Args:
        model: Name of the model at the endpoint.
        base_url: Address, usually ending in /v1; null for the client's default, which is OPENAI_BASE_URL or OpenAI.
        api_key_variable: Environment variable that holds the key; the key itself belongs in no configuration. With
            `base_url`, it need not be set.
        limits: How fast and how often it is asked, as {concurrency: 64, requests_per_minute: 500}.
        token_parameter: Name of the token limit; OpenAI's reasoning models want "max_completion_tokens".
        send_seed: Whether requests carry a seed, in [0, 2**31).
        extra_body: Further fields of every request, as {reasoning_effort: high}, or {return_token_ids: true} for the
            tokens of vLLM's server.
        prompt_price: Of a million prompt tokens; with `completion_price` the log has the cost.
        completion_price: Of a million completion tokens.

    Attributes:
        refused: How many prompts of each kind got no completion at all; see `medvlt.rollout.refusal`.
        usage: Requests, attempts, responses, tokens since the engine was built.

    Raises:
        ConfigurationError: If a setting is out of range, or an address or a variable's name seems to hold a key.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key_variable: str = "OPENAI_API_KEY",
        limits: Limits = Limits(),  # noqa: B008 - frozen
        token_parameter: TokenParameter = "max_tokens",
        send_seed: bool = True,
        extra_body: dict[str, Any] | None = None,
        prompt_price: float | None = None,
        completion_price: float | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", api_key_variable):
            raise ConfigurationError(  # without the value, which may be a key
                "api_key_variable must be the name of an environment variable, as OPENAI_API_KEY, not the key itself"
            )
        check_url(base_url)
        self.model = model
        self.base_url = base_url
        self.api_key_variable = api_key_variable
        self.limits = limits
        self.settings = RequestSettings(model, token_parameter, send_seed, dict(extra_body or {}))
        self.prompt_price = prompt_price
        self.completion_price = completion_price
        self.version = 0
        self.refused: Counter[str] = Counter()
        self.usage = Usage()
        self._encoder: PromptEncoder | None = None
        self._client: EndpointClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def identity(self) -> dict[str, Any]:
        """Returns what the completions depend on besides prompt and sampling; never the key.

        The address is not in it: a server that is started again elsewhere goes on where it was. So the name has to tell
        models apart.
        """
        return {
            "engine": type(self).__name__,
            "model": self.model,
            "send_seed": self.settings.send_seed,
            "extra_body": dict(self.settings.extra_body),
        }

    def start(self, encoder: PromptEncoder, policy: Policy | None) -> None:
        """Takes the encoder, and on the first call makes the client; nothing is sent yet.

        Args:
            encoder: Wording and size of pictures.
            policy: Not used: an endpoint has weights of its own.

        Raises:
            MissingExtraError: If the package `openai` is not installed.
            ConfigurationError: If there is no key and no `base_url`, or the key cannot be sent.
        """
        self._encoder = encoder
        if self._client is not None:
            return
        openai = require("openai", extra="api")
        for name in ("httpx", "httpx2"):  # one line per request, of which there are thousands
            if logging.getLogger(name).level == logging.NOTSET:
                logging.getLogger(name).setLevel(logging.WARNING)
        self._client = EndpointClient(
            openai,
            api_key=self._key(),
            base_url=self._address,
            key_hint=f"the key in the environment variable {self.api_key_variable}",
            limits=self.limits,
        )
        self._loop = asyncio.new_event_loop()  # in a thread of its own: in a notebook this one has a loop already
        self._thread = threading.Thread(target=self._loop.run_forever, name="OpenAIEngine", daemon=True)
        self._thread.start()

    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        """Asks for all completions and waits for them; see the class for what happens to those that fail.

        Raises:
            EngineError: If the engine is not started, or the endpoint cannot be used.
        """
        encoder, client, loop = self._encoder, self._client, self._loop
        if encoder is None or client is None or loop is None:
            raise EngineError("the engine is not started, or was closed; call start(encoder, policy) first")
        each = 1 if params.temperature == 0 else params.n
        asks = [
            Ask(place, request_seed(key, index))
            for place, (_, key) in enumerate(zip(samples, keys, strict=True))
            for index in range(each)
        ]
        if not asks:
            return []
        prompts: dict[int, asyncio.Future[list[dict[str, Any]]]] = {}

        async def build(ask: Ask) -> dict[str, Any]:
            for place in [place for place in prompts if place < ask.place - self.limits.concurrency]:
                del prompts[place]  # its requests hold what they need
            if ask.place not in prompts:
                work = asyncio.to_thread(request_messages, encoder, samples[ask.place])
                prompts[ask.place] = asyncio.ensure_future(work)
            return self.settings.arguments(await prompts[ask.place], params, ask.seed)

        usage, began = Usage(requests=len(asks)), time.monotonic()
        try:
            outcomes = self._wait(loop, lambda ended: client.ask(asks, build, usage, ended), len(asks))
            groups = [
                self._group(sample, outcomes[place * each : (place + 1) * each], params.n, usage)
                for place, sample in enumerate(samples)
            ]
        finally:
            if missing := usage.requests - usage.answered - usage.failed.total() - usage.prompts_refused:
                usage.failed[GIVEN_UP.kind] += missing  # the call ends with an error
            self.usage.add(usage)
        if failed := [(group.sample.uid, c.error) for group in groups for c in group.completions if c.error]:
            logger.warning("%d completions stay empty; the first, of question %s: %s", len(failed), *failed[0])
        logger.info("%s in %.0f s: %s", client.url, time.monotonic() - began, self._summary(usage))
        return groups

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Refuses: the weights at an endpoint cannot be replaced.

        Raises:
            EngineError: Always.
        """
        raise EngineError(
            f"OpenAIEngine samples from {self.model} at an endpoint, whose weights cannot be replaced by those of the "
            "module; use a module without a backbone (RolloutModule), or another engine (VLLMEngine)"
        )

    def sleep(self) -> None:
        """Does nothing: the endpoint is not on this machine's memory."""

    def wake(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Ends what is under way and the connections, and prints the totals: somebody pays for them."""
        client, loop, thread = self._client, self._loop, self._thread
        self._encoder = self._client = self._loop = self._thread = None
        if client is None or loop is None or thread is None:
            return

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await client.close()

        try:
            asyncio.run_coroutine_threadsafe(end(), loop).result(CLOSING_SECONDS)
        except (TimeoutError, CancelledError, OSError) as error:
            logger.warning("the connections to %s did not end in order: %r", client.url, error)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSING_SECONDS)
        if not thread.is_alive():
            loop.close()
        if self.usage.requests:
            line = f"{client.url} in this process: {self._summary(self.usage)}"
            Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)

    @property
    def _address(self) -> str | None:
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or None  # as the client finds it

    def _key(self) -> str:
        check_url(self._address)
        key = os.environ.get(self.api_key_variable, "").strip()
        if not key and self._address is None:
            raise ConfigurationError(
                f"the environment variable {self.api_key_variable} holds no key; set it (export "
                f"{self.api_key_variable}=...), or give base_url for a server that asks for none"
            )
        if not re.fullmatch(r"[\x21-\x7e]*", key):
            raise ConfigurationError(
                f"the key in {self.api_key_variable} holds blanks or letters that cannot be sent; copy it again"
            )
        return key

    def _wait(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Callable[[Callable[[], None]], Coroutine[Any, Any, list[Outcome]]],
        total: int,
    ) -> list[Outcome]:
        """Runs the requests on the loop of the engine, showing how many have ended; cancels them if interrupted."""
        console = Console(stderr=True)
        ended = 0

        def count() -> None:
            nonlocal ended
            ended += 1

        future: Future[list[Outcome]] = asyncio.run_coroutine_threadsafe(work(count), loop)
        try:
            with Progress(console=console, transient=True, disable=total <= BAR_FROM or not console.is_terminal) as bar:
                task = bar.add_task(f"asking {self.model}", total=total)
                while not wait([future], timeout=0.5).done:
                    bar.update(task, completed=ended)
            return future.result()
        except CancelledError as error:
            raise EngineError("the engine was closed while it sampled") from error
        except BaseException:
            future.cancel()
            raise

    def _group(self, sample: Sample, outcomes: Sequence[Outcome], n: int, usage: Usage) -> RolloutGroup:
        """Returns the completions of a question, and counts what became of them."""
        for outcome in outcomes:
            if isinstance(outcome, DataError):
                usage.prompts_refused += len(outcomes)
                return refuse(sample, outcome, n=n, version=self.version, counts=self.refused)
        completions: list[Completion] = []
        prompt: tuple[int, ...] = ()
        kind, failures = "", list[str]()
        for outcome in outcomes:
            if isinstance(outcome, Reply):
                completions.append(outcome.completion)
                prompt = prompt or outcome.prompt_token_ids
                kind = outcome.kind
            elif isinstance(outcome, Failure):
                completions.append(Completion((), "", (), "error", error=outcome.text))
                kind = outcome.kind
            if kind:
                failures.append(kind)
                usage.failed[kind] += 1
            else:
                usage.answered += 1
        if len(failures) == len(completions):
            self.refused[failures[0]] += 1
        return RolloutGroup(sample, prompt, tuple(completions) * (n // len(completions)))

    def _summary(self, usage: Usage) -> str:
        return usage.summary(self.prompt_price, self.completion_price)


def check_url(base_url: str | None) -> None:
    """Refuses an address that no request can go to, or that holds a secret: it is saved with every run.

    Raises:
        ConfigurationError: Without the address where it may hold a secret.
    """
    if base_url is None:
        return
    if {"@", "?", "#"} & set(base_url):
        raise ConfigurationError(
            "base_url must hold no user, password or query, which would be saved with the configuration; give the key "
            "in the environment variable named by api_key_variable"
        )
    try:
        parts = urlsplit(base_url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an end, a port that is none
        valid = False
    if not valid or not re.fullmatch(r"[\x21-\x7e]+", base_url):
        raise ConfigurationError(
            "base_url must begin with http:// or https://, name a host and perhaps a port, and hold neither blanks nor "
            f"letters beyond ASCII; got {base_url!r}"
        )
