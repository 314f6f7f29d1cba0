# SPDX-License-Identifier: Apache-2.0
"""Training through a real Trainer: how a step is cut does not matter; a killed run goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from datamodules import SFTDataModule
from lightning_modules import SFTModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.errors import ConfigurationError
from medvlt.losses.reduce import LossReduction
from medvlt.models.loading import Backbone
from medvlt.models.optimization import Optimization


class Recorder(Callback):
    """Keeps the gradients before the first optimizer step and the logged loss of every step."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.losses: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if (args[2] + 1) % trainer.accumulate_grad_batches == 0:
            self.losses.append(float(trainer.callback_metrics["train/loss"]))


def train(
    folder: Path,
    *,
    accumulate: int = 1,
    steps: int = 3,
    reduction: LossReduction = "token",
    resume: Path | None = None,
    checkpoint: ModelCheckpoint | None = None,
    epochs: int = 3,
) -> tuple[SFTModule, Recorder]:
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=steps,
        max_epochs=epochs, accumulate_grad_batches=accumulate, gradient_clip_val=1.0,
        callbacks=[recorder, *([checkpoint] if checkpoint else [])], enable_checkpointing=checkpoint is not None,
        limit_val_batches=0,
    )  # fmt: skip
    module = SFTModule(
        Backbone(str(folder)), Optimization(learning_rate=1e-3, warmup_ratio=0.1, total_steps=10, weight_decay=0.01)
    )
    data = SFTDataModule(
        Phantom("train", 20),
        PromptEncoder(str(folder), template="plain"),
        global_batch_size=8,
        loss_reduction=reduction,
    )
    trainer.fit(module, data, ckpt_path=resume)
    return module, recorder


@pytest.fixture(scope="module")
def whole(tiny_folder: Path) -> tuple[SFTModule, Recorder]:
    return train(tiny_folder, steps=5)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_step_does_not_depend_on_micro_batches(
    accumulate: int, tiny_folder: Path, whole: tuple[SFTModule, Recorder]
) -> None:
    """Twenty samples in steps of eight: the third step has four, fewer than the micro-batches of the last case."""
    _, one = whole
    _, cut = train(tiny_folder, accumulate=accumulate, steps=5)
    assert cut.losses == pytest.approx(one.losses, rel=1e-5)
    assert cut.gradients.keys() == one.gradients.keys()
    for name, gradient in one.gradients.items():
        torch.testing.assert_close(cut.gradients[name], gradient, rtol=1e-4, atol=1e-7)


def test_the_reference_mode_does_depend_on_them(tiny_folder: Path) -> None:
    """So that the comparison above is known to see a difference."""
    _, one = train(tiny_folder, reduction="micro_batch", steps=1)
    _, cut = train(tiny_folder, reduction="micro_batch", steps=1, accumulate=4)
    assert abs(one.losses[0] - cut.losses[0]) > 1e-4


def test_loss_falls(tiny_folder: Path) -> None:
    _, recorder = train(tiny_folder, steps=9)
    assert sum(recorder.losses[-2:]) < 0.9 * sum(recorder.losses[:2])


@pytest.mark.parametrize("stop", [2, 3], ids=["mid-epoch", "last batch"])
@pytest.mark.parametrize("by", ["steps", "epochs"])
def test_resume_is_exact(
    by: str, stop: int, tiny_folder: Path, tmp_path: Path, whole: tuple[SFTModule, Recorder]
) -> None:
    """Stopped in the middle of an epoch (three steps long) or at its end, then resumed: the very same weights."""
    uninterrupted, record = whole
    keeper = ModelCheckpoint(dirpath=tmp_path, filename="kept", every_n_train_steps=stop, enable_version_counter=False)
    train(tiny_folder, steps=stop, checkpoint=keeper)
    resumed, later = train(tiny_folder, steps=5 if by == "steps" else -1, epochs=2, resume=tmp_path / "kept.ckpt")
    assert later.losses[: 5 - stop] == record.losses[stop:]
    if by == "steps":
        assert_equal_weights(resumed, uninterrupted)


@pytest.mark.parametrize("by", ["steps", "epochs"])
def test_resume_after_an_epoch_is_exact(
    by: str, tiny_folder: Path, tmp_path: Path, whole: tuple[SFTModule, Recorder]
) -> None:
    """A checkpoint written when the epoch has ended; Lightning alone cuts the next epoch short if max_steps is set."""
    uninterrupted, record = whole
    keeper = ModelCheckpoint(dirpath=tmp_path, filename="kept", every_n_epochs=1, save_on_train_epoch_end=True)
    train(tiny_folder, steps=-1, epochs=1, checkpoint=keeper)
    resumed, later = train(tiny_folder, steps=5 if by == "steps" else -1, epochs=2, resume=tmp_path / "kept.ckpt")
    assert later.losses[:2] == record.losses[3:]
    assert len(later.losses) == (2 if by == "steps" else 3)
    if by == "steps":
        assert_equal_weights(resumed, uninterrupted)


def assert_equal_weights(ours: SFTModule, theirs: SFTModule) -> None:
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_tokenizer_of_another_model_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, max_steps=1, enable_checkpointing=False)
    data = SFTDataModule(Phantom("train", 4), PromptEncoder(str(tiny_folder)), global_batch_size=2)
    with pytest.raises(ConfigurationError, match="must be encoded with the tokenizer of the backbone"):
        trainer.fit(SFTModule(Backbone(str(tmp_path))), data)


@pytest.mark.parametrize(
    "limit", [{"limit_train_batches": 1}, {"limit_train_batches": 0.5}, {"overfit_batches": 1.0}], ids=str
)
def test_part_of_an_epoch_is_refused(limit: dict[str, Any], tiny_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"before its planned optimizer steps; .*Subset with limit"):
        fit(tiny_folder, Optimization(), max_steps=1, **limit)


def test_a_fast_run_is_part_of_an_epoch(tiny_folder: Path) -> None:
    assert fit(tiny_folder, Optimization(), fast_dev_run=True).global_step == 1


def test_constant_rate_needs_no_number_of_steps(tiny_folder: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 3

    endless: dict[str, Any] = {"max_epochs": -1, "callbacks": [Stop()]}
    constant = Optimization(learning_rate=1e-3, schedule="constant", warmup_ratio=0.0)
    trainer = fit(tiny_folder, constant, **endless)
    assert trainer.global_step == 3
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-3
    for schedule in (Optimization(), Optimization(schedule="constant"), Optimization(warmup_ratio=0.0)):
        with pytest.raises(ConfigurationError, match="the schedule needs the number of optimizer steps"):
            fit(tiny_folder, schedule, **endless)


def fit(folder: Path, optimization: Optimization, **settings: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, limit_val_batches=0, **settings,
    )  # fmt: skip
    data = SFTDataModule(Phantom("train", 4), PromptEncoder(str(folder), template="plain"), global_batch_size=2)
    trainer.fit(SFTModule(Backbone(str(folder)), optimization), data)
    return trainer
