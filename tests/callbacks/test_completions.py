# SPDX-License-Identifier: Apache-2.0
"""What CompletionLogger writes of a training iteration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from PIL import Image
from rich.console import Console

from callbacks import CompletionLogger, RolloutCallback
from callbacks.completions import completion_table
from datamodules import PromptDataModule
from lightning_modules import GRPOModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.samples import SampleSet
from medvlt.data.sources import Source
from medvlt.models.loading import Backbone
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.types import Sample, SamplingParams

RIGHT, WRONG = "<think> x </think>\n<answer> A </answer>", "<think> x </think>\n<answer> B </answer>"


class Two(Source):
    """A text question that is never answered right, and one with a picture file that sometimes is."""

    def __init__(self, picture: Path) -> None:
        self.picture = picture

    def load(self) -> SampleSet:
        base = Sample("text", "Which?", {"A": "yes", "B": "no"}, "A", "yes")
        return SampleSet([base, replace(base, uid="picture", question="Left [red]?", images=(self.picture,))])


@pytest.mark.filterwarnings("ignore:Total length of")
def test_one_file_per_iteration(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "chest.png"
    Image.new("RGB", (56, 56)).save(picture)
    engine = ScriptedEngine([RIGHT, WRONG], {"text": [WRONG]})
    rollout = RolloutCallback(engine, group_sampling=SamplingParams(n=8, max_tokens=99), parity=None)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=2,
        enable_checkpointing=False, default_root_dir=tmp_path / "out", callbacks=[rollout, CompletionLogger(rows=1)],
    )  # fmt: skip
    data = PromptDataModule(
        Two(picture), PromptEncoder(str(tiny_folder), template="plain"), prompts_per_iteration=2, shuffle=False
    )
    trainer.fit(GRPOModule(Backbone(str(tiny_folder))), data)
    folder = tmp_path / "out" / "completions-train"
    assert sorted(path.name for path in folder.iterdir()) == ["000000.jsonl", "000001.jsonl"]
    records = [json.loads(line) for line in (folder / "000001.jsonl").read_text().splitlines()]
    assert [record["uid"] for record in records] == ["text"] * 8 + ["picture"] * 8
    assert {record["version"] for record in records} == {1}
    assert {record["iteration"] for record in records} == {1}
    for record in records[:8]:
        assert (record["reward"], record["advantage"], record["correct"], record["label"]) == (0.0, 0.0, False, "B")
        assert record["pictures"] == []
    rewards = [record["reward"] for record in records[8:]]
    assert {0.0, 1.0} == set(rewards)
    for record in records[8:]:
        assert record["correct"] is (record["reward"] == 1.0) is (record["advantage"] > 0)
        assert record["rewards"] == {"accuracy": record["reward"]}
        assert record["pictures"] == [str(picture)]
        assert record["completion"] in (RIGHT, WRONG)
        assert (record["finish_reason"], record["format_ok"], record["reason"]) == ("stop", True, "label")
        assert record["prompt_tokens"] > records[0]["prompt_tokens"]
    assert "Which?" in capsys.readouterr().out


def test_texts_are_no_markup_in_the_table() -> None:
    record = {
        "question": "[bold]Q[/bold]", "completion": "[/nonsense]", "answer_label": "A", "reason": "label", "sample": 0,
        "reward": None, "advantage": 0.0, "tokens": 3,
    }  # fmt: skip
    console = Console(width=200)
    with console.capture() as captured:
        console.print(completion_table([record, record | {"sample": 1}], 5))
    shown = captured.get()
    assert shown.count("[/nonsense]") == 1
    assert "[bold]Q[/bold]" in shown
    assert "none" in shown
