# SPDX-License-Identifier: Apache-2.0
"""Finds ranks that are gone, while the main thread may wait for them.

A backend that waits for a lost rank is silent: NCCL, and gloo where a host vanished with its connections open, wait
until the time-out of the process group, 30 minutes unless the strategy says otherwise. When they do speak, they do not
say which rank it was. So every rank writes a heartbeat to the job's key-value store and reads those of the others.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NoReturn

from torch.distributed import Store  # type: ignore[attr-defined]

from medvlt.distributed import GO_ON, current_phase, in_phase

EXIT_CODE = os.EX_TEMPFAIL
"""With which a process ends whose job has lost a rank (75, "temporary failure"): nothing is wrong with the command."""

SILENCE_SECONDS = 45.0
"""How long a rank may be silent before it counts as lost."""

BEAT_SECONDS = 2.0
"""Between two heartbeats."""

FAILED_BEATS = 3
"""How many heartbeats after a rank has ended with an error of its own the others end, if nothing else ends them."""

_starts = itertools.count()  # the same on all ranks; heartbeats of an earlier run in this process do not count


@dataclass(frozen=True)
class Finding:
    """Why a process has to end because of another rank.

    Attributes:
        message: Which rank is gone, and how to go on.
        code: With which the process ends: `EXIT_CODE`, or 1 if that rank had an error of its own, which would come
            again.
    """

    message: str
    code: int = EXIT_CODE


def note_finding(error: BaseException, finding: Finding) -> None:
    """Keeps a finding with the error that led to it."""
    error.medvlt_finding = finding  # type: ignore[attr-defined]
    error.add_note(finding.message)


def noted_finding(error: BaseException) -> Finding | None:
    """Returns what was kept with an error, or with one that it came in the wake of."""
    cause: BaseException | None = error
    while cause is not None:
        finding = getattr(cause, "medvlt_finding", None)
        if isinstance(finding, Finding):
            return finding
        cause = cause.__cause__ or cause.__context__
    return None


def end_process(finding: Finding) -> NoReturn:
    """Ends the process at once, from any thread: the main one may hang in a collective that never returns."""
    os.write(2, f"medvlt: error: {finding.message}\n".encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(finding.code)


@dataclass(frozen=True)
class Beat:
    """What a rank last said of itself.

    Attributes:
        number: Grows with every heartbeat.
        host: Its name.
        phase: What the rank is doing.
        ended: None while it runs, "" once it has ended well, else why it ended.
        failed: Whether that was an error of its own, and not a signal or a key.
    """

    number: int
    host: str
    phase: str
    ended: str | None = None
    failed: bool = False


NEVER = Beat(0, "", "")
SHOWN = 4
"""Ranks that a message names."""


class Watchdog:
    """Ends this process with a message if another rank is silent for too long.

    One thread writes and reads heartbeats, a second one judges: the store itself may hang. Silence is counted in rounds
    of the second thread, not by clocks, which differ between hosts, and a process that was stopped for a while does not
    take the others for dead. The main thread may compute, compile or wait in a debugger as long as it likes.

    Args:
        store: Of the job, on a connection of its own (`Store.clone`): the main thread may be waiting in the first one.
        rank: Of this process.
        ranks: How many there are.
        silence_seconds: How long a rank may be silent.
        beat_seconds: Between two heartbeats.
        end: Called in a thread when a rank is lost, or has ended with an error of its own a few heartbeats ago.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        ranks: int,
        *,
        silence_seconds: float = SILENCE_SECONDS,
        beat_seconds: float = BEAT_SECONDS,
        end: Callable[[Finding], None] = end_process,
    ) -> None:
        self.beat_seconds = beat_seconds
        self.silence_rounds = math.ceil(silence_seconds / beat_seconds)
        self._store = store
        self._rank = rank
        self._end = end
        prefix = f"medvlt/watchdog/{next(_starts)}"
        self._keys = [f"{prefix}/{number}" for number in range(ranks)]
        self._number = 0
        self._ended: str | None = None
        self._own_error = False
        self._beats: dict[int, Beat] = {}  # last read, of this rank too
        self._store_error = ""
        self._next, self._fresh, self._said, self._quiet, self._stop = (threading.Event() for _ in range(5))
        self._threads = [
            threading.Thread(target=target, name=f"watchdog {target.__name__}", daemon=True)
            for target in (self._exchange, self._judge)
        ]

    def start(self) -> None:
        """Begins to write and to watch."""
        for thread in self._threads:
            thread.start()

    def find_lost(self) -> Finding:
        """Returns which ranks are gone, once a backend has said that one is. Takes little more than a heartbeat."""
        self._refresh()
        self._refresh()  # the first may have begun before the error
        before = self._beats
        deadline = time.monotonic() + self.beat_seconds + 1
        while time.monotonic() < deadline and not (self._store_error or self._failed()):
            self._refresh()
        silent = [
            rank
            for rank in range(len(self._keys))
            if rank not in self._beats
            or (self._beats[rank].ended is None and self._beats[rank].number == before.get(rank, NEVER).number)
        ]
        return self._finding(self._failed() or silent, self.beat_seconds + 1)

    def leave(self, reason: str = "", *, failed: bool = False) -> None:
        """Says goodbye and stops watching.

        Rank 0, whose process may keep the store, waits until the others have left too, or could have read the reason.

        Args:
            reason: Why the rank ends before its work is done; empty if it is done.
            failed: Whether the reason is an error of this rank's own.
        """
        self._quiet.set()
        self._own_error = failed
        self._ended = reason
        self._next.set()
        self._said.wait(self.beat_seconds)
        rounds = 1 if reason else self.silence_rounds
        deadline = time.monotonic() + rounds * self.beat_seconds + 1
        while self._rank == 0 and not self._store_error and time.monotonic() < deadline and not self._all_ended():
            self._refresh()
        self._stop.set()
        self._next.set()
        for thread in self._threads:
            thread.join(1)

    def _exchange(self) -> None:
        while not self._stop.is_set():
            self._next.clear()
            try:
                self._write()
                self._read()
            except RuntimeError as error:  # a broken connection stays broken, and torch would say so every time
                self._store_error = str(error) or type(error).__name__
                self._fresh.set()
                return
            self._fresh.set()
            self._next.wait(self.beat_seconds)

    def _write(self) -> None:
        self._number += 1
        beat = Beat(self._number, socket.gethostname(), current_phase(), self._ended, self._own_error)
        self._store.set(self._keys[self._rank], json.dumps(asdict(beat)))
        if beat.ended is not None:
            self._said.set()

    def _read(self) -> None:
        known = [rank for rank, key in enumerate(self._keys) if rank in self._beats or self._store.check([key])]
        values = self._store.multi_get([self._keys[rank] for rank in known])
        self._beats = {rank: Beat(**json.loads(value)) for rank, value in zip(known, values, strict=True)}

    def _refresh(self) -> None:
        """Waits for an exchange, and a moment so that the others come to theirs."""
        self._fresh.clear()
        self._next.set()
        self._fresh.wait(self.beat_seconds)
        self._stop.wait(0.1)

    def _judge(self) -> None:
        """Counts the rounds in which a rank has said nothing new; one that has said nothing at all may be starting."""
        numbers: dict[int, int] = {}
        rounds: dict[int, int] = {}
        while not self._stop.wait(self.beat_seconds):
            for rank, beat in self._beats.items():
                rounds[rank] = rounds.get(rank, 0) + 1 if beat.number == numbers.get(rank) else 0
                numbers[rank] = beat.number
            lost = [rank for rank, beat in self._beats.items() if self._is_lost(beat, rounds.get(rank, 0))]
            if lost and rounds.get(self._rank, 0) > 2:  # a little after the last news of the others
                lost.append(self._rank)
            if self._rank in lost and self._beats.get(0, NEVER).ended == "":
                return  # the store went with rank 0, whose work is done
            if lost and not self._quiet.is_set():
                self._end(self._finding(lost, self.silence_rounds * self.beat_seconds))
                return

    def _is_lost(self, beat: Beat, rounds: int) -> bool:
        """Whether a rank with this last heartbeat, so many rounds ago, will not come again before its work is done."""
        return beat.ended != "" and rounds >= (FAILED_BEATS if beat.failed else self.silence_rounds)

    def _failed(self) -> list[int]:
        return [rank for rank, beat in self._beats.items() if beat.ended]

    def _all_ended(self) -> bool:
        return all(rank in self._beats and self._beats[rank].ended is not None for rank in range(len(self._keys)))

    def _finding(self, lost: list[int], seconds: float) -> Finding:
        """Says who is gone; a rank whose own heartbeats do not come back cannot reach the store."""
        here = f"This is rank {self._rank} (host {socket.gethostname()}){in_phase()}"
        others = [rank for rank in range(len(self._keys)) if rank != self._rank]
        reasons = [rank for rank in lost if rank in self._beats and self._beats[rank].ended]
        failed = [rank for rank in reasons if self._beats[rank].failed]
        if reasons:
            told = failed or reasons
            what = "; ".join(f"{self._words(rank)} ended: {self._beats[rank].ended}" for rank in told[:SHOWN])
        elif self._store_error or self._rank in lost:
            agent = _agent_keeps_store()
            keeper = "torchrun's agent on the first node" if agent else self._words(0)
            heard = [rank for rank in others if agent or rank != 0]
            what = (
                f"{keeper}, which keeps the store of the job, has ended or cannot be reached "
                f"({' '.join(self._store_error.split())[:100] or 'no answer'})"
                + (f"; the others when last heard of: {self._list(heard)}" if heard else "")
            )
        elif lost:
            what = f"{self._list(lost)} has ended or cannot be reached: nothing heard for {seconds:g} s"
        else:
            what = f"all ranks are alive, and one did not come in time: {self._list(others)}"
        return Finding(f"{what}. {here}", code=1) if failed else Finding(f"{what}. {here}; {GO_ON}")

    def _list(self, ranks: list[int]) -> str:
        more = f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else ""
        return ", ".join(map(self._words, ranks[:SHOWN])) + more

    def _words(self, rank: int) -> str:
        if rank not in self._beats:
            return f"rank {rank} (before its first heartbeat)"
        phase = self._beats[rank].phase
        return f"rank {rank} (host {self._beats[rank].host}{f', last in phase {phase}' if phase else ''})"


def _agent_keeps_store() -> bool:
    """Whether torchrun's agent, not rank 0, keeps the store; its variable for the processes it starts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
