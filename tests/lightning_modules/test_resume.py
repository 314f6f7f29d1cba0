# SPDX-License-Identifier: Apache-2.0
"""A run that ends at any moment and is resumed makes the steps of one that does not; with a toy for the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datamodules.loader import ResumableLoader
from lightning_modules import PolicyModule
from lightning_modules.resume import begin_at_step
from medvlt.errors import ConfigurationError
from medvlt.models.loading import Backbone
from medvlt.models.optimization import Optimization

EPOCHS, STEPS, ACCUMULATE = 2, 3, 2
MICRO_BATCHES = STEPS * ACCUMULATE
Logged = list[tuple[int, float]]


class Micro(Dataset[Tensor]):
    """A number for each (epoch, micro-batch), which also depends on how often an epoch was begun."""

    def __init__(self, data: ToyData, per_step: int) -> None:
        self.data, self.per_step = data, per_step

    def __len__(self) -> int:
        return STEPS * self.per_step

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        epoch, number = key
        return torch.tensor([1000.0 * self.data.begun + 100.0 * epoch + number, 1.0]) / 1000


class Shares(Micro):
    """Micro-batches that add up to the same step however many there are."""

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        epoch, number = key
        place = 1000.0 * self.data.begun + 100.0 * epoch + number // self.per_step
        return torch.tensor([place, 1.0]) / 1000 / self.per_step**0.5


class ToyData(LightningDataModule):
    """Like the prompts of RL it moves on whenever an epoch begins."""

    def __init__(self, *, validate: bool, dataset: type[Micro] = Micro) -> None:
        super().__init__()
        self.begun, self.validate, self.dataset = 0, validate, dataset
        self.loss_reduction = "token"

    def train_dataloader(self) -> DataLoader[Tensor]:
        per_step = self.trainer.accumulate_grad_batches
        return ResumableLoader(
            self.dataset(self, per_step), epoch=self.trainer.fit_loop.epoch_progress.current.processed, seed=1,
            num_workers=0, per_step=per_step, fingerprint="toy",
        )  # fmt: skip

    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [DataLoader(range(2))] if self.validate else []  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.begun = state_dict["begun"]


class Toy(PolicyModule):
    """Logs once for every optimizer step what went into it and what came of the steps before."""

    def __init__(self, optimization: Optimization | None = None) -> None:
        super().__init__(Backbone("toy"), optimization or Optimization(learning_rate=0.1, total_steps=20))
        self.step_sum: Tensor | None = None
        self.validated: list[int] = []  # after how many micro-batches, once for every batch of the validation

    def configure_model(self) -> None:
        self.line = nn.Linear(2, 1, bias=False)
        nn.init.constant_(self.line.weight, 0.5)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.trainer.datamodule.begun += 1  # type: ignore[attr-defined]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.line(batch).square().sum()
        self.step_sum = loss.detach() if self.step_sum is None else self.step_sum + loss.detach()
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self.log("train/loss", self.step_sum)
            self.step_sum = None
        return self.scale_loss(loss)

    def on_validation_epoch_start(self) -> None:
        pass

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            getattr(callback, "inside_validation_step", lambda trainer: None)(self.trainer)
        self.validated.append(self.trainer.fit_loop.total_batch_idx + 1)

    def on_validation_epoch_end(self) -> None:
        pass


class Diary(DummyLogger):
    """Keeps what is logged of training."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: Logged = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        if "train/loss" in metrics and step is not None:
            self.entries.append((step, metrics["train/loss"]))


class Killed(Exception):
    """What ends a run."""


