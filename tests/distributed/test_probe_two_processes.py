# SPDX-License-Identifier: Apache-2.0
"""`medvlt predict` with a store, killed at random moments and started again with one process, then with two."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from medvlt.curation.ledger import Ledger
from medvlt.rollout.transformers import TransformersEngine
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams

PRELOADED = ["medvlt.cli", "pyarrow.parquet", "datasets", "peft", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"]
"""Imported once, so that a run starts in a second and not in ten."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)

BATCH, N = 6, 4


class NotingEngine(TransformersEngine):
    """Writes down every completion it is asked for, before it samples."""

    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        asked = [
            [sample.uid, key.first + i] for sample, key in zip(samples, keys, strict=True) for i in range(params.n)
        ]
        with open(f"{os.environ['MEDVLT_TEST_ASKED']}.{os.getpid()}", "a", encoding="utf-8") as file:
            file.write(json.dumps(asked) + "\n")
        groups = super().generate(samples, params, keys=keys)
        time.sleep(0.05)  # so that a kill finds the run at work
        return groups


def predict(config: str, environment: dict[str, str]) -> None:
    os.environ.update(environment, OMP_NUM_THREADS="1")
    import torch

    torch.set_num_threads(1)
    from medvlt.__main__ import main

    main(["predict", "--config", config])


class Probe:
    """A probe of a random tiny model in a folder of its own."""

    def __init__(self, folder: Path, model: Path, sources: dict[str, Any]) -> None:
        self.folder, self.runs = folder, 0
        self.settings = {
            "seed_everything": 0,
            "trainer": {
                "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
                "default_root_dir": str(folder / "out"),
                "callbacks": [
                    {"class_path": "RolloutCallback", "init_args": {
                        "engine": {"class_path": f"{__name__}.NotingEngine", "init_args": {"batch_size": 64}},
                        "sampling": {"n": N, "temperature": 1.0, "max_tokens": 16},
                        "store": str(folder / "store"),
                    }},
                    {"class_path": "PassCountLedger", "init_args": {
                        "path": str(folder / "ledger.parquet"), "probe": "tiny",
                    }},
                ],
            },
            "model": {"class_path": "SFTModule", "init_args": {"backbone": {"name": str(model)}}},
            "data": {"class_path": "BenchmarkDataModule", "init_args": {
                "encoder": {"model": str(model), "template": "plain", "images": {"max_pixels": 16 * 784}},
                "benchmarks": sources, "batch_size": BATCH,
            }},
        }  # fmt: skip

    def start(self, ranks: int) -> tuple[Path, list[BaseProcess]]:
        """Starts the command in one or two processes, as torchrun would."""
        self.runs += 1
        folder = self.folder / str(self.runs)
        folder.mkdir(parents=True)
        strategy = {
            "class_path": "lightning.pytorch.strategies.DDPStrategy",
            "init_args": {"process_group_backend": "gloo"},
        }
        settings = self.settings | {
            "trainer": self.settings["trainer"] | {"devices": ranks, "strategy": strategy if ranks > 1 else "auto"}  # type: ignore[operator]
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes: list[BaseProcess] = []
        for rank in range(ranks):
            variables = {"MEDVLT_TEST_ASKED": str(folder / "asked")}
            if ranks > 1:
                variables |= {
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0",
                }  # fmt: skip
            process = CONTEXT.Process(target=predict, args=(str(folder / "config.yaml"), variables))
            process.start()
            processes.append(process)
        return folder, processes

    def finish(self, ranks: int) -> Counter[tuple[str, int]]:
        """Runs to the end; returns what the engine was asked for."""
        folder, processes = self.start(ranks)
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * ranks
        return asked_in(folder)

    def kill(self, ranks: int, shards: int, seconds: float) -> Counter[tuple[str, int]]:
        """Kills a run that long after it has written so many shards; returns what the engine was asked for."""
        before = len(self.shards())
        folder, processes = self.start(ranks)
        limit = time.monotonic() + 120
        while len(self.shards()) < before + shards:
            assert all(process.exitcode is None for process in processes), "the run ended by itself"
            assert time.monotonic() < limit
            time.sleep(0.002)
        time.sleep(seconds)
        for process in processes:
            os.kill(process.pid or 0, signal.SIGKILL)
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [-signal.SIGKILL] * ranks
        return asked_in(folder)

    def shards(self) -> list[Path]:
        return list((self.folder / "store").glob("*.parquet"))

    def stored(self) -> dict[tuple[str, int], Any]:
        """Every stored completion with its prompt; fails if one is there twice."""
        found: dict[tuple[str, int], Any] = {}
        for path in self.shards():
            for row in pq.read_table(path).to_pylist():
                for completion in row["completions"]:
                    key = (row["uid"], completion["sample"])
                    assert key not in found
                    found[key] = (row["benchmark"], row["digest"], row["prompt_token_ids"], completion)
        return found

    def ledger(self) -> dict[str, Any]:
        ledger = Ledger.read(self.folder / "ledger.parquet")
        return {name: ledger.column(f"tiny/{name}") for name in ("n", "strict", "robust", "mean_tokens")}


def asked_in(folder: Path) -> Counter[tuple[str, int]]:
    lines = [line for path in folder.glob("asked.*") for line in path.read_text().splitlines()]
    return Counter((uid, number) for line in lines for uid, number in json.loads(line))


def generated() -> dict[str, Any]:
    return {
        "texts": {"class_path": "Phantom", "init_args": {"split": "train", "size": 64, "modality": "text"}},
        "pictures": {"class_path": "Phantom", "init_args": {"split": "train", "size": 40, "modality": "picture"}},
    }


@pytest.mark.slow
def test_killed_three_times_it_ends_as_if_undisturbed(tiny_folder: Path, tmp_path: Path) -> None:
    sources = generated()
    undisturbed = Probe(tmp_path / "undisturbed", tiny_folder, sources)
    everything = undisturbed.finish(1)
    assert set(everything.values()) == {1}

    probe, moments = Probe(tmp_path / "killed", tiny_folder, sources), random.Random()
    for ranks in (1, 1, 2, 2):
        before = probe.stored().keys()
        last = probe.runs == 3
        asked = probe.finish(ranks) if last else probe.kill(ranks, moments.randrange(1, 4), moments.uniform(0, 0.1))
        assert not asked.keys() & before  # what was stored is not sampled again
        assert set(asked.values()) == {1}
        lost = asked.keys() - probe.stored().keys()
        assert len(lost) <= (0 if last else ranks * BATCH * N)  # what a kill costs: the batch of each process
        assert (probe.folder / "ledger.parquet").exists() == last
    assert probe.stored() == undisturbed.stored()
    assert probe.stored().keys() == everything.keys()
    assert probe.ledger() == undisturbed.ledger()
    assert not probe.finish(1)  # nothing is left to ask
