# SPDX-License-Identifier: Apache-2.0
"""Disks that are full: nothing half-written stays, all ranks say so, and the checkpoint before is kept."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_strategies import Kind, strategy
from kill_and_resume import finish_two
from lightning.pytorch import Callback, Trainer
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from toy_checkpoints import Wide, again, hidden_names, load, numbers, trainer, visible

from callbacks import AtomicCheckpoint
from callbacks.checkpoints import save_before_end, write_checkpoint
from medvlt.errors import DataError, LostRankError


@contextmanager
def full(strategy: Any) -> Iterator[list[Path]]:
    """A disk that is full when half is written; gives what was to be written."""
    asked: list[Path] = []

    def save(checkpoint: dict[str, Any], filepath: Path, storage_options: Any = None) -> None:
        asked.append(filepath)
        filepath.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    strategy.save_checkpoint = save
    yield asked
    del strategy.save_checkpoint


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = AtomicCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1)
    fit = trainer(keeper, max_steps=1)
    fit.fit(Wide(), numbers(3))
    before = visible(tmp_path)
    with full(fit.strategy), pytest.raises(DataError, match="No space left on device") as caught:
        again(fit, keeper, 2)
    assert f"the last whole one is {before[0]}: resume with --ckpt_path {before[0]}" in str(caught.value)
    assert visible(tmp_path) == before
    assert not hidden_names(tmp_path)
    with full(fit.strategy), pytest.raises(DataError, match=r"cannot write the checkpoint .*No space left"):
        write_checkpoint(fit, before[0])  # the one that is there
    assert load(before[0]) == 1
    with full(fit.strategy):  # of a run that an engine ended: why it ended is what is raised
        said = save_before_end(fit, tmp_path / "engine-failure.ckpt")
    assert said.startswith("no checkpoint could be written: cannot write")
    assert visible(tmp_path) == before

    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(DataError, match=r"took .* GB and .* has 1e-06 GB left; free .* or more; the last whole one"):
        again(fit, keeper, 3)
    assert visible(tmp_path) == before


def test_an_error_of_writing_is_not_answered_by_writing(tmp_path: Path) -> None:
    """Nor is the loss of a rank, without which nothing can be written."""

    class Fail(Callback):
        def __init__(self, error: Exception) -> None:
            self.error = error

        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            raise self.error

    for error, kept in ((RuntimeError("of another kind"), 1), (LostRankError("a rank is gone"), 0)):
        keeper = AtomicCheckpoint(dirpath=tmp_path / type(error).__name__, save_on_exception=True)
        with pytest.raises(type(error)):
            trainer(Fail(error), keeper).fit(Wide(), numbers(3))
        assert len(visible(tmp_path / type(error).__name__) if kept else []) == kept
        assert (tmp_path / type(error).__name__).exists() == bool(kept)
    keeper = AtomicCheckpoint(dirpath=tmp_path / "full", save_on_exception=True, every_n_train_steps=2)
    fit = trainer(keeper)
    with full(fit.strategy) as asked, pytest.raises(DataError, match="No space left"):
        fit.fit(Wide(), numbers(3))
    assert len(asked) == 1
    keeper = AtomicCheckpoint(dirpath=tmp_path / "full", save_on_exception=True)
    fit = trainer(Fail(RuntimeError("of another kind")), keeper)
    with full(fit.strategy) as asked, pytest.raises(RuntimeError, match="of another kind"):
        fit.fit(Wide(), numbers(3))
    assert len(asked) == 1


def test_space_is_not_measured_by_a_checkpoint_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights alone, in a run that goes on from a whole state."""
    whole = AtomicCheckpoint(dirpath=tmp_path, filename="whole", every_n_train_steps=1)
    trainer(whole, max_steps=1).fit(Wide(), numbers(3))
    left = namedtuple("left", "free")((tmp_path / "whole.ckpt").stat().st_size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: left)
    keeper = AtomicCheckpoint(dirpath=tmp_path / "w", filename="w", save_weights_only=True, every_n_train_steps=1)
    trainer(keeper, max_steps=3).fit(Wide(), numbers(3), ckpt_path=tmp_path / "whole.ckpt", weights_only=False)
    assert visible(tmp_path / "w")


def test_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        keeper = AtomicCheckpoint(dirpath=disk, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        fit = trainer(keeper)
        with pytest.raises(DataError, match=r"the last whole one is .*step=\d.ckpt: resume with") as caught:
            fit.fit(Wide(150), numbers(9, 150))  # 270 kB each
        assert "cannot write the checkpoint" in str(caught.value)
        with pytest.raises(DataError, match="No space left on device"):
            write_checkpoint(fit, disk / "another.ckpt")
        assert [load(path) for path in visible(disk)] == [1, 2, 3]
        assert not hidden_names(disk)
    finally:
        subprocess.run(["umount", disk], check=True)


def failing_rank(rank: int, port: int, kind: Kind, folder: Path) -> None:
    """Two ranks write a folder, and the disk of the second is full at the second time."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    keeper = AtomicCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    sharded = strategy(kind)
    if kind == "zero3":  # then it gathers the parameters that it keeps whole after it has written
        sharded.config["zero_optimization"]["stage3_param_persistence_threshold"] = 10**5
    fit = trainer(keeper, max_steps=1, devices=2, strategy=sharded)
    fit.fit(Wide(), numbers(3))
    writer: Any = fit.strategy.deepspeed_engine.checkpoint_engine if kind == "zero3" else FileSystemWriter
    name = "save" if kind == "zero3" else "write_data"
    write = getattr(writer, name)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*args, **kwargs)

    setattr(writer, name, fail)
    try:
        again(fit, keeper, 2)
    except DataError as error:
        (folder / f"{rank}.txt").write_text(str(error))
    setattr(writer, name, write)
    again(fit, keeper, 3)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["fsdp2", "zero3"])
def test_disk_of_one_rank_is_full(kind: Kind, tmp_path: Path) -> None:
    """Both say so, nothing is left of it, and they can still write together."""
    if kind == "zero3":
        pytest.importorskip("deepspeed")
    finish_two(failing_rank, kind, tmp_path)
    for rank in range(2):
        said = (tmp_path / f"{rank}.txt").read_text()
        assert "step=2.ckpt: " in said
        assert "rank 1: " in said or rank == 1
        assert "No space left on device" in said
        assert "the last whole one is" in said
    assert [path.name for path in visible(tmp_path)] == ["step=1.ckpt", "step=3.ckpt"]
    assert not hidden_names(tmp_path)
