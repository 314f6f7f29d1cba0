# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import proxy

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from callbacks.swapping import discard, finish_swaps, flush, hidden, names_in, put, remove, size, sweep, sweep_name
from medvlt.distributed import gather, lost_rank, naming_lost_ranks, together
from medvlt.errors import ConfigurationError, DataError, LostRankError, MedvltError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SHARED = "dirpath must be on a disk that all nodes share"


class AtomicCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint with all its settings, whose checkpoints are whole at every instant.

    Without `dirpath` they lie in `{trainer.default_root_dir}/checkpoints`, where the same command with
    `--ckpt_path last` finds them; the folder of a logger is another one at every start. With `save_last` the last one
    is written whenever one is due, also with `save_top_k: 0`, and at the end of training.

    A checkpoint, file or folder, is written by the strategy under a hidden name, `.NAME.writing`, flushed to the disk
    and then moved to its own in one step; so are `last.ckpt` and the link of `save_last: link`, and what is removed
    has a hidden name first. A single file is written there straight from memory, without a copy of it in memory or in
    the temporary folder. A process that is killed leaves hidden names alone, which nothing takes for a checkpoint and
    the next `fit` removes: so one run at a time may use a folder, as a second one would remove what the first writes.

    If a rank cannot write, all raise the same error, nothing half-written stays, and the checkpoint before is kept.
    Before writing, the free space is compared with the size of what this callback wrote before. Several nodes must
    share the disk; without that a single file is written on the first one, and a folder is refused.

    `save_on_exception` holds for runs of one process: of several ranks one may fail alone, and none can save alone.

    Hooks used: those of ModelCheckpoint.
    """

    _failed = False
    _found: tuple[str, ...] = ()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Removes what killed runs left.

        Raises:
            ConfigurationError: If checkpoints would not be written to a file system, or later than asked, or if ranks
                would go on from different ones.
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
        found = gather(self._found)
        other = next((rank for rank, names in enumerate(found) if names != found[0]), None)
        if other is not None:
            raise ConfigurationError(
                f"--ckpt_path last: rank 0 finds {found[0] or 'nothing'} and rank {other} {found[other] or 'nothing'}; "
                f"{SHARED}, or each must have the same checkpoints"
            )
        if self.save_on_exception and trainer.world_size > 1:
            rank_zero_warn("save_on_exception of AtomicCheckpoint does nothing: of several ranks one may fail alone")
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
        """Saves if `save_on_exception` is set, in a run of one process, and not after a failure to save.

        The error that ends the run stays what it was, also if this fails.
        """
        if self._failed or trainer.world_size > 1 or lost_rank(exception) is not None:
            return
        try:
            super().on_exception(trainer, pl_module, exception)
        except DataError as error:
            logger.warning("save_on_exception: %s", error)

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
        own = self._last_checkpoint_saved
        self._failed = True
        try:
            write_checkpoint(
                trainer, Path(filepath), weights_only=self.save_weights_only, before=Path(own) if own else None
            )
        except DataError as error:
            whole = own or trainer.ckpt_path
            go_on = f"the last whole one is {whole}: resume with --ckpt_path {whole}" if whole else "there is none yet"
            raise DataError(f"{error}; {go_on}") from error
        self._failed = False
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Removes a checkpoint; a link to it is pointed to the newest one before."""

        def away() -> None:  # looks at the disk, so that one rank alone decides
            last = self.last_model_path
            if last and os.path.islink(last) and os.path.realpath(last) == os.path.realpath(filepath):
                _link(self._last_checkpoint_saved, last)
            remove(Path(filepath))

        _together(f"remove the checkpoint {filepath}", away if trainer.is_global_zero else _nothing)

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        action = partial(_link, filepath, linkpath) if trainer.is_global_zero else _nothing
        _together(f"link {linkpath} to {filepath}", action)

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        self._settle(trainer)
        finish_swaps(self._folder)  # for `ckpt_path: last`, which Lightning looks for before `setup`
        found: set[str] = super()._find_last_checkpoints(trainer)
        self._found = tuple(sorted(found))
        return found