class End(Callback):
    """At the n-th call of a hook: writes a checkpoint and ends the run, or only asks it to stop."""

    def __init__(self, hook: str, number: int, path: Path, *, stop: bool = False) -> None:
        self.path, self.stop, self.countdown = path, stop, number
        setattr(self, hook, self.called)

    def called(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self.countdown -= 1
        if self.countdown:
            return
        if self.stop:
            trainer.should_stop = True
            return
        trainer.save_checkpoint(self.path)
        raise Killed


def run(
    *callbacks: Callback,
    resume: Path | None = None,
    validate: bool = False,
    accumulate: int = ACCUMULATE,
    dataset: type[Micro] = Micro,
    reduction: str = "token",
    **settings: Any,
) -> tuple[Logged, Toy]:
    diary, module, data = Diary(), Toy(), ToyData(validate=validate, dataset=dataset)
    data.loss_reduction = reduction
    trainer = Trainer(
        accelerator="cpu", logger=diary, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        callbacks=list(callbacks), enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        accumulate_grad_batches=accumulate, num_sanity_val_steps=0, **{"max_epochs": EPOCHS} | settings,
    )  # fmt: skip
    try:
        trainer.fit(module, data, ckpt_path=resume, weights_only=False)
    except Killed:
        trainer.strategy.teardown()
    return diary.entries, module


@pytest.fixture(scope="module")
def whole() -> Logged:
    entries, _ = run()
    assert [step for step, _ in entries] == list(range(EPOCHS * STEPS))
    assert len({loss for _, loss in entries}) == EPOCHS * STEPS
    return entries


def steps_in(path: Path) -> int:
    steps: int = torch.load(path, weights_only=True)["global_step"]
    return steps


BY_STEPS = {"max_steps": EPOCHS * STEPS, "max_epochs": -1}
PLACES: list[tuple[str, int]] = [
    ("on_train_start", 1),
    ("on_train_epoch_start", EPOCHS),
    ("on_train_batch_start", EPOCHS * MICRO_BATCHES),
    ("on_before_backward", EPOCHS * MICRO_BATCHES),
    ("on_train_batch_end", EPOCHS * MICRO_BATCHES),
    ("on_train_epoch_end", EPOCHS),
    ("on_train_end", 1),
]
VALIDATION_PLACES = [
    ("on_validation_start", EPOCHS),
    ("on_validation_batch_start", 2 * EPOCHS),
    ("inside_validation_step", 2 * EPOCHS),
    ("on_validation_end", EPOCHS),
]


@pytest.mark.parametrize(
    ("settings", "every"),
    [
        ({}, None),
        (BY_STEPS, None),
        ({"validate": True, "val_check_interval": 1 / MICRO_BATCHES}, 1),
        ({"validate": True} | BY_STEPS, MICRO_BATCHES),
    ],
    ids=["epochs", "steps", "epochs and validation after every micro-batch", "steps and validation after every epoch"],
)
def test_from_every_place(settings: dict[str, Any], every: int | None, whole: Logged, tmp_path: Path) -> None:
    """The same steps under the same numbers; validations are whole, and one that would have come first is left out."""
    for hook, calls in PLACES + (VALIDATION_PLACES if every else []):
        for call in range(1, calls + 1):
            path = tmp_path / f"{hook}_{call}.ckpt"
            run(End(hook, call, path), **settings)
            steps = steps_in(path)
            entries, module = run(resume=path, **settings)
            assert entries == whole[steps:], path.stem
            if every:
                ends = range(every, EPOCHS * MICRO_BATCHES + 1, every)
                expected = [end for end in ends if end > steps * ACCUMULATE for _ in range(2)]
                assert module.validated == expected, path.stem


@pytest.mark.parametrize("place", [("on_train_batch_end", MICRO_BATCHES - 1), ("on_train_epoch_end", 1)])
def test_resumed_and_ended_at_once(place: tuple[str, int], whole: Logged, tmp_path: Path) -> None:
    """The second checkpoint is of a run that has not asked for a batch."""
    run(End(*place, tmp_path / "first.ckpt"))
    run(End("on_train_start", 1, tmp_path / "second.ckpt"), resume=tmp_path / "first.ckpt")
    entries, _ = run(resume=tmp_path / "second.ckpt")
    assert entries == whole[steps_in(tmp_path / "first.ckpt") :]


@pytest.mark.parametrize("settings", [{}, {"validate": True}, BY_STEPS], ids=str)
def test_rest_of_an_epoch_that_was_ended_early(settings: dict[str, Any], whole: Logged, tmp_path: Path) -> None:
    """As `max_time` does it: `should_stop` in the middle of an epoch, and a checkpoint at what is then its end."""
    for stop in range(1, EPOCHS * MICRO_BATCHES):
        path = tmp_path / f"{stop}.ckpt"
        epoch = 1 + (stop - 1) // MICRO_BATCHES
        run(End("on_train_batch_end", stop, path, stop=True), End("on_train_epoch_end", epoch, path), **settings)
        assert steps_in(path) == stop // ACCUMULATE
        entries, _ = run(resume=path, **settings)
        assert entries == whole[stop // ACCUMULATE :], stop


def test_rest_of_an_epoch_after_more_steps_were_allowed(whole: Logged, tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path, "kept", every_n_epochs=1, save_on_train_epoch_end=True)
    run(keeper, max_steps=2)
    entries, _ = run(resume=tmp_path / "kept.ckpt")
    assert entries == whole[2:]


@pytest.mark.parametrize("now", [1, 3, 4])
def test_other_micro_batches_from_every_place(now: int, tmp_path: Path) -> None:
    """The place is that of a step: also where there are fewer micro-batches now than those that were trained on."""
    one, _ = run(dataset=Shares)
    for hook, calls in PLACES:
        for call in range(1, calls + 1):
            path = tmp_path / f"{hook}_{call}.ckpt"
            run(End(hook, call, path), dataset=Shares)
            steps = steps_in(path)
            entries, module = run(resume=path, accumulate=now, dataset=Shares, validate=True)
            assert [step for step, _ in entries] == list(range(steps, EPOCHS * STEPS)), path.stem
            assert [loss for _, loss in entries] == pytest.approx([loss for _, loss in one[steps:]], rel=1e-5)
            ends = [epoch * STEPS * now for epoch in range(1, EPOCHS + 1) if epoch * STEPS > steps]
            assert module.validated == [end for end in ends for _ in range(2)], path.stem


def test_there_and_back(tmp_path: Path) -> None:
    """Resumed with other micro-batches, ended again in the middle, and resumed as it began."""
    one, _ = run(dataset=Shares)
    run(End("on_train_batch_end", 3, tmp_path / "first.ckpt"), dataset=Shares)
    again = End("on_train_batch_end", 5, tmp_path / "second.ckpt")
    run(again, resume=tmp_path / "first.ckpt", accumulate=4, dataset=Shares)
    entries, _ = run(resume=tmp_path / "second.ckpt", dataset=Shares)
    assert steps_in(tmp_path / "second.ckpt") == 2
    assert [loss for _, loss in entries] == pytest.approx([loss for _, loss in one[2:]], rel=1e-5)


def test_other_micro_batches_where_the_loss_depends_on_them(tmp_path: Path) -> None:
    place = End("on_train_batch_end", ACCUMULATE, tmp_path / "inside.ckpt")
    run(place, reduction="micro_batch")
    with pytest.raises(ConfigurationError, match=r"a step had 2 of them over 1 ranks .* has 3 now; resume with ranks"):
        run(resume=tmp_path / "inside.ckpt", accumulate=3, reduction="micro_batch")
    entries, _ = run(resume=tmp_path / "inside.ckpt", reduction="micro_batch")
    assert len(entries) == EPOCHS * STEPS - 1


def test_checkpoint_without_a_place_in_training() -> None:
    checkpoint: dict[str, Any] = {"state_dict": {}}
    begin_at_step(checkpoint)
    assert checkpoint == {"state_dict": {}}
