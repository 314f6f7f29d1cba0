# SPDX-License-Identifier: Apache-2.0
"""A stopwatch with named phases."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Phases:
    """Adds up the seconds spent in each phase; one phase at a time."""

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
        self._seconds = {}
        self._phase, self._since = phase, time.monotonic()

    def enter(self, phase: str) -> None:
        """Ends the present phase and begins another; does nothing if the watch was not started."""
        if self._phase is None:
            return
        now = time.monotonic()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def stop(self) -> dict[str, float]:
        """Ends the present phase and returns the seconds of each."""
        if self._phase is not None:
            self.enter(self._phase)
        self._phase = None
        return self._seconds


def phase_metrics(seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns `seconds/{phase}`, their sum as `seconds/iteration`, and `share/{phase}` of that sum."""
    total = sum(seconds.values())
    values = {f"seconds/{name}": value for name, value in seconds.items()} | {"seconds/iteration": total}
    return values | {f"share/{name}": value / total for name, value in seconds.items()}
