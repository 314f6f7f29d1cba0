# SPDX-License-Identifier: Apache-2.0
"""The demonstration: the recipe on generated data with a tiny model, as a chain of ordinary commands."""

from __future__ import annotations

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
from medvlt.evaluation.results import print_results, read_results
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

STEPS = (
    "tiny --output runs/demo/model",
    "validate --config demo/evaluate.yaml --trainer.default_root_dir runs/demo/untrained",
    "fit --config demo/sft.yaml",
    "validate --config demo/evaluate.yaml --trainer.default_root_dir runs/demo/sft_evaluated "
    "--ckpt_path runs/demo/sft/checkpoints/sft.ckpt",
)
"""The commands, in order."""

ROWS = {"untrained": "untrained", "sft_evaluated": "SFT"}
"""Folder of each evaluation and its name in the table."""


def demo() -> None:
    """Builds a tiny model, evaluates it, fine-tunes it on generated questions, evaluates it again; prints a table.

    Every step is an ordinary command that is printed and can be repeated by hand. Everything is written to `runs/demo`
    in the current folder, which is deleted first.
    """
    started = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    for command in STEPS:
        _run(command.split())
    print_results({label: read_results(FOLDER / name / "results.json") for name, label in ROWS.items()})
    Console().print(f"held-out questions, never seen in training; {time.monotonic() - started:.0f} s in all")


def _run(arguments: Sequence[str]) -> None:
    Console().print(f"[bold]$ medvlt {shlex.join(arguments)}[/bold]", soft_wrap=True, highlight=False)
    finished = subprocess.run([sys.executable, "-m", "medvlt", *arguments], check=False)
    if finished.returncode:
        raise MedvltError(f"`medvlt {arguments[0]}` ended with exit code {finished.returncode}; its message is above")
