# SPDX-License-Identifier: Apache-2.0
"""Two processes (gloo) against one: the same losses and gradients, every benchmark question counted once."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.tensor import DTensor

from callbacks import RolloutCallback
from datamodules import SFTDataModule
from lightning_modules import SFTModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.models.loading import Backbone
from medvlt.models.optimization import Optimization
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.types import SamplingParams


class Recorder(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []
        self.without_pictures = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.without_pictures += args[1].pixel_values is None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None])
        self.gradient_norms.append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))


def train(folder: Path, strategy: Any, devices: int) -> dict[str, Any]:
    """Three steps of two samples each, most of them one text and one picture; then 7 questions of validation."""
    recorder = Recorder()
    rollout = RolloutCallback(ScriptedEngine(["<answer> A </answer>"]), SamplingParams(temperature=0, max_tokens=99))
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, logger=False, enable_progress_bar=False, max_epochs=1,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[recorder, rollout], num_sanity_val_steps=0,
    )  # fmt: skip
    module = SFTModule(Backbone(str(folder)), Optimization(learning_rate=1e-3))
    data = SFTDataModule(
        Phantom("train", 8, seed=1), PromptEncoder(str(folder), template="plain"),
        {"seven": Phantom("test", 7, modality="text"), "one": Phantom("test", 1, modality="text")}, global_batch_size=2,
    )  # fmt: skip
    trainer.fit(module, data)
    return {
        "losses": recorder.losses,
        "norms": recorder.gradient_norms,
        "without_pictures": recorder.without_pictures,
        "counts": [int(trainer.callback_metrics[f"val/{name}/count"]) for name in ("seven", "one")],
        "correct": int(trainer.callback_metrics["val/seven/correct"]),
    }


def work(rank: int, port: int, folder: Path, kind: str, output: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    torch.set_num_threads(1)
    strategy = (
        DDPStrategy(process_group_backend="gloo")
        if kind == "ddp"
        else ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    )
    torch.save(train(folder, strategy, 2), output / f"{rank}.pt")


@pytest.fixture(scope="module")
def alone(tiny_folder: Path) -> dict[str, Any]:
    return train(tiny_folder, "auto", 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_equal_one(kind: str, alone: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, tiny_folder, kind, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert sum(rank["without_pictures"] for rank in ranks) > 0  # else the test would not be about mixed batches
    assert alone["without_pictures"] < sum(rank["without_pictures"] for rank in ranks)
    for rank in ranks:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert rank["norms"] == pytest.approx(alone["norms"], rel=1e-4)
        assert rank["counts"] == alone["counts"] == [7, 1]
        assert rank["correct"] == alone["correct"]
