# SPDX-License-Identifier: Apache-2.0
"""Training runs of several processes as a cluster starts them: their config, callbacks of the tests, their losses."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

REPOSITORY = Path(__file__).resolve().parents[2]

PYTHON_PATH = os.pathsep.join(map(str, (REPOSITORY, Path(__file__).parent)))
"""For the processes: `medvlt`, and the callbacks here."""


class Losses(Callback):
    """Writes step and loss of every step to a file for each rank, at once."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        with Path(self.folder, f"{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([trainer.global_step, float(trainer.callback_metrics["train/loss"])]) + "\n")


class Killed(Callback):
    """Kills one rank at the start of a step, as the system does to a process that takes too much memory."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            os.kill(os.getpid(), signal.SIGKILL)


class Held(Callback):
    """Holds all ranks at the start of a step until there is a file `go`."""

    def __init__(self, folder: str, step: int) -> None:
        self.folder, self.step = Path(folder), step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            (self.folder / f"held-{trainer.global_rank}").touch()
            while not (self.folder / "go").exists():
                time.sleep(0.05)


def sft_config(model: Path, folder: Path, *further: dict[str, Any], devices: int = 2, nodes: int = 1) -> dict[str, Any]:
    """Returns a config: eight steps of SFT (FSDP2), a checkpoint after every third; losses are written to the folder.

    Args:
        model: Folder of the model.
        folder: For all results.
        further: Callbacks.
        devices: Ranks on a node.
        nodes: How many.
    """
    checkpoints = {"dirpath": str(folder), "every_n_train_steps": 3, "save_last": True, "save_top_k": -1}
    ranks = {"data_parallel_size": devices * nodes, "tensor_parallel_size": 1}
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "devices": devices,
            "num_nodes": nodes,
            "strategy": {"class_path": "ModelParallelStrategy", "init_args": ranks} if devices * nodes > 1 else "auto",
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder),
            "callbacks": [
                {"class_path": "RankWatchdog", "init_args": {"silence_seconds": 8}},
                {"class_path": "AtomicCheckpoint", "init_args": checkpoints},
                {"class_path": "launched.Losses", "init_args": {"folder": str(folder)}},
                *further,
            ],
        },
        "model": {
            "class_path": "SFTModule",
            "init_args": {"backbone": {"name": str(model)}, "optimization": {"learning_rate": 0.001}},
        },
        "data": {
            "class_path": "SFTDataModule",
            "init_args": {
                "encoder": {"model": str(model), "template": "plain"},
                "train": {"class_path": "Phantom", "init_args": {"split": "train", "size": 32, "seed": 1}},
                "global_batch_size": 4,
            },
        },
    }


def losses(folder: Path, rank: int) -> list[tuple[int, float]]:
    """Returns step and loss of every step that the rank has made, in order, those before a resume included."""
    path = folder / f"{rank}.jsonl"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
