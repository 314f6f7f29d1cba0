# SPDX-License-Identifier: Apache-2.0
"""SIGKILL of one of two ranks: the other ends by itself with a message that names it, and the job can be resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from cpu_strategies import free_port
from launched import PYTHON_PATH, losses, sft_config

from medvlt.watchdog import EXIT_CODE

HOST = os.uname().nodename


def start(config: dict[str, Any], folder: Path, *options: str) -> list[subprocess.Popen[str]]:
    """Starts `medvlt fit` on both ranks, as a cluster would: each a process of its own."""
    path = folder / "start.yaml"
    path.write_text(yaml.safe_dump(config))
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "medvlt", "fit", "--config", str(path), *options],
            env={**os.environ, **places, "LOCAL_RANK": str(rank), "PYTHONPATH": PYTHON_PATH},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_job_resumes(tiny_folder: Path, tmp_path: Path) -> None:
    killed = {"class_path": "launched.Killed", "init_args": {"rank": 1, "step": 5}}
    survivor, victim = start(sft_config(tiny_folder, tmp_path, killed), tmp_path)
    _, errors = victim.communicate(timeout=240)
    assert victim.returncode == -signal.SIGKILL, errors
    begin = time.monotonic()
    _, errors = survivor.communicate(timeout=60)
    assert time.monotonic() - begin < 30
    assert survivor.returncode == EXIT_CODE, errors
    last = errors.splitlines()[-1]
    assert last.startswith(f"medvlt: error: rank 1 (host {HOST}, last in phase ")
    assert "has ended or cannot be reached" in last
    assert f"This is rank 0 (host {HOST}) in phase update" in last
    assert "--ckpt_path last" in last

    before = [losses(tmp_path, rank) for rank in range(2)]
    assert [step for step, _ in before[0]] == [1, 2, 3, 4, 5]
    for process in start(sft_config(tiny_folder, tmp_path), tmp_path, "--ckpt_path", "last"):
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    for rank in range(2):
        after = losses(tmp_path, rank)[len(before[rank]) :]
        assert [step for step, _ in after] == [4, 5, 6, 7, 8]  # from the checkpoint of step 3
        assert after[:2] == before[rank][3:]
