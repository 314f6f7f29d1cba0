# SPDX-License-Identifier: Apache-2.0
"""Killed and resumed runs equal undisturbed ones: some cells of `benchmarks/resume_matrix.py`, which has all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from kill_and_resume import Run, finish, kill, killed_and_resumed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "moment"), [(Run("fsdp2", "grpo", lora=True), "mid"), (Run("ddp", "sft"), "mid")], ids=["fsdp2", "ddp"]
)
def test_killed_and_resumed_equals_undisturbed(run: Run, moment: str, tiny_folder: Path, tmp_path: Path) -> None:
    """The same samples and completions, losses and weights to the last bit."""
    whole = finish(run, tiny_folder, tmp_path / "whole")
    assert len({loss for loss in whole.losses.values()}) > 2
    killed = killed_and_resumed(run, tiny_folder, tmp_path / "killed", moment)
    assert killed.difference(whole) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("run", [Run("single", "grpo", ranks=1, accumulate=4), Run("fsdp2", "sft")], ids=str)
def test_other_ranks_and_micro_batches(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    """Killed inside a step twice, resumed with other ranks and micro-batches, then with the first ones.

    The same samples in each step; losses within 1e-5 and weights within 1e-4 (Adam divides by small moments), as sums
    are rounded in another order.
    """
    other = Run("ddp", "grpo", ranks=2, accumulate=1) if run.ranks == 1 else replace(run, ranks=1, accumulate=1)
    whole = finish(run, tiny_folder, tmp_path / "whole")
    kill(run, tiny_folder, tmp_path / "killed", "inside:1")
    kill(other, tiny_folder, tmp_path / "killed", "epoch:1", resume="step.ckpt")
    killed = finish(run, tiny_folder, tmp_path / "killed", resume="step.ckpt")
    losses, weights = killed.difference(whole)
    assert losses < 1e-5
    assert 0 < weights < 1e-4