def write_checkpoint(trainer: Any, path: Path, *, weights_only: bool = False, before: Path | None = None) -> None:
    """Writes a checkpoint of the run that is whole under its name or not there; all ranks call it.

    Args:
        trainer: Of the run; its strategy writes.
        path: What was there is replaced. Rank 0's is used.
        weights_only: Leave out the state of the optimizer and of all else but the weights.
        before: One of the same kind, whose size says how much space this one needs.

    Raises:
        DataError: On all ranks, if one cannot write. What was at `path` is as it was.
    """
    path = gather(path)[0]
    new = hidden(path, "writing")
    first = trainer.is_global_zero
    what = f"write the checkpoint {path}"

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

    def write() -> list[str]:
        _write(trainer.strategy, checkpoint, new)
        return names_in(new) if first else []

    _together(what, prepare if first else _nothing)
    with trainer.profiler.profile("save_checkpoint"):
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only)
        try:
            names = gather(_together(what, write))[0]  # none in a file, which rank 0 alone has written
            flushes = first or (names and trainer.local_rank == 0)
            _together(what, partial(_flush, new, names) if flushes else _nothing)
            _together(what, partial(put, new, path) if first else _nothing)
        except BaseException:
            if first:
                with suppress(OSError):
                    discard(new)
            raise


def save_before_end(trainer: Any, path: Path) -> str:
    """Writes a checkpoint of a run that ends with an error, on all ranks; returns how to go on, or why it cannot."""
    try:
        write_checkpoint(trainer, path)
    except DataError as error:
        return f"no checkpoint could be written: {error}"
    return f"a checkpoint was written, go on with --ckpt_path {path}"


def _together(what: str, action: Callable[[], Result]) -> Result:
    """`together`, for an action that fails in the words of the system."""

    def attempt() -> Result:
        try:
            with naming_lost_ranks():
                return action()
        except LostRankError:
            raise
        except (Exception, CheckpointException) as error:  # the latter is torch's for folders, and no Exception
            raise DataError(f"cannot {what}: {_reason(error)}") from error

    return together(attempt)


def _link(target: str, link: str) -> None:
    """Makes or changes a link in one step."""
    path = Path(link)
    if os.path.abspath(target) == os.path.abspath(link):
        return
    new = hidden(path, "writing")
    discard(new)
    new.symlink_to(os.path.relpath(target, path.parent))
    put(new, path)


def _flush(new: Path, names: list[str]) -> None:
    """Waits until a checkpoint is on the disk, if this node sees what rank 0 sees there."""
    if not all((new / name).exists() for name in names):
        discard(new)
        raise DataError(f"host {socket.gethostname()} does not see what rank 0 wrote there: {SHARED}")
    flush(new)


def _reason(error: BaseException) -> str:
    """What the system said, without the traces around it."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items())
        return f"rank {rank}: {_reason(cause)}"
    if isinstance(error, MedvltError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: check the disk and the rights to write there"
    if isinstance(error.__context__, OSError):  # of `torch.save`, whose own words do not tell
        return _reason(error.__context__)
    return f"{type(error).__name__}: {str(error)[:300]}; is the disk full?"


def _write(strategy: Any, checkpoint: dict[str, Any], path: Path) -> None:
    engine = getattr(strategy, "deepspeed_engine", None)
    if engine is None:
        with _straight(strategy):
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


class _StraightIO(TorchCheckpointIO):
    """Writes into the file itself; Lightning's makes all of it in memory, then in the temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with open(path, "wb") as file:
            torch.save(checkpoint, file)


@contextmanager
def _straight(strategy: Any) -> Iterator[None]:
    """Lets a strategy write single files straight, unless it has a plug-in of the user's own for that."""
    usual = strategy.checkpoint_io
    if type(usual) is TorchCheckpointIO:
        strategy.checkpoint_io = _StraightIO()
    try:
        yield
    finally:
        strategy.checkpoint_io = usual


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
