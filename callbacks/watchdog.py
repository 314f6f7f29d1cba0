# SPDX-License-Identifier: Apache-2.0
"""Ends the processes of a job that has lost one of its ranks."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from medvlt.distributed import enter_phase, lost_message, lost_rank
from medvlt.errors import ConfigurationError
from medvlt.watchdog import BEAT_SECONDS, SILENCE_SECONDS, Watchdog, note_finding

logger = logging.getLogger(__name__)


class RankWatchdog(Callback):
    """Ends the job with a message if a rank is gone, and says which, where, and what both were doing.

    Without it the others wait for a lost rank until the time-out of the process group, or learn of it in words that do
    not name it. Every rank writes a heartbeat to the job's store and reads those of the others (`medvlt.watchdog`).
    Where the main thread hangs, the process is ended hard, with code 75, and what the loggers had not yet written is
    lost; checkpoints are not. If a rank ends with an error of its own, the others quote it a few heartbeats later and
    end with code 1, as the same would happen again. With one process the callback does nothing.

    Put it first among the callbacks, so that it watches while the others work. It begins with the callbacks' `setup`,
    which Lightning calls after that of the data module: before that, torchrun and srun end the others when a process
    dies, and a host that falls silent is found by the time-out of the process group.

    Hooks used: `setup`, `teardown`, `on_exception`, and those at which the phase changes.
    Logs: nothing.

    Args:
        silence_seconds: How long a rank may be silent. Only its heartbeat counts, so a long step, a compilation or a
            debugger in the main thread are no silence, unless they hold Python's lock for as long.
        beat_seconds: Between two heartbeats.
    """

    def __init__(self, silence_seconds: float = SILENCE_SECONDS, beat_seconds: float = BEAT_SECONDS) -> None:
        if not 0 < 2 * beat_seconds <= silence_seconds:
            raise ConfigurationError(
                "RankWatchdog: silence_seconds must be at least two heartbeats, and a heartbeat above 0 s, got "
                f"silence_seconds={silence_seconds} and beat_seconds={beat_seconds}"
            )
        self.silence_seconds = silence_seconds
        self.beat_seconds = beat_seconds
        self._watchdog: Watchdog | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begins to watch."""
        enter_phase("setup")
        if trainer.world_size == 1 or not dist.is_initialized():
            return
        try:
            default: Any = dist.distributed_c10d._get_default_store()
            store = default.clone()
        except (RuntimeError, NotImplementedError) as error:
            rank_zero_warn(f"RankWatchdog does not watch: the store of this job gives no second connection ({error})")
            return
        self._watchdog = Watchdog(
            store,
            trainer.global_rank,
            trainer.world_size,
            silence_seconds=self.silence_seconds,
            beat_seconds=self.beat_seconds,
        )
        self._watchdog.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the phase."""
        enter_phase("start of training")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Notes the phase."""
        enter_phase("update")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the phase."""
        enter_phase("validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the phase."""
        if trainer.state.fn == "fit":
            enter_phase("update")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the phase."""
        enter_phase("test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the phase."""
        enter_phase("predict")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes the phase."""
        enter_phase("checkpoint")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Says goodbye; a rank that comes here has done its work."""
        enter_phase("end")
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says why this rank ends; if it is because of another one, finds out which, and adds that to the error.

        In that case it goes on watching, as what Lightning does next may wait for the lost rank.
        """
        words = lost_rank(exception)
        if self._watchdog is not None and words is not None:
            logger.warning("%s. Finding out which.", lost_message(words))
            with _without_sigterm():
                note_finding(exception, self._watchdog.find_lost())
            return
        # Lightning makes a `SystemExit` of SIGTERM: then, as after Ctrl-C, nothing is wrong with the run
        own = isinstance(exception, Exception)
        self._leave(f"{type(exception).__name__}: {' '.join(str(exception).split())[:300]}", failed=own)

    def _leave(self, reason: str = "", *, failed: bool = False) -> None:
        if self._watchdog is not None:
            self._watchdog.leave(reason, failed=failed)
        self._watchdog = None


@contextmanager
def _without_sigterm() -> Iterator[None]:
    """Ignores SIGTERM, as torchrun sends it when a rank is lost: Lightning's handler would tell the ranks, and fail."""
    if threading.current_thread() is not threading.main_thread():  # only that one may change it
        yield
        return
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
