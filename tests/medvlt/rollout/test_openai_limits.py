# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvlt.errors import ConfigurationError
from medvlt.rollout.openai_limits import Limits, Pace

DEFAULTS = {
    "concurrency": 4,
    "requests_per_minute": None,
    "max_attempts": 6,
    "retry_passes": 1,
    "retry_wait_seconds": 1.0,
    "timeout_seconds": 10.0,
    "connect_timeout_seconds": 1.0,
    "give_up_after": 8,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concurrency", 0),
        ("concurrency", 1001),
        ("requests_per_minute", 0),
        ("max_attempts", 0),
        ("retry_passes", -1),
        ("retry_wait_seconds", -1),
        ("timeout_seconds", 0),
        ("connect_timeout_seconds", 0),
        ("give_up_after", 0),
    ],
)
def test_bad_limits_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be .*, got {value}"):
        Limits(**{**DEFAULTS, name: value})  # type: ignore[arg-type]


def test_waits_double_up_to_a_minute() -> None:
    limits = Limits(**DEFAULTS)  # type: ignore[arg-type]
    assert [limits.backoff_seconds(attempt, None, 1.0) for attempt in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert limits.backoff_seconds(1, None, 0.0) == 0.5
    assert limits.backoff_seconds(10_000, None, 1.0) == 60


@given(st.integers(1, 10_000), st.none() | st.floats(0, 1e9), st.floats(0, 1, exclude_max=True))
def test_waits_are_never_shorter_than_asked(attempt: int, asked: float | None, chance: float) -> None:
    wait = Limits(**DEFAULTS).backoff_seconds(attempt, asked, chance)  # type: ignore[arg-type]
    assert wait >= min(asked or 0.0, 600.0)
    assert 0 <= wait <= 660


def test_attempts_are_evenly_spaced() -> None:
    async def run() -> list[float]:
        pace, begun = Pace(requests_per_minute=3000), []

        async def one() -> None:
            await pace.turn()
            begun.append(time.monotonic())

        await asyncio.gather(*[one() for _ in range(11)])
        return begun

    begun = asyncio.run(run())
    assert begun[-1] - begun[0] >= 10 * 0.02 - 0.005


def test_a_hold_stops_also_those_that_wait_for_their_turn() -> None:
    """They had their place in the row before the endpoint asked to wait; afterwards they are spaced as before."""

    async def run() -> tuple[list[float], float]:
        pace, begun = Pace(requests_per_minute=600), []

        async def one() -> None:
            await pace.turn()
            begun.append(time.monotonic())

        tasks = [asyncio.ensure_future(one()) for _ in range(4)]
        await asyncio.sleep(0.02)  # the first has begun, the second would at 0.1
        held = time.monotonic()
        pace.hold(0.2)
        await asyncio.gather(*tasks)
        return begun, held

    begun, held = asyncio.run(run())
    assert begun[0] <= held
    assert all(moment - held >= 0.2 + 0.1 * place for place, moment in enumerate(begun[1:]))


def test_a_request_that_is_cancelled_in_the_row_does_not_stop_the_others() -> None:
    async def run() -> None:
        pace = Pace(requests_per_minute=3000)
        tasks = [asyncio.ensure_future(pace.turn()) for _ in range(4)]
        await asyncio.sleep(0.005)
        tasks[1].cancel()
        tasks[2].cancel()
        await asyncio.wait_for(tasks[3], 5)

    asyncio.run(run())


def test_nothing_begins_while_the_endpoint_asks_to_wait() -> None:
    async def run() -> float:
        pace = Pace(None)
        await pace.turn()
        pace.hold(0.05)
        pace.hold(0.01)  # a shorter wait does not cut the longer one
        began = time.monotonic()
        await asyncio.gather(*[pace.turn() for _ in range(3)])
        return time.monotonic() - began

    assert asyncio.run(run()) >= 0.05


def test_the_global_random_state_is_left_alone() -> None:
    state = random.getstate()
    Pace(None).random.random()
    assert random.getstate() == state
