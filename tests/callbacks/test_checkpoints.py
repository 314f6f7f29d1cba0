# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole at every instant: killed at each step of a save, and at random."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_strategies import free_port
from kill_and_resume import CONTEXT, finish_two
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from toy_checkpoints import Wide, again, hidden_names, load, numbers, trainer, visible

from callbacks import AtomicCheckpoint, swapping
from medvlt.errors import ConfigurationError, DataError

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
    temporary = tmp_path / "temporary"  # on another disk, perhaps, and nobody sweeps it
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
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
        assert not list(temporary.iterdir())
        swapping.sweep(tmp_path / "run")
        assert not hidden_names(tmp_path / "run")
        assert last.exists()
        if not died:
            break
    assert step > (5 if kind == "file" else 10)


def test_ranks_that_finish_a_swap_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank makes the whole move between any two looks at the disk: the new one stays in its place."""
    path, lexists = tmp_path / "last.ckpt", os.path.lexists
    looks = 0
    for moment in range(1, 7):
        shutil.rmtree(path, ignore_errors=True)
        for role in ("writing", "replaced"):
            shutil.rmtree(swapping.hidden(path, role), ignore_errors=True)
            swapping.hidden(path, role).mkdir()
            (swapping.hidden(path, role) / role).touch()
        looks = 0

        def look(name: Any, moment: int = moment) -> bool:
            nonlocal looks
            looks += 1
            found = lexists(name)
            if looks == moment:
                swapping.finish_swap(path)
            return found

        monkeypatch.setattr(os.path, "lexists", look)
        swapping.finish_swap(path)
        assert [inside.name for inside in path.iterdir()] == ["writing"]
        monkeypatch.undo()


def as_folder(checkpoint: dict[str, Any], filepath: Any) -> None:
    filepath.mkdir()
    for part in ("meta.pt", "a.distcp", "b.distcp"):
        torch.save(checkpoint, filepath / part)


def whole_in(path: Path) -> bool:
    parts = [path / part for part in ("meta.pt", "a.distcp", "b.distcp")] if path.is_dir() else [path]
    return len({torch.load(part, weights_only=True)["global_step"] for part in parts}) == 1


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


def on_two_nodes(rank: int, port: int, folder: Path) -> None:
    """A node of one rank each; the second has its own disk where checkpoints are kept."""
    if rank == 1:
        ctypes.CDLL(None).unshare(0x00020000)  # CLONE_NEWNS: mounts of its own
        for options in (["--make-rprivate", "/"], ["-t", "tmpfs", "tmpfs", str(folder)]):
            subprocess.run(["mount", *options], check=True)
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK="0", NODE_RANK=str(rank))

    def fit(**settings: Any) -> tuple[Trainer, AtomicCheckpoint]:
        keeper = AtomicCheckpoint(folder, "{step}", every_n_train_steps=1, save_last="link", save_on_exception=True)
        made = trainer(keeper, num_nodes=2, max_steps=3, strategy=DDPStrategy(process_group_backend="gloo"))
        made.fit(Wide(), numbers(10), **settings)
        return made, keeper

    made, keeper = fit()
    names = [path.name for path in visible(folder)]
    assert names == (["last.ckpt", "step=3.ckpt"] if rank == 0 else [])
    if rank == 1:  # fails alone
        keeper._last_global_step_saved = 0
        keeper.on_exception(made, made.lightning_module, ValueError("a bad picture"))
    with pytest.raises(ConfigurationError, match="rank 1 nothing; dirpath must be on a disk that all nodes share"):
        fit(ckpt_path="last")

    made.strategy.save_checkpoint = partial(as_shared_folder, rank)
    with pytest.raises(DataError, match="does not see what rank 0 wrote there: dirpath must be on a disk that all"):
        again(made, keeper, 4)
    assert [path.name for path in folder.iterdir() if path.name not in names] == []
    torch.distributed.destroy_process_group()


def as_shared_folder(rank: int, checkpoint: dict[str, Any], filepath: Path) -> None:
    filepath.mkdir(exist_ok=True)
    torch.save(checkpoint, filepath / f"{rank}.distcp")


def test_nodes_that_share_no_disk(tmp_path: Path) -> None:
    """Files, links and their removal are the first one's matter; a folder and going on are refused on both."""
    mounts = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if mounts.returncode:
        pytest.skip("only root can give a process mounts of its own")
    finish_two(on_two_nodes, tmp_path)


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
