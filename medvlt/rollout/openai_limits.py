# SPDX-License-Identifier: Apache-2.0
"""How fast and how often an endpoint is asked."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

from medvlt.errors import ConfigurationError

LONGEST_BACKOFF_SECONDS = 60.0
"""Longest wait that is chosen here."""

LONGEST_RETRY_AFTER_SECONDS = 600.0
"""Longest wait that an endpoint can ask for."""


@dataclass(frozen=True)
class Limits:
    """Bounds on the requests of one process.

    Attributes:
        concurrency: Requests under way at a time, waiting ones included, in [1, 1000].
        requests_per_minute: Attempts that may begin in a minute, evenly spaced; null sets no bound.
        max_attempts: Of one request in one pass, the first included.
        retry_passes: How often the requests of a call that failed are asked again after all others.
        retry_wait_seconds: Wait before the second attempt; it doubles with each further one, up to a minute.
        timeout_seconds: Longest time from the beginning of an attempt to the last byte of its reply.
        connect_timeout_seconds: Longest time to connect.
        give_up_after: Requests failing in a row, for good, after which the others are not asked; the row goes on from
            call to call and ends with an answer.

    Raises:
        ConfigurationError: If one is out of range.
    """

    concurrency: int = 32
    requests_per_minute: float | None = None
    max_attempts: int = 6
    retry_passes: int = 1
    retry_wait_seconds: float = 1.0
    timeout_seconds: float = 600.0
    connect_timeout_seconds: float = 10.0
    give_up_after: int = 32

    def __post_init__(self) -> None:
        for name, valid, rule in (
            ("concurrency", 1 <= self.concurrency <= 1000, "in [1, 1000]"),
            ("requests_per_minute", self.requests_per_minute is None or self.requests_per_minute > 0, "above 0"),
            ("max_attempts", self.max_attempts >= 1, "at least 1"),
            ("retry_passes", self.retry_passes >= 0, "0 or more"),
            ("retry_wait_seconds", self.retry_wait_seconds >= 0, "0 or more"),
            ("timeout_seconds", self.timeout_seconds > 0, "above 0"),
            ("connect_timeout_seconds", self.connect_timeout_seconds > 0, "above 0"),
            ("give_up_after", self.give_up_after >= 1, "at least 1"),
        ):
            if not valid:
                raise ConfigurationError(f"{name} must be {rule}, got {getattr(self, name)}")

    def backoff_seconds(self, attempt: int, retry_after: float | None, chance: float) -> float:
        """Returns how long to wait before the next attempt.

        min(60, retry_wait_seconds * 2^(attempt - 1)) * (1/2 + chance/2), and at least what the endpoint asks for, so
        that requests which failed together do not come back together.

        Args:
            attempt: The one that failed, from 1 on.
            retry_after: Seconds that the endpoint asks for; None if it does not.
            chance: Uniform in [0, 1).
        """
        longest = min(LONGEST_BACKOFF_SECONDS, self.retry_wait_seconds * 2.0 ** min(attempt - 1, 16))
        wait = longest * (0.5 + chance / 2)
        asked = 0.0 if retry_after is None else min(retry_after, LONGEST_RETRY_AFTER_SECONDS)
        return max(wait, asked * (1 + chance / 10))


class Pace:
    """Lets attempts begin: evenly spaced, and none before the time that the endpoint asked for.

    An endpoint that asks one request to wait means all: the others would only be turned away too. Whoever waits for a
    turn has none before it is there, so that what the endpoint asks for meanwhile holds for all that wait.

    Args:
        requests_per_minute: None for no spacing.
    """

    def __init__(self, requests_per_minute: float | None) -> None:
        self._interval = 0.0 if requests_per_minute is None else 60.0 / requests_per_minute
        self._next = 0.0
        self._held_until = 0.0
        self._first = asyncio.Lock()  # held by the first of those that wait; the others come in order
        self.random = random.Random()  # its own: the global one is the trainer's

    def hold(self, seconds: float) -> None:
        """Lets nothing begin for some time."""
        self._held_until = max(self._held_until, time.monotonic() + seconds)

    async def turn(self) -> None:
        """Waits until an attempt may begin."""
        while (wait := self._held_until - time.monotonic()) > 0:
            await asyncio.sleep(wait * (1 + self.random.random() / 10))  # not all in the same moment
        if not self._interval:
            return
        async with self._first:
            begin = time.monotonic()
            while (wait := (begin := max(begin, self._next, self._held_until)) - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            self._next = begin + self._interval
