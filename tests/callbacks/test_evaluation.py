# SPDX-License-Identifier: Apache-2.0
"""What EvaluationRecorder writes, and when it refuses to."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from callbacks import EvaluationRecorder, RolloutCallback
from datamodules import BenchmarkDataModule, SFTDataModule
from lightning_modules import RolloutModule, SFTModule
from medvlt.data.batches import PromptBatch
from medvlt.data.controls import Blind, Control
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.data.samples import SampleSet, Source
from medvlt.errors import ConfigurationError, DataError, EngineError
from medvlt.evaluation.parts import RunPart
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
        self.pictures = self.identified = 0

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

    def identity(self) -> dict[str, Any]:
        self.identified += 1
        return super().identity()

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
    sets: dict[str, Source] = SETS, recorder: EvaluationRecorder | None = None, seed: int = 42,
    module: RolloutModule | None = None, checkpoint: str | None = None, callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> tuple[EvaluationRun, dict[str, float]]:  # fmt: skip
    data = BenchmarkDataModule(encoder, sets, batch_size=2, control=control)
    rollout = RolloutCallback(
        engine, SamplingParams(n=n, temperature=temperature, max_tokens=99), seed=seed, store=store
    )
    trainer = runner(folder, *callbacks, recorder or EvaluationRecorder(pictures=2), rollout, **settings)
    quiet = {} if how == "predict" else {"verbose": False}
    getattr(trainer, how)(module or RolloutModule(), data, ckpt_path=checkpoint, **quiet)
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
    assert again.identified == 1  # for the store and for the run: it may read all weights
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


class Counted(Source):
    """Texts that say how many they are to be."""

    expected_rows = 4

    def load(self) -> SampleSet:
        return Phantom("test", 4, seed=1, modality="text").load()


def test_what_is_set_is_written_down(encoder: PromptEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = str(tmp_path / "some.ckpt")
    torch.save({"state_dict": {}, "global_step": 7, "epoch": 0, "pytorch-lightning_version": "2.5.0"}, checkpoint)
    uid = Counted().load().uids[0]
    with caplog.at_level(logging.WARNING):
        run, metrics = evaluate(
            encoder, tmp_path / "run", Endpoint({(uid, 1)}), "test", seed=7, module=RolloutModule("reference_eval"),
            checkpoint=checkpoint, sets={"texts": Counted()}, recorder=EvaluationRecorder(label="mine"),
            limit_test_batches=0.5,
        )  # fmt: skip
    about = run.about
    assert (about["label"], about["seed"], about["checkpoint"]) == ("mine", 7, checkpoint)
    assert (about["grader"]["policy"], about["limited_to"]) == ("reference_eval", 0.5)
    assert about["benchmarks"]["texts"]["expected"] == 4
    assert run.benchmarks["texts"].questions == metrics["test/texts/questions"] == 2
    assert "1 of 4 completions never came" in caplog.text


def test_only_the_same_evaluation_is_replaced(encoder: PromptEncoder, tmp_path: Path) -> None:
    run, _ = evaluate(encoder, tmp_path, Endpoint(), limit_val_batches=1)
    assert [answers.questions for answers in run.benchmarks.values()] == [2, 2]
    evaluate(encoder, tmp_path, Endpoint())
    before, engine = content(tmp_path), Endpoint()
    texts: dict[str, Any] = {"sets": {"texts": SETS["texts"]}}
    fewer = {"sets": SETS | {"texts": Phantom("test", 4, seed=1, modality="text")}}
    never = {"recorder": EvaluationRecorder(overwrite=False)}
    others: list[dict[str, Any]] = [{"limit_val_batches": 1}, texts, fewer, {"control": Blind()}, never]
    others += [{"temperature": 0.5}, {"n": 3}, {"module": RolloutModule("reference_eval")}]
    for settings in others:
        with pytest.raises(DataError, match=r"has an evaluation already.*overwrite=true"):
            evaluate(encoder, tmp_path, engine, **settings)
    assert not engine.calls
    assert content(tmp_path) == before
    evaluate(encoder, tmp_path, Endpoint(), seed=43)
    assert content(tmp_path) != before
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DataError, match="has an evaluation already"):
        evaluate(encoder, tmp_path, engine)
    run, _ = evaluate(encoder, tmp_path, Endpoint(), recorder=EvaluationRecorder(overwrite=True), **texts)
    assert list(run.benchmarks) == ["texts"]


class Interrupted(Endpoint):
    """While it answers, the same folder gets another evaluation."""

    def __init__(self, encoder: PromptEncoder, folder: Path) -> None:
        super().__init__()
        self.encoder, self.folder = encoder, folder

    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        if len(self.calls) == 2:
            evaluate(self.encoder, self.folder, Endpoint(), seed=43)
        return super().generate(samples, params, keys=keys)


def test_two_evaluations_in_one_folder(encoder: PromptEncoder, tmp_path: Path) -> None:
    run, _ = evaluate(encoder, tmp_path, Interrupted(encoder, tmp_path))
    assert run.about["seed"] == 42  # the last to finish
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "completions.jsonl", "pictures"}
    for name in ("run.json", "completions.jsonl"):
        (tmp_path / name).unlink()
    with pytest.raises(
        DataError, match=r"has an evaluation already; .*to replace it\. What was answered stays in .*/\.parts\."
    ):
        evaluate(encoder, tmp_path, Interrupted(encoder, tmp_path), recorder=EvaluationRecorder(overwrite=False))
    assert read_run(tmp_path).about["seed"] == 43
    (lines,) = tmp_path.glob(".parts.*/0/completions.jsonl")
    assert lines.read_bytes().count(b"\n") == 18


def test_what_fails_afterwards_does_not_lose_the_run(
    encoder: PromptEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            raise DataError("too many failed")

    with pytest.raises(DataError, match="too many failed"):
        evaluate(encoder, tmp_path / "after", Endpoint(), callbacks=[Fails()])
    assert read_run(tmp_path / "after").about["finished"]

    def close(part: RunPart) -> None:
        raise DataError("no space left")

    monkeypatch.setattr(RunPart, "close", close)
    with pytest.raises(DataError, match="no space left"):
        evaluate(encoder, tmp_path / "close", Endpoint())
    assert not list((tmp_path / "close").iterdir())


def test_halves_of_surrogate_pairs_with_and_without_a_store(encoder: PromptEncoder, tmp_path: Path) -> None:
    class Half(Endpoint):
        def _or_failure(self, key: RolloutKey, index: int, completion: Completion) -> Completion:
            return replace(completion, text=completion.text + "\ud83d")

    for name, store in (("plain", None), ("kept", True)):
        evaluate(encoder, tmp_path / name, Half(), sets={"texts": SETS["texts"]}, store=store)
    assert content(tmp_path / "plain") == content(tmp_path / "kept")


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
    assert not list(tmp_path.glob(".*"))


def test_a_run_stays_until_the_next_one_is_whole(encoder: PromptEncoder, tmp_path: Path) -> None:
    evaluate(encoder, tmp_path, Endpoint())
    before = content(tmp_path)
    dead = f"{socket.gethostname()}.{2**22 + 1}"  # left by a run that was killed
    (tmp_path / f".parts.{dead}.0123abcd.tmp" / "0").mkdir(parents=True)
    (tmp_path / f".completions.jsonl.{dead}.tmp").write_text("half a li")
    running = tmp_path / f".parts.{socket.gethostname()}.{os.getppid()}.0123abcd.tmp"
    running.mkdir()
    with pytest.raises(EngineError, match="died"):
        evaluate(encoder, tmp_path, Endpoint(dies_at=2))
    assert content(tmp_path) == before
    recorder = EvaluationRecorder(overwrite=True)
    run, _ = evaluate(encoder, tmp_path, Endpoint(), sets={"texts": SETS["texts"]}, recorder=recorder)
    assert list(run.benchmarks) == ["texts"]
    assert not list((tmp_path / "pictures").iterdir())  # thumbnails of the other questions are gone
    assert list(tmp_path.glob(".*")) == [running]


class Twice(Source):
    def load(self) -> SampleSet:
        samples = list(Phantom("test", 2).load())
        return SampleSet([*samples, *samples])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sets": {"twice": Twice()}}, r"data\.benchmarks\.twice has 2 questions more than once"),
        ({"callbacks": [EvaluationRecorder()]}, "two EvaluationRecorders write to"),
        ({"limit_val_batches": 0}, "limit of 0 batches"),
        ({"recorder": EvaluationRecorder(folder="/proc/nowhere")}, "cannot write"),
    ],
)
def test_refused_before_anything_is_sampled(
    settings: dict[str, Any], named: str, encoder: PromptEncoder, tmp_path: Path
) -> None:
    engine = Endpoint()
    with pytest.raises((DataError, ConfigurationError), match=named):
        evaluate(encoder, tmp_path, engine, **settings)
    assert not engine.calls


def test_files_of_the_user_stay(encoder: PromptEncoder, tmp_path: Path) -> None:
    engine, own = Endpoint(), tmp_path / "pictures" / "scan.png"
    own.parent.mkdir()
    own.touch()
    with pytest.raises(DataError, match=r"that no evaluation wrote \(pictures/scan\.png\)"):
        evaluate(encoder, tmp_path, engine, recorder=EvaluationRecorder(overwrite=True))
    own.unlink()
    for text in ("mine\n", "{}\n"):
        (tmp_path / "completions.jsonl").write_text(text)
        with pytest.raises(DataError, match=r"that no evaluation wrote \((no JSON|without benchmark)"):
            evaluate(encoder, tmp_path, engine)
        assert (tmp_path / "completions.jsonl").read_text() == text
    assert not engine.calls


def test_without_completions_or_data(encoder: PromptEncoder, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pictures must be 0"):
        EvaluationRecorder(pictures=-1)
    with pytest.raises(ConfigurationError, match="EvaluationRecorder needs completions"):
        runner(tmp_path, EvaluationRecorder()).validate(RolloutModule(), BenchmarkDataModule(encoder, SETS))
    engine, loader = Endpoint(), DataLoader([PromptBatch("b", list(SETS["texts"].load()))], batch_size=None)  # type: ignore[arg-type,var-annotated]
    with pytest.raises(ConfigurationError, match="needs to know the questions"):
        runner(tmp_path, EvaluationRecorder(), RolloutCallback(engine)).validate(RolloutModule(), loader)
    assert not engine.calls


def test_validations_of_a_training_are_not_written(encoder: PromptEncoder, tiny_folder: Path, tmp_path: Path) -> None:
    data = SFTDataModule(Phantom("train", 2), encoder, {"b": Phantom("test", 2)}, global_batch_size=2)
    rollout = RolloutCallback(Endpoint(), SamplingParams(max_tokens=9))
    runner(tmp_path, EvaluationRecorder(), rollout, max_epochs=1).fit(SFTModule(Backbone(str(tiny_folder))), data)
    assert not list(tmp_path.iterdir())
