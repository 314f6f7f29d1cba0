# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole at every instant: killed at each step of a save, and at random; disks that are full."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_strategies import Kind, free_port, strategy
from kill_and_resume import CONTEXT
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from callbacks import AtomicCheckpoint, swapping
from callbacks.checkpoints import write_checkpoint
from medvlt.errors import ConfigurationError, DataError, LostRankError
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


SETTINGS: list[dict[str, Any]] = [
    {"save_top_k": 1, "save_last": True},
    {"save_top_k": 1, "save_last": "link"},
    {"save_top_k": 2, "save_last": "link", "monitor": "loss", "mode": "min"},
    {"save_top_k": -1, "save_last": True, "every_n_train_steps": 2},
    {"save_top_k": 0, "save_last": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_keeps_and_removes_what_lightning_does(settings: dict[str, Any], tmp_path: Path) -> None:
    """Over a run and its resumption: the same names, which hold the same."""

    def run(kind: type[ModelCheckpoint], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        found: list[dict[str, int]] = []
        for epochs in (3, 5):
            keeper = kind(
                dirpath=tmp_path / name, **{"every_n_epochs": 1} | settings if len(settings) < 3 else settings
            )
            torch.manual_seed(0)
            fit = trainer(keeper, max_epochs=epochs)
            fit.fit(Wide(), numbers(4), ckpt_path="last" if epochs == 5 else None, weights_only=False)
            found.append({path.name: load(path) for path in visible(tmp_path / name)})
        state = {key: value for key, value in keeper.state_dict().items() if key != "dirpath"}
        return {"first": found[0], "then": found[1]}, {k: str(v).replace(name, "") for k, v in state.items()}

    theirs, ours = run(ModelCheckpoint, "theirs"), run(AtomicCheckpoint, "ours")
    assert ours == theirs
    assert len(ours[0]["then"]) >= 1
    assert not hidden_names(tmp_path / "ours")


def in_child(action: Callable[[], None], step: int) -> bool:
    """Runs an action in a fork that dies before its n-th change of the file system; returns whether it died."""
    child = os.fork()
    if child == 0:
        left = [step]

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "exchanged"):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("save_last", [True, "link"])
@pytest.mark.parametrize(("kind", "exchanges"), [("file", True), ("folder", True), ("folder", False)])
def test_killed_before_each_change_on_the_disk(
    kind: str, save_last: Any, exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that removes the one before, killed anywhere: what has a name is whole, and there is always a last one.

    Where the file system knows no exchange, the last one is there again when it is looked for.
    """
    exchange = swapping.exchange

    def audited(one: Path, other: Path) -> bool:
        done = exchange(one, other) if exchanges else False
        sys.audit("exchanged")
        return done

    monkeypatch.setattr(swapping, "exchange", audited)
    keeper = AtomicCheckpoint(dirpath=tmp_path / "run", save_last=save_last, every_n_train_steps=1)
    fit = trainer(keeper, max_steps=1)
    fit.fit(Wide(), numbers(3))
    if kind == "folder":
        monkeypatch.setattr(fit.strategy, "save_checkpoint", as_folder)
        again(fit, keeper, 2)
    whole = tmp_path / "whole"
    shutil.move(tmp_path / "run", whole)
    step = 0
    while True:
        step += 1
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "run", symlinks=True)
        died = in_child(lambda: again(fit, keeper, 3), step)
        last = tmp_path / "run" / "last.ckpt"
        if exchanges or kind == "file":
            assert last.exists()
        assert [Path(path) for path in keeper._find_last_checkpoints(fit)] == [last]
        for path in visible(tmp_path / "run"):
            assert whole_in(path), (step, path)
        swapping.sweep(tmp_path / "run")
        assert not hidden_names(tmp_path / "run")
        assert last.exists()
        if not died:
            break
    assert step > (5 if kind == "file" else 10)


def as_folder(checkpoint: dict[str, Any], filepath: Any) -> None:
    filepath.mkdir()
    for part in ("meta.pt", "a.distcp", "b.distcp"):
        torch.save(checkpoint, filepath / part)


def whole_in(path: Path) -> bool:
    parts = [path / part for part in ("meta.pt", "a.distcp", "b.distcp")] if path.is_dir() else [path]
    return len({torch.load(part, weights_only=True)["global_step"] for part in parts}) == 1


def again(fit: Trainer, keeper: AtomicCheckpoint, step: int) -> None:
    """What the callback does after an optimizer step."""
    candidates = {"epoch": torch.tensor(0), "step": torch.tensor(step)}
    keeper._save_topk_checkpoint(fit, candidates)
    keeper._save_last_checkpoint(fit, candidates)


WIDTH = 600


def endless(kind: str, folder: Path) -> None:
    """Saves after every step until it is killed."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), LOCAL_RANK="0", NODE_RANK="0")
    sharded = "auto" if kind == "file" else ModelParallelStrategy(1, 1, process_group_backend="gloo")
    keeper = AtomicCheckpoint(dirpath=folder, save_last=True if kind == "file" else "link", every_n_train_steps=1)
    fit = trainer(keeper, max_epochs=-1, strategy=sharded)
    fit.fit(Wide(WIDTH), numbers(10**4, WIDTH), ckpt_path="last", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_at_random_moments(kind: str, tmp_path: Path) -> None:
    """Each run goes on from the last checkpoint of the one before."""
    moments, steps = random.Random(), [0]
    for _ in range(3):
        process = CONTEXT.Process(target=endless, args=(kind, tmp_path))
        process.start()
        limit = time.monotonic() + 60
        last = tmp_path / "last.ckpt"
        while not last.exists() or load_quickly(last) <= steps[-1]:
            assert process.exitcode is None
            assert time.monotonic() < limit
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.4))
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        steps.append(load(last))
        assert steps[-1] > steps[-2]
        assert all(load(path) for path in visible(tmp_path))


def load_quickly(path: Path) -> int:
    """The step of a checkpoint that another process may replace meanwhile."""
    try:
        return load(path)
    except (OSError, ConfigurationError):
        return 0


@contextmanager
def full(strategy: Any) -> Iterator[None]:
    """A disk that is full when half is written."""

    def save(checkpoint: dict[str, Any], filepath: Path, storage_options: Any = None) -> None:
        filepath.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    strategy.save_checkpoint = save
    yield
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
    with full(fit.strategy), pytest.raises(DataError, match="No space left") as caught:
        fit.fit(Wide(), numbers(3))
    assert caught.value.__context__ is caught.value.__cause__  # the first error, not one of a second attempt


def test_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        keeper = AtomicCheckpoint(dirpath=disk, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        with pytest.raises(DataError, match=r"the last whole one is .*step=\d.ckpt: resume with") as caught:
            trainer(keeper).fit(Wide(150), numbers(9, 150))  # 270 kB each
        assert "cannot write the checkpoint" in str(caught.value)
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
    port = free_port()
    processes = [CONTEXT.Process(target=failing_rank, args=(rank, port, kind, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    for rank in range(2):
        said = (tmp_path / f"{rank}.txt").read_text()
        assert "step=2.ckpt: " in said
        assert "rank 1: " in said or rank == 1
        assert "No space left on device" in said
        assert "the last whole one is" in said
    assert [path.name for path in visible(tmp_path)] == ["step=1.ckpt", "step=3.ckpt"]
    assert not hidden_names(tmp_path)


def test_what_a_killed_run_left_is_no_checkpoint(tmp_path: Path) -> None:
    """A folder that was being written, one that was being removed; neither is found, both are swept away."""
    for name in (".last.ckpt.writing", ".step=3.ckpt.removed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.pt").touch()
    (tmp_path / "notes.txt").touch()
    keeper = AtomicCheckpoint(dirpath=tmp_path, save_last=True)
    fit = trainer(keeper)
    with pytest.warns(UserWarning, match="is set, but there is no last checkpoint available"):
        fit.fit(Wide(), numbers(2), ckpt_path="last")
    assert fit.ckpt_path is None
    assert not hidden_names(tmp_path)
    assert (tmp_path / "notes.txt").exists()


def test_a_restart_finds_its_checkpoints(tmp_path: Path) -> None:
    """Without `dirpath`, and with a logger, whose folder is another one at every start; two callbacks share them."""
    for epochs in (2, 5):
        keepers = [
            AtomicCheckpoint(every_n_train_steps=3),
            AtomicCheckpoint(save_top_k=0, save_last=True, every_n_epochs=2, save_on_train_epoch_end=True),
        ]
        fit = trainer(*keepers, max_epochs=epochs, logger=CSVLogger(tmp_path), default_root_dir=tmp_path)
        fit.fit(Wide(), numbers(4), ckpt_path="last")
        assert fit.global_step == 4 * epochs
        assert load(tmp_path / "checkpoints" / "last.ckpt") == 4 * epochs  # of an epoch that is not the second
        if epochs > 2:
            assert fit.ckpt_path == str(tmp_path / "checkpoints" / "last.ckpt")


def test_last_is_written_whenever_it_is_due(tmp_path: Path) -> None:
    """With no other checkpoint Lightning's is written at the end alone."""

    class Look(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch:
                seen.append(load(tmp_path / "last.ckpt"))

    seen: list[int] = []
    keeper = AtomicCheckpoint(dirpath=tmp_path, save_top_k=0, save_last=True, save_on_train_epoch_end=True)
    trainer(Look(), keeper, max_epochs=3).fit(Wide(), numbers(2))
    assert seen == [2, 4]


def test_what_cannot_be_atomic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="s3://bucket cannot; set dirpath to a folder"):
        trainer(Remote()).fit(Wide(), numbers(2))
    keeper = AtomicCheckpoint(dirpath=tmp_path)
    with pytest.raises(ConfigurationError, match="AsyncCheckpointIO writes after"):
        trainer(keeper, plugins=[AsyncCheckpointIO()]).fit(Wide(), numbers(2))


class Remote(AtomicCheckpoint):
    """Without the file system that `s3://` needs."""

    def __init__(self) -> None:
        super().__init__(dirpath=None)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = "memory://s3://bucket"
        super().setup(trainer, pl_module, stage)
