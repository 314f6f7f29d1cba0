# SPDX-License-Identifier: Apache-2.0
"""A stopwatch with named phases, which also says what this rank is doing."""

from __future__ import annotations

import time
from collections.abc import Mapping

from medvlt.distributed import enter_phase


class Phases:
    """Adds up the seconds spent in each phase, one at a time, and names it for messages about lost ranks."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._phase: str | None = None
        self._since = 0.0

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._phase is not None

    def start(self, phase: str = "sync") -> None:
        """Begins anew in a phase."""
        enter_phase(phase)
        self._seconds = {}
        self._phase, self._since = phase, time.monotonic()

    def enter(self, phase: str) -> None:
        """Ends the present phase and begins another; counts no seconds if the watch was not started."""
        enter_phase(phase)
        if self._phase is not None:
            self._count()
            self._phase = phase

    def stop(self) -> dict[str, float]:
        """Ends the present phase and returns the seconds of each."""
        if self._phase is not None:
            self._count()
        self._phase = None
        return self._seconds

    def _count(self) -> None:
        assert self._phase is not None
        now = time.monotonic()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._since = now


def phase_metrics(seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns `seconds/{phase}`, their sum as `seconds/iteration`, and `share/{phase}` of that sum."""
    total = sum(seconds.values())
    values = {f"seconds/{name}": value for name, value in seconds.items()} | {"seconds/iteration": total}
    return values | {f"share/{name}": value / total for name, value in seconds.items()}
