# SPDX-License-Identifier: Apache-2.0
"""Ranks that end or fall silent, as threads with one store, and as processes where one is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from cpu_strategies import free_port

from medvlt.distributed import enter_phase
from medvlt.watchdog import EXIT_CODE, Finding, Watchdog

BEAT = 0.05
HOST = os.uname().nodename


@dataclass
class Rank:
    """A watchdog whose process is not ended, and what it said."""

    watchdog: Watchdog
    findings: list[Finding] = field(default_factory=list)

    def until(self, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        while not self.findings and time.monotonic() < deadline:
            time.sleep(BEAT)
        return "".join(finding.message for finding in self.findings)


class Store:
    """A store that can be cut off, as a network is."""

    def __init__(self, store: dist.HashStore) -> None:
        self.store = store
        self.fault = ""
        self.hangs = False

    def __getattr__(self, name: str) -> object:
        while self.hangs:
            time.sleep(BEAT)
        if self.fault:
            raise dist.DistNetworkError(self.fault)
        return getattr(self.store, name)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Rank]]:
    monkeypatch.setattr("medvlt.watchdog._starts", iter([0] * 3))  # one job; each process counts for itself
    store, made = dist.HashStore(), []
    for rank in range(3):
        findings: list[Finding] = []
        watchdog = Watchdog(Store(store), rank, 3, silence_seconds=10 * BEAT, beat_seconds=BEAT, end=findings.append)  # type: ignore[arg-type]
        made.append(Rank(watchdog, findings))
    enter_phase("update")
    for rank in made:
        rank.watchdog.start()
    time.sleep(4 * BEAT)
    yield made
    for rank in made:
        rank.watchdog._store.hangs = False  # type: ignore[attr-defined]
        rank.watchdog._stop.set()


def stop(rank: Rank) -> None:
    """As SIGKILL would, without a goodbye."""
    rank.watchdog._stop.set()


def test_a_silent_rank_is_named_by_all_others(ranks: list[Rank]) -> None:
    stop(ranks[1])
    for rank in (0, 2):
        message = ranks[rank].until(5)
        assert message.startswith(f"rank 1 (host {HOST}, last in phase update) has ended or cannot be reached")
        assert f"This is rank {rank} (host" in message
        assert "--ckpt_path last" in message
    assert not ranks[1].findings
    assert [ranks[rank].findings[0].code for rank in (0, 2)] == [EXIT_CODE] * 2


def test_ranks_that_are_done_may_be_silent(ranks: list[Rank]) -> None:
    ranks[1].watchdog.leave()
    ranks[2].watchdog.leave()
    assert not ranks[0].until(20 * BEAT)
    begin = time.monotonic()
    ranks[0].watchdog.leave()  # the others have left, so it need not wait
    assert time.monotonic() - begin < 1
    assert not any(thread.is_alive() for rank in ranks for thread in rank.watchdog._threads)


def test_the_first_rank_keeps_the_store_until_the_others_are_done(ranks: list[Rank]) -> None:
    ranks[1].watchdog.leave()
    begin = time.monotonic()
    ranks[0].watchdog.leave()  # rank 2 goes on
    assert 10 * BEAT <= time.monotonic() - begin < 10


def test_a_rank_that_failed_says_why(ranks: list[Rank]) -> None:
    """Its error would come again: nobody is told to go on, and nobody waits until silence counts as loss."""
    for rank in ranks:
        rank.watchdog.silence_rounds = 10**6
    ranks[2].watchdog.leave("DataError: a bad picture", failed=True)
    found = ranks[0].watchdog.find_lost()  # at once, as when gloo says that a connection is closed
    assert "rank 2 (host" in found.message
    assert "ended: DataError: a bad picture" in found.message
    assert "DataError: a bad picture" in ranks[1].until(5)  # and where nothing says so
    for finding in (found, *ranks[1].findings):
        assert finding.code == 1
        assert "go on" not in finding.message


def test_a_rank_that_was_told_to_end_is_no_failure(ranks: list[Rank]) -> None:
    enter_phase("")
    ranks[2].watchdog.leave("SIGTERMException: ")
    found = ranks[0].watchdog.find_lost()
    assert found.message.startswith(f"rank 2 (host {HOST}) ended: SIGTERMException")
    assert f"This is rank 0 (host {HOST}); go on from the last checkpoint" in found.message
    assert found.code == EXIT_CODE


def test_the_lost_rank_is_found_soon_once_one_is_known_to_be_lost(ranks: list[Rank]) -> None:
    stop(ranks[1])
    found = ranks[0].watchdog.find_lost().message
    assert found.startswith("rank 1 (host")
    assert "rank 2" not in found


def test_when_none_is_lost_it_says_what_they_do(ranks: list[Rank]) -> None:
    found = ranks[0].watchdog.find_lost().message
    assert found.startswith("all ranks are alive, and one did not come in time: rank 1 (host")


@pytest.mark.parametrize("how", ["gone", "hangs"])
@pytest.mark.parametrize("agent", [True, False])
def test_a_store_that_is_gone_or_silent(
    ranks: list[Rank], how: str, agent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", str(agent))
    stop(ranks[0])
    store = ranks[1].watchdog._store
    if how == "gone":
        store.fault = "Broken pipe"  # type: ignore[attr-defined]
    else:
        store.hangs = True  # type: ignore[attr-defined]
    message = ranks[1].until(5)
    keeper = "torchrun's agent on the first node" if agent else f"rank 0 (host {HOST}, last in phase update)"
    assert message.startswith(f"{keeper}, which keeps the store of the job, has ended or cannot be reached")
    assert ("Broken pipe" if how == "gone" else "no answer") in message
    assert "rank 2 (host" in message


def test_a_store_that_went_with_a_rank_that_was_done_is_no_loss(ranks: list[Rank]) -> None:
    ranks[2].watchdog.leave()
    ranks[0].watchdog.leave()
    ranks[1].watchdog._store.fault = "Broken pipe"  # type: ignore[attr-defined]
    assert not ranks[1].until(20 * BEAT)


def wait_for_each_other(rank: int, port: int) -> None:
    """What a process does that waits for ever: in a collective, with a lock on nothing."""
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank, timeout=timedelta(minutes=9)
    )
    store = dist.distributed_c10d._get_default_store().clone()
    Watchdog(store, rank, 2, silence_seconds=3, beat_seconds=0.2).start()
    enter_phase("sync")
    print("ready", flush=True)
    if rank == 1:
        dist.all_reduce(torch.ones(1))
    time.sleep(600)


@pytest.mark.slow
def test_a_process_that_hangs_ends_by_itself() -> None:
    """A stopped process keeps its connections open, as a host that vanished does; this one has the store as well."""
    port = free_port()
    code = f"import runpy, sys; runpy.run_path({__file__!r})['wait_for_each_other'](int(sys.argv[1]), {port})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests/support", "."])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment, cwd=Path(__file__).resolve().parents[2],
        )
        for rank in range(2)
    ]  # fmt: skip
    first, second = processes
    try:
        assert [process.stdout and process.stdout.readline() for process in processes] == ["ready\n"] * 2
        time.sleep(1)
        first.send_signal(signal.SIGSTOP)
        _, errors = second.communicate(timeout=40)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert second.returncode == EXIT_CODE
    assert "medvlt: error: rank 0 (host" in errors
    assert "last in phase sync), which keeps the store of the job, has ended or cannot be reached (no answer)" in errors
    assert "This is rank 1 (host" in errors
