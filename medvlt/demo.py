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

EVALUATE = (
    "validate --config demo/evaluate.yaml --trainer.default_root_dir runs/demo/{name}"
    " --trainer.callbacks.init_args.label '{label}'"
)

STEPS = (
    "tiny --output runs/demo/model",
    EVALUATE.format(name="untrained", label="untrained"),
    "fit --config demo/sft.yaml",
    EVALUATE.format(name="sft_evaluated", label="SFT") + " --ckpt_path runs/demo/sft/checkpoints/sft.ckpt",
    "export runs/demo/sft/checkpoints/sft.ckpt runs/demo/sft_model",
    "predict --config demo/probe.yaml",
    "fit --config demo/grpo.yaml",
    EVALUATE.format(name="grpo_evaluated", label="SFT, then GRPO")
    + " --ckpt_path runs/demo/grpo/checkpoints/grpo.ckpt",
    EVALUATE.format(name="grpo_blind", label="SFT, then GRPO, without pictures")
    + " --ckpt_path runs/demo/grpo/checkpoints/grpo.ckpt --data.init_args.control Blind",
)
"""The commands, in order, up to the report."""

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
    EVALUATE.format(name="control_evaluated", label="SFT, then more SFT")
    + " --ckpt_path runs/demo/control/checkpoints/sft.ckpt",
    "report runs/demo/grpo_evaluated --baseline runs/demo/control_evaluated --output runs/demo/report_control",
)
"""The control: supervised training goes on from the same weights, for the time that probing and GRPO took."""

REPORT = (
    "report runs/demo/untrained runs/demo/grpo_evaluated runs/demo/grpo_blind --baseline runs/demo/sft_evaluated"
    " --training '[runs/demo/sft, runs/demo/grpo]' --output runs/demo/report --title 'medvlt demo'"
)
"""What all of it comes to."""


def demo(control: bool = False) -> None:
    """Builds a tiny model, fine-tunes it on generated questions, probes which are hard, trains it by GRPO on those.

    Every step is an ordinary command that is printed and can be repeated by hand. Everything is written to `runs/demo`
    in the current folder, which is deleted first; the last step writes `runs/demo/report/report.html`.

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
        seconds[step] = _run([twins.get(word, word) for word in shlex.split(step)])
    if control:
        spent = sum(value for step, value in seconds.items() if "demo/probe.yaml" in step or "demo/grpo.yaml" in step)
        limit = time.strftime("00:%H:%M:%S", time.gmtime(spent))
        for step in CONTROL:
            _run(shlex.split(step.format(time=limit)))
    _run(shlex.split(REPORT))
    page = (FOLDER / "report" / "report.html").absolute()
    Console(soft_wrap=True).print(
        f"held-out questions, never seen in training; {time.monotonic() - started:.0f} s in all. Look at {page}",
        highlight=False,
    )


def _run(arguments: Sequence[str]) -> float:
    """Runs a command and returns its seconds."""
    command = f"$ medvlt {shlex.join(arguments)}"
    Console().print(command, style="bold", markup=False, soft_wrap=True, highlight=False)  # brackets are no markup
    started = time.monotonic()
    finished = subprocess.run([sys.executable, "-m", "medvlt", *arguments], check=False)
    if finished.returncode:
        raise MedvltError(f"`medvlt {arguments[0]}` ended with exit code {finished.returncode}; its message is above")
    return time.monotonic() - started
