# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed and resumed under each strategy: real processes, real SIGKILL; for tests and the matrix."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from multiprocessing.process import BaseProcess
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import torch
from cpu_strategies import Kind, free_port, strategy
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks import AtomicCheckpoint, RolloutCallback
from datamodules import PromptDataModule, SFTDataModule
from lightning_modules import FSDP2Strategy, GRPOModule, SFTModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.models.loading import Backbone, LoRA
from medvlt.models.optimization import Optimization
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.rollout.transformers import TransformersEngine
from medvlt.rollout.weights import hub_weights
from medvlt.types import Completion, Sample, SamplingParams, Verdict

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "lightning.pytorch", "peft", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "kill_and_resume"]
)

EPOCHS, STEPS = 2, 2
"""Of a run; epochs of RL are iterations."""


def finish_two(function: Callable[..., None], *arguments: Any) -> None:
    """Runs `function(rank, port, *arguments)` in two processes, which must both end well within a minute."""
    port = free_port()
    processes = [CONTEXT.Process(target=function, args=(rank, port, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    codes = [process.exitcode for process in processes]
    for process in processes:  # one that waits for the other for ever
        process.kill()
    assert codes == [0, 0]


@dataclass(frozen=True)
class Run:
    """A way to train.

    Attributes:
        strategy: Which.
        task: Which module; each has its data.
        lora: Adapters instead of all weights, in SFT with dropout.
        ranks: Processes.
        accumulate: Micro-batches of a step on each.
    """

    strategy: Kind
    task: Literal["sft", "grpo"]
    lora: bool = False
    ranks: int = 2
    accumulate: int = 2


@dataclass(frozen=True)
class Outcome:
    """What came of a run: by optimizer step its loss and samples (and completions); the weights at the end."""

    losses: dict[int, float]
    samples: dict[int, Any]
    weights: dict[str, Tensor]

    def difference(self, other: Outcome) -> tuple[float, float]:
        """Largest difference of a loss, relative above 1, and of a weight; the samples must be equal."""
        assert self.samples == other.samples
        assert self.weights.keys() == other.weights.keys()
        assert self.losses.keys() == other.losses.keys()
        assert len(self.losses) == EPOCHS * STEPS
        losses = max(abs(loss - other.losses[step]) / max(1.0, abs(loss)) for step, loss in self.losses.items())
        weights = max(float((w - other.weights[name]).abs().max()) for name, w in self.weights.items())
        return losses, weights


class OddTokens:
    """A reward that a random model earns half of the time."""

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        return float(sum(completion.token_ids[:3]) % 2)


class Reading(ScriptedEngine):
    """Reads all weights it is sent, as an engine with a copy would; which text it gives depends on keys alone."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        assert len([tensor for _, tensor in weights if tensor.numel()]) > 50
        super().load_weights((), version=version)


class Diary(Callback):
    """Writes down what every optimizer step saw, and kills its own process where it is told to.

    Args:
        folder: Of the run.
        kill: "inside:N", after the first micro-batch of the step that follows N; "epoch:N", when epoch N begins.
        attempt: Number of the start in this folder.
    """

    def __init__(self, folder: Path, kill: str, attempt: int) -> None:
        self.folder, self.attempt = folder, attempt
        self.place, _, when = kill.partition(":")
        self.when = int(when or -1)
        self.uids: set[str] = set()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._die("epoch", trainer.current_epoch)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        packed = getattr(args[1], "packed", args[1])
        rows = zip(packed.uids, packed.weights.split(packed.completion_lengths.tolist()), strict=True)
        self.uids |= {uid for uid, weights in rows if weights.any()}
        if (args[2] + 1) % trainer.accumulate_grad_batches:
            self._die("inside", trainer.global_step)
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        groups = data.buffer.iteration.groups if isinstance(data, PromptDataModule) else ()
        entry = {
            "attempt": self.attempt,
            "split": [trainer.world_size, trainer.accumulate_grad_batches],
            "step": trainer.global_step,
            "loss": float(trainer.callback_metrics["train/loss"]),
            "uids": sorted(self.uids),
            "tokens": [completion.token_ids for group in groups for completion in group.group.completions],
        }
        self.uids = set()
        with (self.folder / f"diary{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _die(self, place: str, number: int) -> None:
        if (place, number) == (self.place, self.when):
            os.kill(os.getpid(), signal.SIGKILL)


def finish(run: Run, model: Path, folder: Path, *, resume: str = "") -> Outcome:
    """Trains to the end, from a checkpoint in the folder if one is named; returns what was seen in all runs there."""
    processes = start(run, model, folder, resume=resume)
    for process in processes:
        process.join(300)
    codes = [process.exitcode for process in processes]
    for process in processes:  # one that waits for another for ever
        process.kill()
    assert codes == [0] * run.ranks, said(folder)
    return outcome(folder)


def kill(run: Run, model: Path, folder: Path, at: str, *, resume: str = "") -> None:
    """Trains until the processes kill themselves; see `Diary`."""
    processes = start(run, model, folder, kill=at, resume=resume)
    limit = time.monotonic() + 300
    while all(process.exitcode is None for process in processes) and time.monotonic() < limit:
        time.sleep(0.02)
    ended = {process.exitcode for process in processes} - {None}
    for process in processes:  # those that wait for the one that is gone
        process.kill()
        process.join(60)
    assert ended == {-signal.SIGKILL}, said(folder)


def start(run: Run, model: Path, folder: Path, *, kill: str = "", resume: str = "") -> list[BaseProcess]:
    folder.mkdir(exist_ok=True)
    port = free_port()
    attempt = 1 + max((entry["attempt"] for entry in entries(folder)), default=0)
    processes = []
    for rank in range(run.ranks):
        processes.append(CONTEXT.Process(target=work, args=(rank, port, run, model, folder, kill, resume, attempt)))
        processes[-1].start()
    return list(processes)


def work(rank: int, port: int, run: Run, model: Path, folder: Path, kill: str, resume: str, attempt: int) -> None:
    """One process of a run."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if run.strategy != "single":
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    with (folder / "output").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    train(run, model, folder, Diary(folder, kill, attempt), resume)


def said(folder: Path) -> str:
    """The end of what the processes said."""
    return (folder / "output").read_text()[-3000:]


def train(run: Run, model: Path, folder: Path, diary: Diary, resume: str) -> None:
    kept: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    keepers = [
        AtomicCheckpoint(filename="step", every_n_train_steps=1, **kept),
        AtomicCheckpoint(filename="epoch", every_n_epochs=1, save_on_train_epoch_end=True, **kept),
    ]
    sampling = SamplingParams(n=3, temperature=0.9, max_tokens=6)
    # sharded weights cannot sample: there the engine is scripted and reads what it is sent
    engine = Reading(["a b", "c", "d e f"]) if run.strategy in ("fsdp2", "zero3") else TransformersEngine()
    rollout = RolloutCallback(engine, group_sampling=sampling, seed=1, parity=None)
    trainer = Trainer(
        accelerator="cpu", devices=run.ranks, logger=False, enable_progress_bar=False, enable_model_summary=False,
        strategy=FSDP2Strategy(process_group_backend="gloo") if run.strategy == "fsdp2" else strategy(run.strategy),
        max_epochs=EPOCHS, accumulate_grad_batches=run.accumulate, default_root_dir=folder, limit_val_batches=0,
        callbacks=[diary, *([rollout] if run.task == "grpo" else []), *keepers],
    )  # fmt: skip
    trainer.fit(module(run, model), data(run, model), ckpt_path=folder / resume if resume else None)
    weights = {name: tensor.detach().clone() for name, tensor in hub_weights(trainer.lightning_module.policy)}
    if trainer.is_global_zero:
        torch.save(weights, folder / "weights.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def module(run: Run, model: Path) -> LightningModule:
    dropout = 0.2 if run.task == "sft" else 0.0
    lora = LoRA(rank=4, alpha=8, dropout=dropout, components=("vision", "projector", "language")) if run.lora else None
    optimization = Optimization(learning_rate=1e-3, warmup_ratio=0.0, schedule="linear", total_steps=EPOCHS * STEPS)
    backbone = Backbone(str(model), lora=lora)
    if run.task == "sft":
        return SFTModule(backbone, optimization)
    return GRPOModule(backbone, optimization, rewards={"odd": OddTokens()}, kl_coef=0.05, advantage_scale="batch")


def data(run: Run, model: Path) -> SFTDataModule | PromptDataModule:
    encoder = PromptEncoder(str(model), template="plain")
    if run.task == "sft":
        return SFTDataModule(Phantom("train", 8 * STEPS, seed=1), encoder, global_batch_size=8)
    return PromptDataModule(Phantom("train", 20, seed=1), encoder, prompts_per_iteration=8, updates_per_iteration=STEPS)


def entries(folder: Path) -> list[dict[str, Any]]:
    """Reads what all ranks of all runs in a folder wrote down."""
    return [json.loads(line) for path in sorted(folder.glob("diary*.jsonl")) for line in path.read_text().splitlines()]


def outcome(folder: Path) -> Outcome:
    """Puts all runs in a folder together; a step that was made again must have been the same.

    To the last bit, or within the rounding of its sums where it was split otherwise. A step that not all ranks of a run
    had written down when they were killed counts where it was made again.
    """
    losses: dict[int, float] = {}
    samples: dict[int, Any] = {}
    split: dict[int, list[int]] = {}
    by_step = itemgetter("attempt", "step")
    for (_, step), group in groupby(sorted(entries(folder), key=by_step), key=by_step):
        made = list(group)
        now: list[int] = made[0]["split"]
        if len(made) < now[0]:
            continue
        loss = made[0]["loss"]
        seen = sorted({uid for entry in made for uid in entry["uids"]}), made[0]["tokens"]
        assert all((entry["loss"], entry["tokens"]) == (loss, seen[1]) for entry in made)
        if step in losses:
            assert samples[step] == seen
            tolerance = 0 if split[step] == now else 1e-5 * max(1.0, abs(loss))
            assert abs(losses[step] - loss) <= tolerance, f"step {step} was made with {losses[step]}, then {loss}"
        losses[step], samples[step], split[step] = loss, seen, now
    return Outcome(losses, samples, torch.load(folder / "weights.pt"))


KILLS = {"mid": ("inside:1", "step.ckpt"), "end": ("epoch:1", "epoch.ckpt")}
"""Where to kill, and from which checkpoint to go on."""


def killed_and_resumed(run: Run, model: Path, folder: Path, moment: str) -> Outcome:
    """Kills a run, inside an optimizer step or in the epoch after a checkpoint, and resumes it in new processes."""
    at, checkpoint = KILLS[moment]
    kill(run, model, folder, at)
    return finish(run, model, folder, resume=checkpoint)
