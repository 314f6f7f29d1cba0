# SPDX-License-Identifier: Apache-2.0
"""A layer to make checkpoints of, and what there is of them in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from callbacks import AtomicCheckpoint
from medvlt.models.sharded_folder import read_index, read_tensors


class Wide(LightningModule):
    """A layer whose checkpoints take a while to write; sharded if the strategy has a mesh."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width

    def configure_model(self) -> None:
        if hasattr(self, "line"):
            return
        self.line = nn.Linear(self.width, self.width)
        if self.device_mesh is not None:
            fully_shard(self.line, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.line(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def trainer(*callbacks: Any, **settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        **{"devices": 1, "logger": False, "max_epochs": 1} | settings,
    )  # fmt: skip


def numbers(count: int, width: int = 4) -> DataLoader[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return DataLoader(torch.randn(count, width, generator=generator), batch_size=1)  # type: ignore[arg-type]


def load(path: Path) -> int:
    """Reads all of a checkpoint, file or folder; returns its step."""
    if not path.is_dir():
        return int(torch.load(path, weights_only=True)["global_step"])
    assert read_tensors(path, read_index(path), "")
    return int(torch.load(path / "meta.pt", weights_only=True)["global_step"])


def visible(folder: Path) -> list[Path]:
    """What Lightning could take for a checkpoint."""
    return sorted(path for path in folder.iterdir() if path.suffix == ".ckpt")


def hidden_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def again(fit: Trainer, keeper: AtomicCheckpoint, step: int) -> None:
    """What the callback does after an optimizer step."""
    candidates = {"epoch": torch.tensor(0), "step": torch.tensor(step)}
    keeper._save_topk_checkpoint(fit, candidates)
    keeper._save_last_checkpoint(fit, candidates)
