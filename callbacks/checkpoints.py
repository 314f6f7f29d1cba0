# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import proxy

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from callbacks.swapping import discard, finish_swaps, flush, hidden, put, remove, size, sweep, sweep_name
from medvlt.distributed import lost_rank, together
from medvlt.errors import ConfigurationError, DataError, MedvltError


class AtomicCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint with all its settings, whose checkpoints are whole at every instant.

    Without `dirpath` they lie in `{trainer.default_root_dir}/checkpoints`, where the same command with
    `--ckpt_path last` finds them; the folder of a logger is another one at every start. With `save_last` the last one
    is written whenever one is due, also with `save_top_k: 0`, and at the end of training.

    A checkpoint, file or folder, is written by the strategy under a hidden name, `.NAME.writing`, flushed to the disk
    and then moved to its own in one step; so are `last.ckpt` and the link of `save_last: link`, and what is removed
    has a hidden name first. A process that is killed leaves hidden names alone, which nothing takes for a checkpoint
    and the next `fit` removes.

    If a rank cannot write, all raise the same error, nothing half-written stays, and the checkpoint before is kept.
    Before writing, the free space is compared with the size of the checkpoint before.

    Hooks used: those of ModelCheckpoint.
    """

    _failed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Removes what killed runs left.

        Raises:
            ConfigurationError: If checkpoints would not be written to a file system, or later than asked.
        """
        self._settle(trainer)
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if "://" in str(self.dirpath):
            raise ConfigurationError(
                f"AtomicCheckpoint moves files, which {self.dirpath} cannot; set dirpath to a folder of this machine "
                "or a mounted one, or use ModelCheckpoint"
            )
        if isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):
            raise ConfigurationError(
                "AsyncCheckpointIO writes after AtomicCheckpoint has moved what it wrote; remove the plug-in, or use "
                "ModelCheckpoint"
            )
        if trainer.is_global_zero:
            sweep(self._folder)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the end of training to `last.ckpt`; Lightning's does if it has written nothing before."""
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            asked, self.save_last = self.save_last, True  # there is nothing to link to
            try:
                self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            finally:
                self.save_last = asked

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves if `save_on_exception` is set, but not after a failure to save, nor without a rank that is gone."""
        if not self._failed and lost_rank(exception) is None:
            super().on_exception(trainer, pl_module, exception)

    @property
    def _folder(self) -> Path:
        assert self.dirpath is not None
        return Path(self.dirpath)

    def _settle(self, trainer: Trainer) -> None:
        if self.dirpath is None:
            self.dirpath = os.path.join(trainer.default_root_dir, "checkpoints")

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        super()._save_topk_checkpoint(trainer, monitor_candidates)
        if self.save_top_k == 0:  # Lightning's would wait for a best one until the end of training
            self._save_last_checkpoint(trainer, monitor_candidates)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if self.save_top_k or self._last_global_step_saved != trainer.global_step:
            super()._save_last_checkpoint(trainer, monitor_candidates)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        before = self._last_checkpoint_saved or str(trainer.ckpt_path or "")
        try:
            write_checkpoint(
                trainer, Path(filepath), weights_only=self.save_weights_only, before=Path(before) if before else None
            )
        except DataError as error:
            go_on = (
                f"the last whole one is {before}: resume with --ckpt_path {before}" if before else "there is none yet"
            )
            raise DataError(f"{error}; {go_on}") from error
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Removes a checkpoint; a link to it is pointed to the newest one before."""
        last = self.last_model_path
        if last and os.path.islink(last) and os.path.realpath(last) == os.path.realpath(filepath):
            self._link_checkpoint(trainer, self._last_checkpoint_saved, last)
        if trainer.is_global_zero:
            remove(Path(filepath))

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        def link() -> None:
            path = Path(linkpath)
            new = hidden(path, "writing")
            try:
                discard(new)
                new.symlink_to(os.path.relpath(filepath, path.parent))
                put(new, path)
            except OSError as error:
                raise DataError(f"cannot link {path} to {filepath}: {error.strerror or error}") from error

        if os.path.abspath(filepath) != os.path.abspath(linkpath):
            together(link if trainer.is_global_zero else _nothing)

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        self._settle(trainer)
        finish_swaps(self._folder)  # for `ckpt_path: last`, which Lightning looks for before `setup`
        found: set[str] = super()._find_last_checkpoints(trainer)
        return found


def write_checkpoint(trainer: Any, path: Path, *, weights_only: bool = False, before: Path | None = None) -> None:
    """Writes a checkpoint of the run that is whole under its name or not there; all ranks call it.

    Args:
        trainer: Of the run; its strategy writes.
        path: What was there is replaced.
        weights_only: Leave out the state of the optimizer and of all else but the weights.
        before: The checkpoint before, whose size says how much space this one needs.

    Raises:
        DataError: On all ranks, if one cannot write. What was at `path` is as it was.
    """
    new = hidden(path, "writing")
    first = trainer.is_global_zero

    def prepare() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_name(path)
        if hasattr(trainer.strategy, "deepspeed_engine"):  # here, since there the others would wait if this failed
            (new / "checkpoint").mkdir(parents=True)
        needed, free = size(before) if before else 0, shutil.disk_usage(path.parent).free
        if free < needed:
            raise DataError(
                f"the one before took {needed / 1e9:.3g} GB and {path.parent} has {free / 1e9:.3g} GB left; free "
                f"{(needed - free) / 1e9:.3g} GB or more"
            )

    _together(path, prepare if first else _nothing)
    with trainer.profiler.profile("save_checkpoint"):
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only)
        try:
            _together(path, lambda: _write(trainer.strategy, checkpoint, new))
            _together(path, (lambda: flush(new)) if trainer.local_rank == 0 else _nothing)
            _together(path, (lambda: put(new, path)) if first else _nothing)
        except BaseException:
            if first:
                with suppress(OSError):
                    discard(new)
            raise


def _together(path: Path, action: Any) -> None:
    """`together`, for an action that fails in the words of the system."""

    def attempt() -> None:
        try:
            action()
        except (Exception, CheckpointException) as error:  # the latter is torch's for folders, and no Exception
            raise DataError(f"cannot write the checkpoint {path}: {_reason(error)}") from error

    together(attempt)


def _reason(error: BaseException) -> str:
    """What the system said, without the traces around it."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items())
        return f"rank {rank}: {_reason(cause)}"
    if isinstance(error, MedvltError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: check the disk and the rights to write there"
    return f"{type(error).__name__}: {str(error)[:300]}; is the disk full?"


def _write(strategy: Any, checkpoint: dict[str, Any], path: Path) -> None:
    engine = getattr(strategy, "deepspeed_engine", None)
    if engine is None:
        strategy.save_checkpoint(checkpoint, path)
        return
    with _failures_kept(engine.checkpoint_engine) as failures:
        try:
            strategy.save_checkpoint(checkpoint, path)
        except Exception as error:  # on one rank in `latest`, which is written last; then all ranks meet
            failures.append(error)
            strategy.barrier()
    if failures:
        raise failures[0]


@contextmanager
def _failures_kept(writer: Any) -> Iterator[list[Exception]]:
    """Lets DeepSpeed go on after a file that it could not write: its ranks meet several times after that."""
    failures: list[Exception] = []
    save = writer.save

    def saved(*args: Any, **kwargs: Any) -> Any:
        try:
            return save(*args, **kwargs)
        except Exception as error:
            failures.append(error)
            return None

    writer.save = saved
    try:
        yield failures
    finally:
        del writer.save


def _nothing() -> None:
    pass
