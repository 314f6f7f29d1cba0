# SPDX-License-Identifier: Apache-2.0
"""Runs killed with SIGKILL and resumed, against undisturbed ones: every strategy, task, moment and kind of weights.

    python benchmarks/resume_matrix.py [--output benchmarks/results/DATE-resume-matrix.md] [--strategies single ddp ...]

Each run has two processes (gloo), two epochs of two optimizer steps of two micro-batches, a random tiny Qwen2.5-VL with
pictures and text; LoRA on all components, in SFT with dropout 0.2; AdamW with a falling rate. It is killed inside an
optimizer step, or when the epoch after a checkpoint has begun, and resumed in new processes. Compared are the samples
and completions of every step, the losses, and the weights at the end. In RL the engine is the live policy; where
weights are sharded it is scripted, and reads what it is sent.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests" / "support")]

from kill_and_resume import KILLS, Outcome, Run, finish, kill, killed_and_resumed  # noqa: E402 - found there alone

from medvlt.models.tiny import TinySize, build_tiny  # noqa: E402

STRATEGIES = ("single", "ddp", "fsdp2", "zero2")

OTHERS = {
    "DDP, 1 x 4 to 2 x 1 to 1 x 4": (Run("ddp", "sft", ranks=1, accumulate=4), Run("ddp", "sft", accumulate=1)),
    "DDP, 2 x 2 to 1 x 2 to 2 x 2": (Run("ddp", "sft"), Run("ddp", "sft", ranks=1)),
    "FSDP2, 2 x 2 to 1 x 1 to 2 x 2": (Run("fsdp2", "sft"), Run("fsdp2", "sft", ranks=1, accumulate=1)),
}
"""Ranks x micro-batches that a run begins with, goes on with and ends with."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all cells and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, choices=[*STRATEGIES, "zero3"])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size = TinySize(layers=2, max_position_embeddings=2048, initializer_range=0.1)
        text = report(root, build_tiny(root / "tiny", size=size), options.strategies)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def report(root: Path, model: Path, strategies: Sequence[str]) -> str:
    """Returns the tables in Markdown."""
    lines = ["| strategy | task | weights | " + " | ".join(MOMENTS.values()) + " |", "|---|---|---|---|---|"]
    for strategy, task, lora in itertools.product(strategies, ("sft", "grpo"), (False, True)):
        run = Run(strategy, task, lora, ranks=1 if strategy == "single" else 2)  # type: ignore[arg-type]
        name = f"{strategy}-{task}-{lora}"
        whole = finish(run, model, root / name)
        cells = [said(whole, killed_and_resumed(run, model, root / f"{name}-{m}", m)) for m in MOMENTS]
        lines.append(f"| {NAMES[strategy]} | {task.upper()} | {'LoRA' if lora else 'full'} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    lines += ["", "| ranks x micro-batches per step | SFT | GRPO |", "|---|---|---|"]
    for name, (run, other) in OTHERS.items():
        if run.strategy in strategies:
            lines.append(f"| {name} | {' | '.join(elsewhere(root, model, name, run, other))} |")
            print(lines[-1], flush=True)
    return HEAD.format(machine=f"{platform.machine()}, Python {platform.python_version()}") + "\n".join(lines) + "\n"


def elsewhere(root: Path, model: Path, name: str, run: Run, other: Run) -> list[str]:
    """Killed and resumed with others twice, for both tasks."""
    cells = []
    for task in ("sft", "grpo"):
        first, second = replace(run, task=task), replace(other, task=task)  # type: ignore[arg-type]
        folder = root / f"{name}-{task}"
        whole = finish(first, model, root / f"{name}-{task}-whole")
        kill(first, model, folder, "inside:1")
        kill(second, model, folder, "epoch:1", resume="step.ckpt")
        cells.append(said(whole, finish(first, model, folder, resume="step.ckpt")))
    return cells


def said(whole: Outcome, killed: Outcome) -> str:
    """Returns a cell: whether all is equal to the last bit, or by how much it is not."""
    losses, weights = killed.difference(whole)
    return "identical" if losses == weights == 0 else f"same samples; losses {losses:.1e}, weights {weights:.1e}"


MOMENTS = {"mid": "killed inside a step", "end": "killed after an epoch"}
assert MOMENTS.keys() == KILLS.keys()

NAMES = {
    "single": "one device",
    "ddp": "DDP",
    "fsdp2": "FSDP2",
    "zero2": "DeepSpeed ZeRO-2",
    "zero3": "DeepSpeed ZeRO-3",
}

HEAD = """# Killed and resumed

`python benchmarks/resume_matrix.py` on {machine}, CPU, gloo, float32, two processes but for "one device".
"identical": samples and completions, losses of every step and weights at the end are equal to the last bit to those of
a run that was not disturbed. Otherwise the largest differences. With other ranks or micro-batches sums are rounded in
another order; the samples of every step are the same. DeepSpeed refuses another number of ranks.

"""

if __name__ == "__main__":
    main()
