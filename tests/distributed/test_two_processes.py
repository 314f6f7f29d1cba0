# SPDX-License-Identifier: Apache-2.0
"""Two processes (gloo) against one: the same losses and gradients, every benchmark question counted once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor

from callbacks import RolloutCallback
from datamodules import PromptDataModule, SFTDataModule
from lightning_modules import GRPOModule, SFTModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.models.loading import Backbone
from medvlt.models.optimization import Optimization
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.rollout.transformers import TransformersEngine
from medvlt.types import Completion, Sample, SamplingParams, Verdict


class Recorder(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []
        self.without_pictures = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.without_pictures += getattr(args[1], "packed", args[1]).pixel_values is None

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


class Parity:
    """A reward that a random model earns half of the time."""

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        return float(sum(completion.token_ids[:3]) % 2)


class Reading(ScriptedEngine):
    """Reads all weights it is sent, as an engine with a copy would: gathering them is a step of all ranks."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        assert len([tensor for _, tensor in weights if tensor.numel()]) > 50
        super().load_weights((), version=version)


def train_grpo(folder: Path, strategy: Any, devices: int, *, live: bool) -> dict[str, Any]:
    """Two iterations of six prompts and two optimizer steps; the engine is the live policy, or it is scripted."""
    recorder = Recorder()
    sampling = SamplingParams(n=3, temperature=0.9, max_tokens=10)
    rollout = (
        RolloutCallback(TransformersEngine(), group_sampling=sampling, seed=1)
        if live
        else RolloutCallback(Reading(["a b", "c", "d e f"]), group_sampling=sampling, seed=1, parity=None)
    )
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, logger=False, enable_progress_bar=False, max_epochs=2,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[recorder, rollout], limit_val_batches=0,
    )  # fmt: skip
    module = GRPOModule(
        Backbone(str(folder)), Optimization(learning_rate=1e-3), rewards={"parity": Parity()}, kl_coef=0.1,
        advantage_scale="batch",
    )  # fmt: skip
    data = PromptDataModule(
        Phantom("train", 20, seed=1), PromptEncoder(str(folder), template="plain"), prompts_per_iteration=6,
        updates_per_iteration=2,
    )  # fmt: skip
    trainer.fit(module, data)
    iteration = data.buffer.iteration
    assert iteration is not None
    return {
        "losses": recorder.losses,
        "norms": recorder.gradient_norms,
        "token_ids": [c.token_ids for group in iteration.groups for c in group.group.completions],
        "cursor": data.cursor,
        "state": data.state_dict()["iteration"]["ref_logprobs"],
        "statistics": {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/") and name != "train/loss"
        },
    }


def work(rank: int, port: int, folder: Path, kind: str, output: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    torch.set_num_threads(1)
    strategy = (
        DDPStrategy(process_group_backend="gloo")
        if kind.endswith("ddp")
        else ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    )
    live = kind == "grpo ddp"
    result = train_grpo(folder, strategy, 2, live=live) if "grpo" in kind else train(folder, strategy, 2)
    torch.save(result, output / f"{rank}.pt")


@pytest.fixture(scope="module")
def alone(tiny_folder: Path) -> dict[str, Any]:
    return train(tiny_folder, "auto", 1)


def in_two_processes(kind: str, folder: Path, output: Path) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, folder, kind, output), nprocs=2)
    return [torch.load(output / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_equal_one(kind: str, alone: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    ranks = in_two_processes(kind, tiny_folder, tmp_path)
    assert sum(rank["without_pictures"] for rank in ranks) > 0  # else the test would not be about mixed batches
    assert alone["without_pictures"] < sum(rank["without_pictures"] for rank in ranks)
    for rank in ranks:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert rank["norms"] == pytest.approx(alone["norms"], rel=1e-4)
        assert rank["counts"] == alone["counts"] == [7, 1]
        assert rank["correct"] == alone["correct"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo ddp", "grpo fsdp2"])
def test_grpo_in_two_processes_equals_one(kind: str, tiny_folder: Path, tmp_path: Path) -> None:
    """The same prompts, completions, losses and gradients, and every rank could write the same checkpoint.

    The live policy cannot sample while it is sharded; there the engine is scripted, and reads the weights it is sent.
    """
    alone = train_grpo(tiny_folder, "auto", 1, live=kind == "grpo ddp")
    ranks = in_two_processes(kind, tiny_folder, tmp_path)
    assert any(loss != 0 for loss in alone["losses"])
    for rank in ranks:
        assert rank["token_ids"] == alone["token_ids"]
        assert rank["cursor"] == alone["cursor"] == 12
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4, abs=1e-6)
        assert rank["norms"] == pytest.approx(alone["norms"], rel=1e-3)
        assert rank["statistics"] == pytest.approx(alone["statistics"], rel=1e-3, abs=1e-5)
        for number, values in alone["state"].items():
            torch.testing.assert_close(rank["state"][number], values, rtol=0, atol=1e-5)
