# SPDX-License-Identifier: Apache-2.0
"""The demonstration: the recipe on generated data with a tiny model, as a chain of ordinary commands."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from rich.console import Console

from medvlt.errors import MedvltError
from medvlt.evaluation.results import print_results, read_correct, read_results
from medvlt.evaluation.statistics import paired_bootstrap
from medvlt.models.tiny import CHAT_TEMPLATE, TinySize, build_tiny


def tiny(
    output: str | Path = "runs/demo/model",
    tokenizer_from: str | None = None,
    size: TinySize = TinySize(),  # noqa: B008 - frozen
    seed: int = 0,
) -> None:
    """Writes a random tiny Qwen2.5-VL as an ordinary model folder.

    Args:
        output: Folder to make; it must not exist, or be empty.
        tokenizer_from: Folder or Hub name whose tokenizer is used; by default one is trained on generated questions.
        size: Widths and depths of the model.
        seed: Of its random weights.
    """
    from medvlt.data.phantom import phantom_corpus

    # the words of the chat template are in every prompt, so they should be single tokens too
    corpus = chain([CHAT_TEMPLATE] * 100, phantom_corpus())
    folder = build_tiny(Path(output), corpus=corpus, tokenizer_from=tokenizer_from, size=size, seed=seed)
    Console().print(f"wrote a random tiny Qwen2.5-VL to {folder}")


FOLDER = Path("runs/demo")
"""Where the demo writes, in the current folder; the demo configs name the same."""

EVALUATE = "validate --config demo/evaluate.yaml --trainer.default_root_dir runs/demo/{name}"

STEPS = (
    "tiny --output runs/demo/model",
    EVALUATE.format(name="untrained"),
    "fit --config demo/sft.yaml",
    EVALUATE.format(name="sft_evaluated") + " --ckpt_path runs/demo/sft/checkpoints/sft.ckpt",
    "export runs/demo/sft/checkpoints/sft.ckpt runs/demo/sft_model",
    "predict --config demo/probe.yaml",
    "fit --config demo/grpo.yaml",
    EVALUATE.format(name="grpo_evaluated") + " --ckpt_path runs/demo/grpo/checkpoints/grpo.ckpt",
)
"""The commands, in order."""

WITHOUT_VLLM = {
    "demo/probe.yaml": "demo/probe_transformers.yaml",
    "demo/grpo.yaml": "demo/grpo_transformers.yaml",
}
"""The configs that take the place of others where vLLM is not installed."""

CONTROL = (
    "fit --config demo/sft.yaml --model.init_args.backbone.name runs/demo/sft_model"
    " --data.init_args.encoder.model runs/demo/sft_model --data.init_args.seed 1"
    " --trainer.default_root_dir runs/demo/control --trainer.logger.init_args.save_dir runs/demo/control"
    " --trainer.limit_val_batches 0 --trainer.max_epochs 1000 --trainer.max_time {time}",
    EVALUATE.format(name="control_evaluated") + " --ckpt_path runs/demo/control/checkpoints/sft.ckpt",
)
"""The control: supervised training goes on from the same weights, for the time that probing and GRPO took."""

ROWS = {
    "untrained": "untrained",
    "sft_evaluated": "SFT",
    "grpo_evaluated": "SFT, then GRPO",
    "control_evaluated": "SFT, then more SFT",
}
"""Folder of each evaluation and its name in the table."""


def demo(control: bool = False) -> None:
    """Builds a tiny model, fine-tunes it on generated questions, probes which are hard, trains it by GRPO on those.

    Every step is an ordinary command that is printed and can be repeated by hand. Everything is written to `runs/demo`
    in the current folder, which is deleted first.

    Args:
        control: Also train on with SFT instead of GRPO, from the same weights and for the same seconds.
    """
    started = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    seconds: dict[str, float] = {}
    if importlib.util.find_spec("vllm") is None:
        Console().print("vLLM is not installed: transformers samples instead")
        twins = WITHOUT_VLLM
    else:
        twins = {}
    for step in STEPS:
        seconds[step] = _run([twins.get(word, word) for word in step.split()])
    if control:
        spent = sum(value for step, value in seconds.items() if "demo/probe.yaml" in step or "demo/grpo.yaml" in step)
        limit = time.strftime("00:%H:%M:%S", time.gmtime(spent))
        for step in CONTROL:
            _run(step.format(time=limit).split())
    print_results({label: read_results(FOLDER / name / "results.json") for name, label in rows(control).items()})
    for name in [*rows(control)][2:]:
        print_difference(FOLDER / name, FOLDER / "sft_evaluated", ROWS[name], ROWS["sft_evaluated"])
    if control:
        print_difference(
            FOLDER / "grpo_evaluated", FOLDER / "control_evaluated", ROWS["grpo_evaluated"], ROWS["control_evaluated"]
        )
    Console().print(f"held-out questions, never seen in training; {time.monotonic() - started:.0f} s in all")


def rows(control: bool) -> dict[str, str]:
    """Returns `ROWS`, without the control unless it was run."""
    return {name: label for name, label in ROWS.items() if control or not name.startswith("control")}


def print_difference(first: Path, second: Path, first_label: str, second_label: str) -> None:
    """Prints the difference in accuracy of two evaluations on the same questions, with a paired bootstrap interval."""
    ours, theirs = (read_correct(folder / "completions-val-0.jsonl") for folder in (first, second))
    questions = sorted(ours)
    difference, low, high = paired_bootstrap([ours[q] for q in questions], [theirs[q] for q in questions], seed=0)
    Console(soft_wrap=True).print(
        f"{first_label!r} against {second_label!r}: {100 * difference:+.1f} points "
        f"(95% paired bootstrap interval {100 * low:+.1f} to {100 * high:+.1f}; the same {len(questions)} questions)",
        highlight=False,
    )


def _run(arguments: Sequence[str]) -> float:
    """Runs a command and returns its seconds."""
    Console().print(f"[bold]$ medvlt {shlex.join(arguments)}[/bold]", soft_wrap=True, highlight=False)
    started = time.monotonic()
    finished = subprocess.run([sys.executable, "-m", "medvlt", *arguments], check=False)
    if finished.returncode:
        raise MedvltError(f"`medvlt {arguments[0]}` ended with exit code {finished.returncode}; its message is above")
    return time.monotonic() - started
