# SPDX-License-Identifier: Apache-2.0
"""What EvaluationRecorder writes, and when it refuses to."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from callbacks import EvaluationRecorder, RolloutCallback
from datamodules import BenchmarkDataModule, SFTDataModule
from lightning_modules import RolloutModule, SFTModule
from medvlt.data.controls import Blind, Control
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.data.samples import SampleSet, Source
from medvlt.errors import ConfigurationError, DataError, EngineError
from medvlt.evaluation.records import picture_id
from medvlt.evaluation.runs import EvaluationRun, iterate_records, read_run, shown_questions
from medvlt.models.loading import Backbone
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.types import Completion, RolloutGroup, RolloutKey, Sample, SamplingParams

TEXTS = ["<think> x </think>\n<answer> A </answer>", "<think> x </think>\n<answer> B </answer>", "C"]
SETS: dict[str, Source] = {
    "texts": Phantom("test", 5, seed=1, modality="text"),
    "pictures": Phantom("test", 4, seed=1, modality="picture"),
}


class Endpoint(ScriptedEngine):
    """Answers by the seed of each completion, greedy ones too, as an endpoint may that does not repeat itself.

    Some completions fail; from some call on all of it does.
    """

    def __init__(self, fails: Collection[tuple[str, int]] = (), dies_at: int = -1) -> None:
        super().__init__(TEXTS)
        self.fails, self.dies_at = frozenset(fails), dies_at
        self.calls: list[list[tuple[str, int]]] = []
        self.pictures = 0

    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        if len(self.calls) == self.dies_at:
            raise EngineError("the engine died")
        self.calls.append([(key.uid, key.first + i) for key in keys for i in range(params.n)])
        self.pictures += sum(len(sample.images) for sample in samples)
        groups = super().generate(samples, replace(params, temperature=1.0), keys=keys)
        return [
            replace(group, completions=tuple(self._or_failure(key, i, c) for i, c in enumerate(group.completions)))
            for group, key in zip(groups, keys, strict=True)
        ]

    def _or_failure(self, key: RolloutKey, index: int, completion: Completion) -> Completion:
        if (key.uid, key.first + index) not in self.fails:
            return completion
        return Completion((), "", (), "error", error="HTTP 500: overloaded")

    @property
    def asked(self) -> list[tuple[str, int]]:
        return [question for call in self.calls for question in call]


@pytest.fixture
def encoder(tiny_folder: Path) -> PromptEncoder:
    return PromptEncoder(str(tiny_folder), template="plain")


def runner(folder: Path, *callbacks: Any, **settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, callbacks=list(callbacks), **settings,
    )  # fmt: skip


def evaluate(
    encoder: PromptEncoder, folder: Path, engine: Endpoint, how: str = "validate", *,
    n: int = 2, temperature: float = 1.0, store: str | bool | None = None, control: Control | None = None,
    sets: dict[str, Source] = SETS, recorder: EvaluationRecorder | None = None, **settings: Any,
) -> tuple[EvaluationRun, dict[str, float]]:  # fmt: skip
    data = BenchmarkDataModule(encoder, sets, batch_size=2, control=control)
    rollout = RolloutCallback(engine, SamplingParams(n=n, temperature=temperature, max_tokens=99), store=store)
    trainer = runner(folder, recorder or EvaluationRecorder(pictures=2), rollout, **settings)
    quiet = {} if how == "predict" else {"verbose": False}
    getattr(trainer, how)(RolloutModule(), data, **quiet)
    return read_run(folder), {name: float(value) for name, value in trainer.callback_metrics.items()}


def content(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """The completions, and run.json without its dates."""
    about = json.loads((folder / "run.json").read_text())
    del about["started"], about["finished"]
    return (folder / "completions.jsonl").read_bytes(), about


def test_a_run_agrees_with_the_metrics(encoder: PromptEncoder, tmp_path: Path) -> None:
    run, metrics = evaluate(encoder, tmp_path, Endpoint())
    assert {name: answers.questions for name, answers in run.benchmarks.items()} == {"texts": 5, "pictures": 4}
    for name, answers in run.benchmarks.items():
        assert answers.scores.mean() == pytest.approx(metrics[f"val/{name}/accuracy"])
        assert answers.tokens.mean() == pytest.approx(metrics[f"val/{name}/mean_tokens"])
        assert list(answers.uids) == [sample.uid for sample in SETS[name].load()]  # the order of the data
    assert 0 < metrics["val/accuracy"] < 1
    about = run.about
    assert (about["model"], about["label"]) == (encoder.model, encoder.model)
    assert (about["stage"], about["prompt"], about["seed"], about["checkpoint"]) == ("validate", "plain", 42, "")
    assert (about["control"], about["limited_to"], about["sampling"]["n"]) == (None, None, 2)
    assert about["grader"]["policy"] == "robust"
    assert about["identity"]["engine"]["engine"] == "ScriptedEngine"
    assert about["benchmarks"]["texts"]["expected"] is None
    assert about["versions"]["torch"]
    samples = {sample.uid: sample for sample in SETS["pictures"].load()}
    pictures = dict(zip(run.benchmarks["pictures"].uids, run.benchmarks["pictures"].pictures, strict=True))
    assert pictures == {uid: tuple(map(picture_id, sample.images)) for uid, sample in samples.items()}
    shown = {name for uid in shown_questions(samples, 2) for name in pictures[uid]}
    assert {path.stem for path in (tmp_path / "pictures").iterdir()} == shown
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "completions.jsonl", "pictures"}


@pytest.mark.parametrize("how", ["test", "predict"])
def test_other_verbs_write_the_same(how: str, encoder: PromptEncoder, tmp_path: Path) -> None:
    run, _ = evaluate(encoder, tmp_path / how, Endpoint(), how)
    assert run.about["stage"] == how
    evaluate(encoder, tmp_path / "validate", Endpoint())
    assert content(tmp_path / how)[0] == content(tmp_path / "validate")[0]


def test_failures_count_and_are_asked_again(encoder: PromptEncoder, tmp_path: Path) -> None:
    uids = [sample.uid for sample in SETS["texts"].load()]
    fails = {(uids[0], 1), (uids[3], 0), (uids[3], 1)}
    run, metrics = evaluate(encoder, tmp_path / "run", Endpoint(fails), store=True)
    answers = run.benchmarks["texts"]
    assert {(uid, number) for uid, number, _ in answers.errors} == fails
    assert {message for *_, message in answers.errors} == {"HTTP 500: overloaded"}
    assert not answers.correct[answers.failed].any()
    assert answers.correct.sum() / 10 == pytest.approx(metrics["val/texts/accuracy"])
    again = Endpoint()
    evaluate(encoder, tmp_path / "run", again, store=True)
    assert sorted(again.asked) == sorted(fails)
    evaluate(encoder, tmp_path / "undisturbed", Endpoint())
    assert content(tmp_path / "run") == content(tmp_path / "undisturbed")


def test_greedy_repeats_are_decoded_one_by_one_and_restored(encoder: PromptEncoder, tmp_path: Path) -> None:
    one = {"pictures": SETS["pictures"]}
    settings: dict[str, Any] = {"n": 3, "temperature": 0.0, "sets": one}
    undisturbed, died, resumed = Endpoint(), Endpoint(dies_at=4), Endpoint()
    run, _ = evaluate(encoder, tmp_path / "undisturbed", undisturbed, **settings)
    uids = [sample.uid for sample in one["pictures"].load()]
    assert undisturbed.calls == [
        [(uid, number) for uid in pair] for pair in (uids[:2], uids[2:]) for number in range(3)
    ]
    assert any(len(set(labels)) > 1 for labels in run.benchmarks["pictures"].labels)
    with pytest.raises(EngineError, match="died"):
        evaluate(encoder, tmp_path / "run", died, store=True, **settings)
    assert [path.name for path in (tmp_path / "run").rglob("*.jsonl")] == []
    evaluate(encoder, tmp_path / "run", resumed, store=True, **settings)
    assert died.calls + resumed.calls == undisturbed.calls
    assert content(tmp_path / "run") == content(tmp_path / "undisturbed")


def test_a_control_is_applied_and_named(encoder: PromptEncoder, tmp_path: Path) -> None:
    seeing, blind = Endpoint(), Endpoint()
    store = str(tmp_path / "store")
    run, _ = evaluate(encoder, tmp_path / "seeing", seeing, store=store)
    assert "control" not in json.loads((tmp_path / "store" / "store.json").read_text())["identity"]
    with pytest.raises(DataError, match=r"control\.name: .*nothing.* in the store, .*blind.* now"):
        evaluate(encoder, tmp_path / "blind", blind, store=store, control=Blind())
    control, _ = evaluate(encoder, tmp_path / "blind", blind, store=True, control=Blind())
    assert (seeing.pictures > 0, blind.pictures) == (True, 0)
    assert run.about["control"] is None
    assert control.about["control"] == control.about["identity"]["control"] == {"name": "blind"}
    for name, answers in run.benchmarks.items():
        assert answers.uids == control.benchmarks[name].uids
        assert answers.pictures == control.benchmarks[name].pictures  # what the questions are about
    lines = list(iterate_records(tmp_path / "blind"))
    assert all(line["pictures"] == [] for line in lines)
    assert any(line["picture_ids"] for line in lines)
    thumbnails = [
        sorted(path.name for path in (tmp_path / kind / "pictures").iterdir()) for kind in ("seeing", "blind")
    ]
    assert thumbnails[0] == thumbnails[1] != []


def test_a_limit_is_written_down(encoder: PromptEncoder, tmp_path: Path) -> None:
    run, metrics = evaluate(encoder, tmp_path, Endpoint(), limit_val_batches=1)
    assert run.about["limited_to"] == 1
    assert [answers.questions for answers in run.benchmarks.values()] == [2, 2]
    assert metrics["val/texts/questions"] == 2


class Losing(BenchmarkDataModule):
    """Asks the first block of the first benchmark never or twice."""

    times = 0

    def val_dataloader(self) -> Any:
        loaders = super().val_dataloader()
        blocks: Any = loaders[0].sampler
        blocks.blocks = [*blocks.blocks[:1] * self.times, *blocks.blocks[1:]]
        return loaders


@pytest.mark.parametrize(("times", "named"), [(0, "of 9 questions 2 lost, such as"), (2, "2 answered more than once")])
def test_lost_and_double_questions(
    times: int, named: str, encoder: PromptEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(encoder, tmp_path, Endpoint())
    before = content(tmp_path)
    monkeypatch.setattr(Losing, "times", times)
    data = Losing(encoder, SETS, batch_size=2)
    rollout = RolloutCallback(Endpoint(), SamplingParams(n=2, max_tokens=99), seed=3)
    with pytest.raises(DataError, match=named):
        runner(tmp_path, EvaluationRecorder(), rollout).validate(RolloutModule(), data, verbose=False)
    assert content(tmp_path) == before  # the earlier run stays
    assert not (tmp_path / ".parts").exists()


def test_a_run_stays_until_the_next_one_is_whole(encoder: PromptEncoder, tmp_path: Path) -> None:
    evaluate(encoder, tmp_path, Endpoint())
    before = content(tmp_path)
    for rank in "07":  # left by a run that was killed
        (tmp_path / ".parts" / rank).mkdir(parents=True)
        (tmp_path / ".parts" / rank / "completions.jsonl").write_text("half a li")
    with pytest.raises(EngineError, match="died"):
        evaluate(encoder, tmp_path, Endpoint(dies_at=2), sets={"texts": SETS["texts"]})
    assert content(tmp_path) == before
    run, _ = evaluate(encoder, tmp_path, Endpoint(), sets={"texts": SETS["texts"]})
    assert list(run.benchmarks) == ["texts"]
    assert not list((tmp_path / "pictures").iterdir())  # thumbnails of the other questions are gone
    assert not (tmp_path / ".parts").exists()


class Twice(Source):
    def load(self) -> SampleSet:
        samples = list(Phantom("test", 2).load())
        return SampleSet([*samples, *samples])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sets": {"twice": Twice()}}, r"data\.benchmarks\.twice: 2 of 4 questions are there more than once"),
        ({"recorder": EvaluationRecorder(overwrite=False)}, "has an evaluation already; choose another"),
        ({"recorder": EvaluationRecorder(folder="/proc/nowhere")}, "cannot write"),
    ],
)
def test_refused_before_anything_is_sampled(
    settings: dict[str, Any], named: str, encoder: PromptEncoder, tmp_path: Path
) -> None:
    (tmp_path / "run.json").touch()
    engine = Endpoint()
    with pytest.raises((DataError, ConfigurationError), match=named):
        evaluate(encoder, tmp_path, engine, **settings)
    assert not engine.calls


def test_without_completions_or_data(encoder: PromptEncoder, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pictures must be 0"):
        EvaluationRecorder(pictures=-1)
    with pytest.raises(ConfigurationError, match="EvaluationRecorder needs completions"):
        runner(tmp_path, EvaluationRecorder()).validate(RolloutModule(), BenchmarkDataModule(encoder, SETS))


def test_validations_of_a_training_are_not_written(encoder: PromptEncoder, tiny_folder: Path, tmp_path: Path) -> None:
    data = SFTDataModule(Phantom("train", 2), encoder, {"b": Phantom("test", 2)}, global_batch_size=2)
    rollout = RolloutCallback(Endpoint(), SamplingParams(max_tokens=9))
    runner(tmp_path, EvaluationRecorder(), rollout, max_epochs=1).fit(SFTModule(Backbone(str(tiny_folder))), data)
    assert not list(tmp_path.iterdir())
