# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from callbacks import ResultsTable, RolloutCallback
from datamodules import BenchmarkDataModule
from lightning_modules import RolloutModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.errors import MissingRolloutError
from medvlt.evaluation.results import read_results
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.types import Completion, RolloutGroup, Sample, SamplingParams


def trainer(folder: Path, *callbacks: object) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=list(callbacks), default_root_dir=folder
    )


@pytest.fixture
def data(tiny_folder: Path) -> BenchmarkDataModule:
    sources = {"text": Phantom("test", 7, modality="text"), "pictures": Phantom("test", 5, modality="picture")}
    return BenchmarkDataModule(PromptEncoder(str(tiny_folder), template="plain"), sources, batch_size=3)


def test_counts_are_exact(data: BenchmarkDataModule, tmp_path: Path) -> None:
    """Answers are scripted per question: the first three texts right, one picture right, one cut off."""
    texts, pictures = data.benchmark_sources["text"].load(), data.benchmark_sources["pictures"].load()
    answers = {s.uid: [f"<think> x </think>\n<answer> {s.answer_label} </answer>"] for s in [*texts[:3], pictures[0]]}
    for s in [*texts[3:], *pictures[1:4]]:
        answers[s.uid] = ["<think> x </think>\n<answer> nothing </answer>"]
    answers[pictures[4].uid] = [f"The answer is {pictures[4].answer_label}." + " and so on" * 40]
    rollout = RolloutCallback(ScriptedEngine(by_uid=answers), SamplingParams(temperature=0, max_tokens=120))
    module = RolloutModule()
    values = trainer(tmp_path, rollout, ResultsTable(label="scripted")).validate(module, data, verbose=False)

    merged = {name.split("/dataloader")[0]: value for row in values for name, value in row.items()}
    assert merged["val/text/correct"] == 3
    assert merged["val/text/count"] == 7
    assert merged["val/text/accuracy"] == pytest.approx(3 / 7)
    assert merged["val/pictures/correct"] == 1
    assert merged["val/pictures/truncation_rate"] == pytest.approx(1 / 5)
    assert merged["val/pictures/format_rate"] == pytest.approx(4 / 5)
    assert (merged["val/text/failed"], merged["val/pictures/failed"]) == (0, 0)
    assert not [name for name in merged if "majority" in name or "pass_at" in name]  # nothing to vote on
    assert merged["val/accuracy"] == pytest.approx((3 / 7 + 1 / 5) / 2)
    written = {result.benchmark: result for result in read_results(tmp_path / "results.json")}
    assert (written["text"].correct, written["text"].count) == (3, 7)
    assert (written["pictures"].correct, written["pictures"].count) == (1, 5)
    assert "not for clinical use" in json.loads((tmp_path / "results.json").read_text())["note"]


def test_several_samples_each_count(data: BenchmarkDataModule, tmp_path: Path) -> None:
    """What the module logs and the table writes of 4 samples is what the verdicts say, counted here by hand."""
    rollout = RolloutCallback(
        ScriptedEngine([f"<answer> {letter} </answer>" for letter in "ABC"]),
        SamplingParams(n=4, temperature=1, max_tokens=99),
        seed=1,
    )
    runner = trainer(tmp_path, rollout, ResultsTable())
    module = RolloutModule()
    values = runner.validate(module, data, verbose=False)[0]
    groups = [batch.groups for batch in runner.predict(module, data)[0]]
    right = majority = passed = 0
    for group in (group for batch in groups for group in batch):
        answers = [completion.text.split()[1] for completion in group.completions]
        letters = [letter for letter in answers if letter in group.sample.options]  # another casts no vote
        votes = [letters.count(letter) for letter in letters]
        right += letters.count(group.sample.answer_label)
        passed += group.sample.answer_label in letters
        majority += letters[votes.index(max(votes))] == group.sample.answer_label  # the first of the most frequent
    assert 0 < majority < passed < 7
    assert (values["val/text/count"], values["val/text/correct"], values["val/text/failed"]) == (28, right, 0)
    assert values["val/text/majority"] == pytest.approx(majority / 7)
    assert values["val/text/pass_at_4"] == pytest.approx(passed / 7)
    text = next(result for result in read_results(tmp_path / "results.json") if result.benchmark == "text")
    assert (text.majority, text.pass_at_n) == (pytest.approx(majority / 7), pytest.approx(passed / 7))


def test_counts_start_anew(data: BenchmarkDataModule, tmp_path: Path) -> None:
    rollout = RolloutCallback(ScriptedEngine(["<answer> A </answer>"]), SamplingParams(temperature=0, max_tokens=99))
    module = RolloutModule()
    runner = trainer(tmp_path, rollout)
    first, second = (runner.validate(module, data, verbose=False)[0]["val/text/count"] for _ in range(2))
    assert first == second == 7


def test_predict_returns_verdicts(data: BenchmarkDataModule, tmp_path: Path) -> None:
    rollout = RolloutCallback(ScriptedEngine(["<answer> A </answer>"]), SamplingParams(n=2, max_tokens=99))
    predictions = trainer(tmp_path, rollout).predict(RolloutModule(), data)
    verdicts = [verdict for loader in predictions for batch in loader for group in batch.verdicts for verdict in group]
    assert len(verdicts) == 2 * 12
    assert {verdict.label for verdict in verdicts} == {"A"}


def test_the_grader_is_the_one_that_was_asked_for() -> None:
    sample = Sample("1", "?", {"A": "a", "B": "b"}, "B", "b")
    group = RolloutGroup(sample, (1,), (Completion((7,), "The answer is B.", (-1.0,), "stop"),))
    verdicts = {policy: RolloutModule(policy).grade_group(group)[0] for policy in ("robust", "reference_reward")}
    assert {policy: verdict.correct for policy, verdict in verdicts.items()} == {
        "robust": True,
        "reference_reward": False,
    }
    assert RolloutModule().grader == "robust"


def test_missing_callback_is_named(data: BenchmarkDataModule, tmp_path: Path) -> None:
    with pytest.raises(MissingRolloutError, match=r"add callbacks\.RolloutCallback"):
        trainer(tmp_path).validate(RolloutModule(), data, verbose=False)
