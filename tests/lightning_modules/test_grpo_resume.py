# SPDX-License-Identifier: Apache-2.0
"""A run that is killed, three times in a row, goes on as if it had not been: real processes, real SIGKILL."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from callbacks import RolloutCallback
from datamodules import PromptDataModule
from lightning_modules import GRPOModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.models.loading import Backbone
from medvlt.models.optimization import Optimization
from medvlt.rollout.base import RolloutEngine
from medvlt.rollout.transformers import TransformersEngine
from medvlt.types import Completion, Sample, SamplingParams, Verdict

ITERATIONS, UPDATES, ACCUMULATE = 6, 2, 2


class Parity:
    """A reward that a random model earns half of the time."""

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        return float(sum(completion.token_ids[:3]) % 2)


class Diary(Callback):
    """Appends what every optimizer step saw to a file, and kills its own process where it is told to."""

    def __init__(self, path: Path, kill: str) -> None:
        self.path = path
        self.place, _, when = kill.partition(":")
        self.when = int(when or -1)

    def die(self, place: str, number: int) -> None:
        if (place, number) == (self.place, self.when):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if (args[2] + 1) % ACCUMULATE == 0:
            iteration = trainer.datamodule.buffer.iteration  # type: ignore[attr-defined]
            entry = {
                "step": trainer.global_step,
                "loss": float(trainer.callback_metrics["train/loss"]),
                "rewards": [group.rewards for group in iteration.groups],
                "token_ids": [c.token_ids for group in iteration.groups for c in group.group.completions],
            }
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        else:
            self.die("inside", trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.die("end", trainer.global_step)


def dying_at_sync(engine: RolloutEngine, diary: Diary) -> RolloutEngine:
    """Makes an engine die when half of the weights of some version have been sent."""
    load = engine.load_weights

    def load_weights(weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        def stream() -> Iterable[tuple[str, Tensor]]:
            for number, item in enumerate(weights):
                if number == 40:
                    diary.die("sync", version)
                yield item

        # the live policy needs no copy and reads nothing; the kill has to come all the same
        load(list(stream()) if isinstance(engine, TransformersEngine) else stream(), version=version)

    engine.load_weights = load_weights  # type: ignore[method-assign]
    return engine


def main(kind: str, folder: Path, root: Path, kill: str, resume: str) -> None:
    if kind == "vllm":
        from medvlt.rollout.vllm import VLLMEngine

        engine: RolloutEngine = VLLMEngine(max_model_len=512)
    else:
        engine = TransformersEngine()
    diary = Diary(root / "diary.jsonl", kill)
    rollout = RolloutCallback(
        dying_at_sync(engine, diary), group_sampling=SamplingParams(n=3, temperature=0.9, max_tokens=10), seed=5
    )
    # both kinds of checkpoint: after optimizer steps (mid-iteration and on its last batch) and after an iteration
    kept: dict[str, Any] = {"dirpath": root, "enable_version_counter": False}
    keepers = [
        ModelCheckpoint(filename="step", every_n_train_steps=1, **kept),
        ModelCheckpoint(filename="iteration", every_n_epochs=1, save_on_train_epoch_end=True, **kept),
    ]
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=ITERATIONS,
        default_root_dir=root, accumulate_grad_batches=ACCUMULATE, callbacks=[rollout, diary, *keepers],
    )  # fmt: skip
    module = GRPOModule(
        Backbone(str(folder)), Optimization(learning_rate=1e-2, warmup_ratio=0.3, schedule="linear"),
        rewards={"parity": Parity()}, kl_coef=0.05,
    )  # fmt: skip
    data = PromptDataModule(
        Phantom("train", 10, seed=1), PromptEncoder(str(folder), template="plain"), prompts_per_iteration=4,
        updates_per_iteration=UPDATES,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=str(root / resume) if resume else None)


def run(kind: str, folder: Path, root: Path, *, kill: str = "", resume: str = "") -> int:
    command = [sys.executable, __file__, kind, str(folder), str(root), kill, resume]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root, check=False)
    if finished.returncode not in (0, -signal.SIGKILL):
        pytest.fail(finished.stderr[-4000:])
    return finished.returncode


def diary(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "diary.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("kind", ["vllm" if importlib.util.find_spec("vllm") else "transformers"])
def test_killed_and_resumed_equals_undisturbed(kind: str, tiny_folder: Path, tmp_path: Path) -> None:
    """Killed between two micro-batches of iteration 1, in the sync of iteration 3 and at the end of iteration 4.

    Resumed each time from another kind of checkpoint: of a step, of an iteration's last step, of an iteration.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run(kind, tiny_folder, whole) == 0
    expected = {entry["step"]: entry for entry in diary(whole)}
    assert list(expected) == list(range(1, ITERATIONS * UPDATES + 1))
    for kill, resume in (("inside:3", ""), ("sync:6", "step.ckpt"), ("end:10", "step.ckpt"), ("", "iteration.ckpt")):
        done = run(kind, tiny_folder, killed, kill=kill, resume=resume)
        assert done == (-signal.SIGKILL if kill else 0)
    for entry in diary(killed):  # also the steps that were made again
        assert entry == expected[entry["step"]]
    assert {entry["step"] for entry in diary(killed)} == set(expected)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5])
