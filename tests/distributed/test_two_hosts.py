# SPDX-License-Identifier: Apache-2.0
"""Two hosts, simulated by network namespaces with names of their own, run one job; then they lose each other.

The first case is always run, the others with MEDVLT_TEST_HOSTS=all.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from launched import PYTHON_PATH, losses, sft_config

from medvlt.cli import run

ALL = os.environ.get("MEDVLT_TEST_HOSTS") == "all"
ADDRESSES = {"node-1": "10.213.77.1", "node-2": "10.213.77.2"}
ON_HOST = 'mount --bind "$0" /etc/hosts; hostname "$1"; shift; exec "$@"'
"""Run in namespaces of its own, so that neither the names nor the file are seen outside."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """The two hosts and what was started on them."""

    def __init__(self, folder: Path) -> None:
        self.names = folder / "hosts"
        lines = ["127.0.0.1 localhost", *(f"{address} {host}" for host, address in ADDRESSES.items())]
        self.names.write_text("\n".join(lines) + "\n")
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []

    def space(self, host: str) -> str:
        return f"medvlt-{os.getpid()}-{host}"

    def connect(self) -> None:
        for number, (host, address) in enumerate(ADDRESSES.items()):
            ip("netns", "add", self.space(host))
            if number == 0:
                ip("-n", self.space(host), "link", "add", "wire0", "type", "veth", "peer", "name", "wire1")
            else:
                ip("-n", self.space("node-1"), "link", "set", "wire1", "netns", self.space(host))
            ip("-n", self.space(host), "addr", "add", f"{address}/24", "dev", f"wire{number}")
            for link in ("lo", f"wire{number}"):
                ip("-n", self.space(host), "link", "set", link, "up")

    def start(self, host: str, command: Sequence[str], **variables: str) -> subprocess.Popen[str]:
        number = len(self.processes)
        inside = ["unshare", "--uts", "--mount", "sh", "-c", ON_HOST, str(self.names), host, *command]
        with (self.folder / f"{number}.log").open("w") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.space(host), *inside],
                env={**os.environ, "PYTHONPATH": PYTHON_PATH, "PYTHONUNBUFFERED": "1", **variables},
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.processes.append(process)
        return process

    def log(self, number: int) -> str:
        return (self.folder / f"{number}.log").read_text()

    def cut(self) -> None:
        """Takes the link away; no connection is closed by it."""
        ip("-n", self.space("node-2"), "link", "set", "wire1", "down")

    def end(self, host: str) -> None:
        """Ends all that runs on a host, without a word; what torchrun starts has sessions of its own."""
        command = ["ip", "netns", "pids", self.space(host)]
        for pid in subprocess.run(command, check=False, capture_output=True, text=True).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def remove(self) -> None:
        for host in ADDRESSES:
            self.end(host)
            subprocess.run(["ip", "netns", "delete", self.space(host)], check=False, capture_output=True)
        for process in self.processes:
            process.wait()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    try:
        try:
            made.connect()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', '') or error}")
        yield made
    finally:
        made.remove()


def torchrun(hosts: Hosts, command: Sequence[str], *, devices: int) -> None:
    """The same command on both hosts; the second learns from the first which ranks it has."""
    for host in ADDRESSES:
        launcher = (
            "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(devices),
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "node-1:29500", "--rdzv-id", "test",
        )  # fmt: skip
        hosts.start(host, [sys.executable, *launcher, *command])


def srun(hosts: Hosts, command: Sequence[str], *, devices: int) -> None:
    """A process for each rank with the variables that srun gives it."""
    for node, host in enumerate(ADDRESSES):
        for local in range(devices):
            variables = {
                "SLURM_JOB_ID": "1234567", "SLURM_JOB_NAME": "medvlt", "SLURM_NODELIST": "node-[1-2]",
                "SLURM_NNODES": "2", "SLURM_NTASKS": str(2 * devices), "SLURM_NTASKS_PER_NODE": str(devices),
                "SLURM_PROCID": str(node * devices + local), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(node),
            }  # fmt: skip
            hosts.start(host, [sys.executable, *command], **variables)


def until(holds: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(holds())


def cases() -> Iterator[Any]:
    yield torchrun, 1, "link"
    for case in ((torchrun, 2, "host"), (srun, 1, "host"), (srun, 2, "link")):
        yield pytest.param(*case, marks=pytest.mark.skipif(not ALL, reason="MEDVLT_TEST_HOSTS is not all"))


@pytest.mark.slow
@pytest.mark.parametrize(("launch", "devices", "loss"), cases())
def test_two_hosts_train_as_one_process_does_and_end_when_they_lose_each_other(
    hosts: Hosts,
    launch: Any,
    devices: int,
    loss: str,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    held = {"class_path": "launched.Held", "init_args": {"folder": str(two), "step": 5}}
    for folder, config in (
        (one, sft_config(tiny_folder, one, devices=1)),
        (two, sft_config(tiny_folder, two, held, devices=devices, nodes=2)),
    ):
        folder.mkdir()
        (folder / "start.yaml").write_text(yaml.safe_dump(config))
    launch(hosts, ["-m", "medvlt", "fit", "--config", str(two / "start.yaml")], devices=devices)
    monkeypatch.setattr(sys, "argv", ["medvlt"])
    run(["fit", "--config", str(one / "start.yaml")])  # meanwhile
    ranks = 2 * devices
    logs = [partial(hosts.log, number) for number in range(len(hosts.processes))]
    on_first, on_second = logs[: len(logs) // 2], logs[len(logs) // 2 :]
    everywhere = [two / f"held-{rank}" for rank in range(ranks)]
    assert until(lambda: all(path.exists() for path in everywhere), 240), "\n".join(log() for log in logs)
    expected = [value for _, value in losses(one, 0)[:5]]
    for rank in range(ranks):
        assert [value for _, value in losses(two, rank)] == pytest.approx(expected, rel=1e-4)

    begin = time.monotonic()
    hosts.cut() if loss == "link" else hosts.end("node-2")
    (two / "go").touch()
    for log in on_first:
        lost = ", ".join(rf"rank {rank} \(host node-2, last in phase \w+\)" for rank in range(devices, ranks))
        assert re.search(f"{lost} has ended or cannot be reached", message(log))
        assert "(host node-1) in phase update; go on from the last checkpoint" in message(log)
    for log in on_second if loss == "link" else ():
        keeper = "torchrun's agent on the first node" if launch is torchrun else "rank 0 (host node-1, last in phase"
        assert f"error: {keeper}" in message(log)
        assert "which keeps the store of the job, has ended or cannot be reached" in message(log)
        assert "(host node-2) in phase update; go on from the last checkpoint" in message(log)
    # torchrun itself never ends on a node that its first one has become unreachable from
    for process in hosts.processes[: len(logs) // 2] if launch is torchrun else hosts.processes:
        assert process.wait(30) != 0
    assert time.monotonic() - begin < 60


def message(log: Callable[[], str]) -> str:
    """Returns the last line with which a process says why it ends."""
    until(lambda: "medvlt: error: " in log(), 60)
    return next(line for line in reversed(log().splitlines()) if "medvlt: error: " in line)
