# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from medvlt.errors import DataError
from medvlt.evaluation.page.groups import GROUPS, iterations
from medvlt.evaluation.page.training import read_logs, thinned, training_figure


def log(folder: Path, steps: int = 6) -> Path:
    """Written by Lightning's own logger, as a training run does: some numbers at some steps."""
    logger = CSVLogger(str(folder), name="", version="")
    for step in range(steps):
        logger.log_metrics({"train/loss": 1 / (step + 1), "epoch": 0}, step=step)
        logger.log_metrics({"train/reward": 0.1 * step, "train/kl": float("nan"), "mine": 3.0}, step=step)
    logger.save()
    return folder


def record(iteration: int, uid: str, sample: int) -> dict[str, Any]:
    return {
        "iteration": iteration, "uid": uid, "sample": sample, "dataset_name": "m23k", "question": f"question {uid}",
        "options": {"A": "yes", "B": "no"}, "answer_label": "A", "completion": "<think>t</think><answer>A</answer>",
        "tokens": 7, "finish_reason": "stop", "label": "A", "correct": sample == 0, "format_ok": True,
        "reason": "label", "grader_version": "1", "reward": None if sample == 2 else 0.5, "advantage": 1.25 - sample,
    }  # fmt: skip


def keep(folder: Path, count: int) -> Path:
    (folder / "completions-train").mkdir(parents=True)
    for number in range(count):
        lines = [record(number, f"q{q}", sample) for q in range(6) for sample in range(3)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "completions-train" / f"{number:06d}.jsonl").write_text(text)
    return folder


def test_curves_are_what_lightning_logged(tmp_path: Path) -> None:
    notes: list[str] = []
    ((name, curves),) = read_logs(log(tmp_path / "grpo"), notes)
    assert name == "grpo"
    assert curves["train/loss"] == [(step, 1 / (step + 1)) for step in range(6)]
    assert curves["train/reward"] == [(step, 0.1 * step) for step in range(6)]
    assert "train/kl" not in curves, "a number that never was finite is not drawn"
    assert "mine" not in curves
    shown = training_figure([tmp_path / "grpo"], notes)
    assert shown is not None
    assert ("grpo", "reward", "0", "0.5", "5") in shown.rows
    assert not notes
    assert training_figure([], notes) is None


def test_versions_of_a_logger_are_logs_of_their_own(tmp_path: Path) -> None:
    for version in (0, 1):
        log(tmp_path / "grpo" / "lightning_logs" / f"version_{version}")
    names = [name for name, _ in read_logs(tmp_path / "grpo", [])]
    assert names == ["grpo/lightning_logs/version_0", "grpo/lightning_logs/version_1"]


@pytest.mark.parametrize("content", [None, "no,columns\n1,2\n", "step,train/loss\nx,2\n"])
def test_a_folder_without_curves_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(DataError, match=f"{tmp_path.name}.*expected"):
        read_logs(tmp_path, [])


def test_event_files_need_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    notes: list[str] = []
    assert read_logs(tmp_path, notes) == []
    assert "pip install tensorboard" in notes[0]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_event_files_are_read(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            writer.add_scalar("train/reward", 0.5 * step, step)
    ((_, curves),) = read_logs(tmp_path, [])
    assert curves == {"train/reward": [(0, 0.0), (1, 0.5), (2, 1.0)]}


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    points = [(step, float(step)) for step in range(10_000)]
    found = thinned(points, 100)
    assert len(found) == 100
    assert (found[0], found[-1]) == (points[0], points[-1])
    assert found == sorted(set(found))
    assert thinned(points[:100], 100) == points[:100]


def test_groups_of_the_first_middle_and_last_iteration(tmp_path: Path) -> None:
    notes: list[str] = []
    shown = iterations([keep(tmp_path / "grpo", 9)], notes)
    assert [(one.run, one.number) for one in shown] == [("grpo", "000000"), ("grpo", "000004"), ("grpo", "000008")]
    assert notes == ["Of grpo, 3 of 9 iterations of training are shown."]
    assert all(len(one.cards) == GROUPS for one in shown)
    (group,) = shown[0].cards[0].groups
    assert (group.right, group.n) == (1, 3)
    assert [(a.reward, a.advantage) for a in group.answers] == [(0.5, 1.25), (0.5, 0.25), (None, -0.75)]
    assert [one.number for one in iterations([keep(tmp_path / "short", 1)], notes)] == ["000000"]


def test_completions_without_curves_and_lines_that_cannot_be_read(tmp_path: Path) -> None:
    notes: list[str] = []
    path = keep(tmp_path / "grpo", 1) / "completions-train" / "000000.jsonl"
    assert training_figure([tmp_path / "grpo"], notes) is None
    broken = [json.dumps({**record(0, "q0", 3), key: {"a": 1}}) for key in ("reward", "advantage")]
    path.write_text("\n".join([*broken, path.read_text()]))
    (shown,) = iterations([tmp_path / "grpo"], notes)
    assert len(shown.cards) == GROUPS
    (note,) = notes
    assert note.startswith("Warning: 2 lines of 000000.jsonl of grpo cannot be read and are skipped (TypeError: ")


@pytest.mark.parametrize("content", ["{", "[]\n", '{"uid": 1}\n', '"text"\n'])
def test_broken_groups_are_named(tmp_path: Path, content: str) -> None:
    keep(tmp_path, 1)
    path = tmp_path / "completions-train" / "000000.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"000000\.jsonl.*CompletionLogger"):
        iterations([tmp_path], [])
