# SPDX-License-Identifier: Apache-2.0
"""The callback as Lightning calls it; what it does with several ranks is in tests/distributed/test_lost_rank.py."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from callbacks import RankWatchdog
from medvlt.distributed import current_phase
from medvlt.errors import ConfigurationError, DataError


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "watchdog" in thread.name]


@pytest.mark.parametrize(("silence", "beat"), [(3, 2), (0, 0), (30, 0), (-1, -1)])
def test_a_silence_shorter_than_two_heartbeats_is_refused(silence: float, beat: float) -> None:
    with pytest.raises(ConfigurationError, match="at least two heartbeats"):
        RankWatchdog(silence_seconds=silence, beat_seconds=beat)


class Phases(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def note(self) -> None:
        if self.seen[-1:] != [current_phase()]:
            self.seen.append(current_phase())

    def configure_model(self) -> None:
        self.note()

    def training_step(self, *args: Any) -> Any:
        self.note()
        assert not threads()  # one process has nobody to watch
        return super().training_step(*args)

    def validation_step(self, *args: Any) -> Any:
        self.note()
        return super().validation_step(*args)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.note()

    def on_train_epoch_end(self) -> None:
        self.note()


def trainer(watchdog: RankWatchdog, folder: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=1, max_epochs=2, limit_train_batches=1, limit_val_batches=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, callbacks=[watchdog],
        num_sanity_val_steps=0,
    )  # fmt: skip


def test_one_process_is_not_watched_and_its_phases_are_known(tmp_path: Any) -> None:
    module = Phases()
    trainer(RankWatchdog(), tmp_path).fit(module)
    once = ["update", "validate", "update", "checkpoint"]
    assert module.seen == ["setup", *once, *once]
    assert current_phase() == "end"


class Watched:
    """In place of the watchdog: what it was told."""

    def __init__(self) -> None:
        self.left: list[str] = []

    def leave(self, reason: str = "") -> None:
        self.left.append(reason)

    def find_lost(self) -> str:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # torchrun sends it meanwhile
        return "rank 1 is gone"


def test_what_ends_a_rank_is_passed_on(tmp_path: Any) -> None:
    callback, module = RankWatchdog(), LightningModule()
    for error, left, notes in (
        (DataError("a bad\npicture"), ["DataError: a bad picture"], []),
        (RuntimeError("[gloo] Connection closed by peer"), [], ["rank 1 is gone"]),
        (
            dist.DistBackendError("NCCL error: remote process exited or there was a network error"),
            [],
            ["rank 1 is gone"],
        ),
    ):
        watched = Watched()
        callback._watchdog = watched  # type: ignore[assignment]
        before = signal.getsignal(signal.SIGTERM)
        callback.on_exception(trainer(callback, tmp_path), module, error)
        assert watched.left == left
        assert getattr(error, "__notes__", []) == notes
        assert signal.getsignal(signal.SIGTERM) is before
