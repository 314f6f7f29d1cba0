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
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks import RankWatchdog
from medvlt import cli
from medvlt.distributed import current_phase
from medvlt.errors import ConfigurationError, DataError
from medvlt.watchdog import EXIT_CODE, Finding, note_finding, noted_finding


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
        self.left: list[tuple[str, bool]] = []

    def leave(self, reason: str = "", *, failed: bool = False) -> None:
        self.left.append((reason, failed))

    def find_lost(self) -> Finding:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # torchrun sends it meanwhile
        return Finding("rank 1 is gone")


def test_what_ends_a_rank_is_passed_on(tmp_path: Any) -> None:
    callback, module = RankWatchdog(), LightningModule()
    cases: tuple[tuple[BaseException, list[tuple[str, bool]]], ...] = (
        (DataError("a bad\npicture"), [("DataError: a bad picture", True)]),
        (SIGTERMException(), [("SIGTERMException: ", False)]),
        (RuntimeError("[gloo] Connection closed by peer"), []),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), []),
    )
    for error, left in cases:
        watched = Watched()
        callback._watchdog = watched  # type: ignore[assignment]
        before = signal.getsignal(signal.SIGTERM)
        callback.on_exception(trainer(callback, tmp_path), module, error)
        assert watched.left == left
        later = ValueError("in its wake")
        later.__context__ = error
        later.add_note("of another library")
        found = noted_finding(later)
        assert (found is None) == bool(left)
        assert found is None or found.message == "rank 1 is gone"
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("code", [1, EXIT_CODE])
def test_the_command_ends_with_what_was_found_out(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says the backend's own words, too."""
    ended: list[Finding] = []

    def lose(*args: Any, **settings: Any) -> None:
        error = dist.DistBackendError("NCCL error: remote process exited")
        error.add_note("of another library")
        if code == 1:
            note_finding(error, Finding("rank 1 ended: DataError", code))
        raise error

    monkeypatch.setattr(cli, "MedvltCLI", lose)
    monkeypatch.setattr(cli, "end_process", ended.append)
    monkeypatch.setattr("sys.argv", ["medvlt"])
    cli.run(["fit"])
    assert [finding.code for finding in ended] == [code]
    assert ended[0].message.startswith("rank 1 ended: DataError (" if code == 1 else "another rank has ended; its own")
    assert ended[0].message.endswith("(NCCL error: remote process exited)")
