# SPDX-License-Identifier: Apache-2.0
"""`medvlt validate` killed twice and started again, with one process and with two: the run of an undisturbed one."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cpu_strategies import free_port

from medvlt.evaluation.report import report
from medvlt.evaluation.runs import read_run
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["medvlt.cli", "pyarrow.parquet", "datasets", "transformers.models.qwen2_5_vl"])

TEXTS = ["<think> x </think>\n<answer> A </answer>", "<think> y </think>\n<answer> B </answer>", "C", "no idea"]


class Unsteady(ScriptedEngine):
    """Answers by the seed, greedy completions too: repeats differ, as those of an endpoint may."""

    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        time.sleep(0.04)  # so that a kill finds the run at work
        return super().generate(samples, replace(params, temperature=1.0), keys=keys)


def validate(config: str, environment: dict[str, str]) -> None:
    os.environ.update(environment, OMP_NUM_THREADS="1")
    import torch

    torch.set_num_threads(1)
    from medvlt.__main__ import main

    main(["validate", "--config", config])


class Evaluation:
    """An evaluation with repeats and a store, all in one folder."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        engine = {"class_path": f"{__name__}.Unsteady", "init_args": {"texts": TEXTS}}
        sampling = {"n": 2, "temperature": 0.0, "max_tokens": 48}
        phantom = {"class_path": "Phantom", "init_args": {"split": "test", "seed": 3}}
        sizes = {"texts": ("text", 30), "pictures": ("picture", 18)}
        self.settings: dict[str, Any] = {
            "trainer": {
                "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
                "default_root_dir": str(folder),
                "callbacks": [
                    {"class_path": "EvaluationRecorder", "init_args": {"pictures": 3}},
                    {"class_path": "RolloutCallback", "init_args": {
                        "engine": engine, "sampling": sampling, "store": True,
                    }},
                ],
            },
            "model": {"class_path": "RolloutModule"},
            "data": {"class_path": "BenchmarkDataModule", "init_args": {
                "encoder": {"model": str(model), "template": "plain"}, "batch_size": 4,
                "benchmarks": {
                    name: phantom | {"init_args": phantom["init_args"] | {"modality": modality, "size": size}}  # type: ignore[operator]
                    for name, (modality, size) in sizes.items()
                },
            }},
        }  # fmt: skip

    def start(self, ranks: int) -> list[BaseProcess]:
        """Starts the command in one or two processes, as torchrun would."""
        settings = self.settings | {"trainer": self.settings["trainer"] | {"devices": ranks}}
        if ranks > 1:
            gloo = {"process_group_backend": "gloo"}
            settings["trainer"]["strategy"] = {
                "class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": gloo,
            }  # fmt: skip
        config = self.folder.with_suffix(".yaml")
        config.write_text(yaml.safe_dump(settings))
        port, processes = str(free_port()), []
        for rank in range(ranks):
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
            process = CONTEXT.Process(target=validate, args=(str(config), place if ranks > 1 else {}))
            process.start()
            processes.append(process)
        return list(processes)

    def finish(self, processes: list[BaseProcess]) -> None:
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * len(processes)

    def kill(self, processes: list[BaseProcess], shards: int) -> None:
        """Kills a run after it has written so many shards, and a moment."""
        before, limit = self.shards(), time.monotonic() + 120
        while self.shards() < before + shards:
            assert all(process.exitcode is None for process in processes), "the run ended by itself"
            assert time.monotonic() < limit
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        for process in processes:
            os.kill(process.pid or 0, signal.SIGKILL)
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [-signal.SIGKILL] * len(processes)
        assert not (self.folder / "run.json").exists()
        assert list(self.folder.glob(".parts.*/*"))  # they must not enter the run

    def shards(self) -> int:
        return len(list((self.folder / "completions").glob("*.parquet")))

    def content(self) -> Any:
        """All that the run has, without its dates."""
        about = json.loads((self.folder / "run.json").read_text())
        del about["started"], about["finished"]
        pictures = {path.name: path.read_bytes() for path in (self.folder / "pictures").iterdir()}
        return about, (self.folder / "completions.jsonl").read_bytes(), pictures

    def report(self) -> dict[str, str]:
        """All files of a report of the run, its dates replaced."""
        about = json.loads((self.folder / "run.json").read_text())
        output = self.folder.parent / "reports" / self.folder.name / "report"
        place = self.folder.rename(self.folder.with_name("run"))  # a report names the folder
        report([str(place)], output=str(output))
        place.rename(self.folder)
        texts = {path.name: path.read_text() for path in output.iterdir()}
        for date in (about["started"], about["finished"]):
            assert date in texts["report.html"]
            texts = {name: text.replace(date, "DATE") for name, text in texts.items()}
        return texts


@pytest.mark.slow
def test_killed_twice_it_writes_the_run_of_an_undisturbed_one(tiny_folder: Path, tmp_path: Path) -> None:
    alone, killed = (Evaluation(tmp_path / name, tiny_folder) for name in ("alone", "killed"))
    alone.finish(alone.start(1))
    killed.kill(killed.start(1), random.randrange(2, 6))
    killed.kill(killed.start(2), random.randrange(2, 6))
    killed.finish(killed.start(2))
    assert killed.content() == alone.content()
    assert killed.report() == alone.report()
    answers = read_run(killed.folder).benchmarks
    assert {name: (found.questions, found.n) for name, found in answers.items()} == {
        "texts": (30, 2),
        "pictures": (18, 2),
    }
    assert any(len(set(labels)) > 1 for labels in answers["texts"].labels)
    assert {path.name for path in killed.folder.iterdir()} >= {"run.json", "completions.jsonl", "pictures"}
    assert not list(killed.folder.glob(".parts.*"))
