# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace

import pytest

from callbacks.phases import Phases
from medvlt.distributed import current_phase


def test_seconds_are_added_up_by_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("callbacks.phases.time", SimpleNamespace(monotonic=lambda: clock.now))
    phases = Phases()
    clock.now = 5.0
    phases.enter("generate")  # not started: validation before the first iteration
    assert not phases.running
    for begin in (10.0, 100.0):  # the second start knows nothing of the first
        clock.now = begin
        phases.start()
        for phase, seconds in (("generate", 1.0), ("score", 4.0), ("sync", 0.5), ("generate", 2.0), ("update", 8.0)):
            clock.now += seconds
            phases.enter(phase)
        assert phases.running
        clock.now += 16.0
        assert phases.stop() == {"sync": 3.0, "generate": 4.0 + 8.0, "score": 0.5, "update": 16.0}
        assert not phases.running
        clock.now += 1000.0
        phases.enter("generate")


def test_messages_know_the_phase_whether_the_watch_runs_or_not() -> None:
    phases = Phases()
    phases.enter("validate")
    assert current_phase() == "validate"
    phases.start()
    assert current_phase() == "sync"
    phases.enter("update")
    phases.stop()
    assert current_phase() == "update"
