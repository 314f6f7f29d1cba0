# SPDX-License-Identifier: Apache-2.0
"""Seconds per phase and peak memory of a GRPO iteration, with the live policy and with vLLM as the engine.

    python benchmarks/grpo_step.py [--hidden 128] [--layers 4] [--prompts 32] [--group-size 8] [--max-tokens 48]
                                   [--iterations 4] [--engines transformers vllm] [--kl-coef 0.01] [--device cpu]

Each engine runs in a process of its own, one after the other, with the same model, prompts (half of them with a
picture), reward and optimizer, through the Trainer and the callback as a user would run it. A random model rarely ends,
so completions have their full length. The first iteration is left out (warm-up); the rest are medians. On a GPU the
trainer computes in bf16-mixed, on a CPU in float32. Memory is the highest resident set of the process; on a GPU the
most that was in use on the device, by whomever, read after sampling with the engine awake and after every micro-batch
(what torch keeps reserved is in it, and so the peak inside a micro-batch).
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import RolloutCallback
from datamodules import PromptDataModule
from lightning_modules import GRPOModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.models.loading import Backbone
from medvlt.models.optimization import Optimization
from medvlt.models.tiny import TinySize, build_tiny
from medvlt.rewards.base import FunctionReward
from medvlt.rollout.base import RolloutEngine
from medvlt.rollout.iteration import ScoredGroup
from medvlt.rollout.transformers import TransformersEngine
from medvlt.rollout.vllm import VLLMEngine
from medvlt.types import Completion, RolloutGroup, Sample, SamplingParams, Verdict

PHASES = ("generate", "sync", "score", "update", "iteration")


def odd(sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
    """A reward that a random model earns half of the time, so that most groups are learned from."""
    return float(sum(completion.token_ids[:4]) % 2)


class Watched(GRPOModule):
    """Notes the device memory in use where it is highest."""

    device_mib = 0.0

    def score(self, groups: Sequence[tuple[int, RolloutGroup]]) -> list[ScoredGroup]:
        self._note()  # the engine has sampled and is still awake
        return super().score(groups)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        self._note()

    def _note(self) -> None:
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            self.device_mib = max(self.device_mib, (total - free) / 2**20)


class Clock(Callback):
    """Keeps the seconds that the rollout callback logs."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer)

    def _keep(self, trainer: Trainer) -> None:
        values: dict[str, Any] = dict(trainer.callback_metrics)
        if "seconds/iteration" in values:
            row = {name: float(values[f"seconds/{name}"]) for name in PHASES}
            self.rows.append(row | {"tokens": float(values["tokens_per_second"]) * row["generate"]})


def measure(args: argparse.Namespace, folder: Path, kind: str) -> dict[str, float]:
    """Runs the iterations with one engine and returns medians."""
    encoder = PromptEncoder(str(folder), template="plain")
    data = PromptDataModule(Phantom("train", 4 * args.prompts), encoder, prompts_per_iteration=args.prompts)
    engine: RolloutEngine = (
        TransformersEngine(args.prompts * args.group_size)
        if kind == "transformers"
        else VLLMEngine(max_model_len=1024, max_images=1)
    )
    rollout = RolloutCallback(
        engine, group_sampling=SamplingParams(n=args.group_size, max_tokens=args.max_tokens), seed=0
    )
    module = Watched(
        Backbone(str(folder)),
        Optimization(learning_rate=1e-6, schedule="constant"),
        rewards={"odd": FunctionReward(odd)},
        kl_coef=args.kl_coef,
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(
            accelerator="gpu" if args.device == "cuda" else "cpu", devices=1, max_epochs=args.iterations + 1,
            accumulate_grad_batches=max(1, args.prompts // 8), logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, default_root_dir=root, callbacks=[rollout, clock],
            limit_val_batches=0, precision="bf16-mixed" if args.device == "cuda" else "32-true",
        )  # fmt: skip
        trainer.fit(module, data)
    rows = clock.rows[1:]
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    memory = module.device_mib if args.device == "cuda" else resident
    return {name: statistics.median(row[name] for row in rows) for name in (*PHASES, "tokens")} | {"mib": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("hidden", 128), ("layers", 4), ("prompts", 32), ("group-size", 8), ("max-tokens", 48), ("iterations", 4),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kl-coef", type=float, default=0.01)
    parser.add_argument("--engines", nargs="+", default=["transformers", "vllm"], choices=["transformers", "vllm"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args, args.folder, args.only)))
        return
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads, {args.device}; hidden "
          f"{args.hidden}, layers {args.layers}; {args.prompts} prompts x {args.group_size} completions of up to "
          f"{args.max_tokens} tokens, KL {args.kl_coef}\n")  # fmt: skip
    print(f"| engine | {' | '.join(PHASES)} | tokens | generated tokens/s | peak MiB |")
    print("|---|" + "---|" * (len(PHASES) + 3))
    with tempfile.TemporaryDirectory() as folder:
        build_tiny(
            Path(folder) / "model",
            size=TinySize(hidden_size=args.hidden, intermediate_size=2 * args.hidden, layers=args.layers,
                          initializer_range=0.1),
        )  # fmt: skip
        for engine in args.engines:
            command = [sys.executable, __file__, *sys.argv[1:], "--folder", f"{folder}/model", "--only", engine]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{done.stderr}\nmeasuring {engine!r} ended with exit code {done.returncode}")
            row = json.loads(done.stdout.splitlines()[-1])
            seconds = " | ".join(f"{row[name]:.2f}" for name in PHASES)
            print(f"| {engine} | {seconds} | {row['tokens']:,.0f} | {row['tokens'] / row['generate']:,.0f} | "
                  f"{row['mib']:,.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
