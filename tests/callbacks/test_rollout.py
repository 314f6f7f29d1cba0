# SPDX-License-Identifier: Apache-2.0
"""When the engine is started, given weights and closed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from callbacks import RolloutCallback
from datamodules import BenchmarkDataModule, PromptDataModule, SFTDataModule
from lightning_modules import GRPOModule, RolloutModule, SFTModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.data.samples import SampleSet
from medvlt.errors import DataError, EngineError, LostRankError
from medvlt.models.loading import Backbone
from medvlt.models.optimization import Optimization
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.rollout.transformers import TransformersEngine
from medvlt.types import RolloutGroup, SamplingParams


class WatchedEngine(ScriptedEngine):
    def __init__(self, fail: bool = False) -> None:
        super().__init__(["<answer> A </answer>"])
        self.events: list[Any] = []
        self.fail = fail

    def start(self, *args: Any) -> None:
        self.events.append("start")
        super().start(*args)

    def load_weights(self, weights: Any, *, version: int) -> None:
        self.events.append((len(list(weights)) > 0, version))
        super().load_weights((), version=version)

    def generate(self, *args: Any, **kwargs: Any) -> list[RolloutGroup]:
        if self.fail:
            raise EngineError("the engine died")
        groups = super().generate(*args, **kwargs)
        self.events.append(groups[0].completions[0].version)
        return groups

    def sleep(self) -> None:
        self.events.append("sleep")

    def wake(self) -> None:
        self.events.append("wake")

    def close(self) -> None:
        self.events.append("close")
        super().close()


def runner(tmp_path: Path, callback: RolloutCallback, **settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback], default_root_dir=tmp_path,
        enable_checkpointing=False, enable_model_summary=False, **settings,
    )  # fmt: skip


@pytest.fixture
def encoder(tiny_folder: Path) -> PromptEncoder:
    return PromptEncoder(str(tiny_folder), template="plain")


def test_weights_are_sent_once_per_policy_version(encoder: PromptEncoder, tiny_folder: Path, tmp_path: Path) -> None:
    engine = WatchedEngine()
    callback = RolloutCallback(engine, SamplingParams(temperature=0, max_tokens=99))
    data = SFTDataModule(Phantom("train", 4), encoder, {"b": Phantom("test", 4)}, global_batch_size=2, batch_size=2)
    module = SFTModule(Backbone(str(tiny_folder)), Optimization())
    runner(tmp_path, callback, max_epochs=2, num_sanity_val_steps=0).fit(module, data)
    epochs = [["start", "wake", (True, version), "wake", version, "wake", version, "sleep"] for version in (2, 4)]
    assert engine.events == [*epochs[0], *epochs[1], "close"]


def test_an_iteration_syncs_samples_and_sleeps(encoder: PromptEncoder, tiny_folder: Path, tmp_path: Path) -> None:
    """The engine is awake only while it samples, and gets weights only when the policy has moved."""
    engine = WatchedEngine()
    callback = RolloutCallback(
        engine, SamplingParams(temperature=0, max_tokens=99), SamplingParams(n=2, max_tokens=99), parity=None
    )
    data = PromptDataModule(Phantom("train", 8), encoder, {"b": Phantom("test", 2)}, prompts_per_iteration=2)
    module = GRPOModule(Backbone(str(tiny_folder)), Optimization())
    runner(tmp_path, callback, max_epochs=2, num_sanity_val_steps=0).fit(module, data)
    assert engine.events == [
        "start", "wake", (True, 0), "sleep",  # before the first iteration
        "wake", 0, "sleep",  # groups of version 0
        "start", "wake", (True, 1), "wake", 1, "sleep",  # validation after the update
        "wake", 1, "sleep",  # groups of version 1: nothing has moved since
        "start", "wake", (True, 2), "wake", 2, "sleep",
        "close",
    ]  # fmt: skip
    metrics = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    shares = sum(metrics[f"share/{phase}"] for phase in ("generate", "sync", "score", "update", "validate"))
    assert shares == pytest.approx(1)
    assert metrics["tokens_per_second"] > 0


def test_without_a_policy_no_weights_are_sent(encoder: PromptEncoder, tmp_path: Path) -> None:
    engine = WatchedEngine()
    data = BenchmarkDataModule(encoder, {"b": Phantom("test", 2)})
    runner(tmp_path, RolloutCallback(engine, SamplingParams(max_tokens=99))).validate(
        RolloutModule(), data, verbose=False
    )
    assert engine.events == ["start", "wake", "wake", 0, "close"]


def test_closed_after_an_error(encoder: PromptEncoder, tmp_path: Path) -> None:
    engine = WatchedEngine(fail=True)
    data = BenchmarkDataModule(encoder, {"b": Phantom("test", 2)})
    with pytest.raises(EngineError, match="died"):
        runner(tmp_path, RolloutCallback(engine)).validate(RolloutModule(), data, verbose=False)
    assert engine.events[-1] == "close"


def test_a_lost_rank_is_no_reason_to_start_again(encoder: PromptEncoder, tiny_folder: Path, tmp_path: Path) -> None:
    """A start and a checkpoint need all ranks; an engine that fails by itself gets both."""

    class Failing(WatchedEngine):
        def __init__(self, words: str) -> None:
            super().__init__()
            self.words = words

        def generate(self, *args: Any, **kwargs: Any) -> list[RolloutGroup]:
            try:
                raise RuntimeError(self.words)
            except RuntimeError as error:
                raise EngineError("vLLM failed while it sampled") from error

    checkpoint = tmp_path / "engine-failure.ckpt"
    data = SFTDataModule(Phantom("train", 4), encoder, {"b": Phantom("test", 2)}, global_batch_size=2)
    for engine, raised, starts in (
        (Failing("[gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:1234"), LostRankError, 1),
        (Failing("the GPU fell off the bus"), EngineError, 2),
    ):
        trainer = runner(tmp_path, RolloutCallback(engine), max_epochs=1, num_sanity_val_steps=0)
        with pytest.raises(raised):
            trainer.fit(SFTModule(Backbone(str(tiny_folder)), Optimization()), data)
        assert engine.events.count("start") == starts
        assert checkpoint.exists() == (starts == 2)


class Picky(WatchedEngine):
    """Answers A or B; notes what it is asked for, and fails at the question where it is told to."""

    def __init__(self, dies_at: int = -1, texts: tuple[str, ...] = ("<answer> A </answer>", "B")) -> None:
        super().__init__()
        self.texts, self.dies_at = list(texts), dies_at
        self.asked: list[tuple[str, int]] = []

    def generate(self, samples: Any, params: SamplingParams, *, keys: Any) -> list[RolloutGroup]:
        if len(self.asked) // params.n == self.dies_at:
            raise EngineError("the engine died")
        self.asked += [(key.uid, key.first + number) for key in keys for number in range(params.n)]
        return super().generate(samples, params, keys=keys)


def ask(
    encoder: PromptEncoder, tmp_path: Path, engine: Picky, how: str = "validate", n: int = 3, **settings: Any
) -> tuple[dict[str, float], list[Any]]:
    """Runs two small benchmarks with a store; returns the metrics and what the steps saw."""
    sampling = SamplingParams(n=n, temperature=settings.pop("temperature", 1.0), max_tokens=99)
    settings = {"store": str(tmp_path / "store")} | settings
    sources = {"b": Phantom("test", 5, seed=settings.pop("data_seed", 1)), "c": Phantom("test", 2)}
    data = BenchmarkDataModule(encoder, sources, batch_size=2)
    trainer = runner(tmp_path, RolloutCallback(engine, sampling, **settings))
    if how == "predict":
        batches: Any = trainer.predict(RolloutModule(), data)
        groups = [group for loader in batches for batch in loader for group in batch.groups]
        return {}, [(g.sample.uid, g.prompt_token_ids, [c.text for c in g.completions]) for g in groups]
    getattr(trainer, how)(RolloutModule(), data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}, []


def test_a_second_run_asks_nothing_and_says_the_same(encoder: PromptEncoder, tmp_path: Path) -> None:
    engines = [Picky(), Picky(), Picky(), Picky()]
    without, _ = ask(encoder, tmp_path, engines[0], store=None)
    first, _ = ask(encoder, tmp_path, engines[1])
    second, _ = ask(encoder, tmp_path, engines[2])
    assert first == second == without
    assert 0 < first["val/b/accuracy"] < 1
    assert len(engines[1].asked) == len(set(engines[1].asked)) == 21
    assert not engines[2].asked
    assert "test/b/accuracy" in ask(encoder, tmp_path, engines[3], "test")[0]
    assert not engines[3].asked


def test_a_run_that_died_goes_on(encoder: PromptEncoder, tmp_path: Path) -> None:
    died, again, undisturbed = Picky(dies_at=4), Picky(), Picky()
    with pytest.raises(EngineError, match="died"):
        ask(encoder, tmp_path, died, "predict")
    _, groups = ask(encoder, tmp_path, again, "predict")
    assert groups == ask(encoder, tmp_path / "other", undisturbed, "predict")[1]
    assert len(groups) == 7
    assert died.asked + again.asked == undisturbed.asked


def test_more_completions_are_added_to_those_that_are_there(encoder: PromptEncoder, tmp_path: Path) -> None:
    few, more, at_once = Picky(), Picky(), Picky()
    ask(encoder, tmp_path, few, "predict", n=2)
    _, groups = ask(encoder, tmp_path, more, "predict", n=5)
    assert groups == ask(encoder, tmp_path / "other", at_once, "predict", n=5)[1]
    assert sorted(few.asked + more.asked) == sorted(at_once.asked)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": 7}, "seed: 42 in the store, 7 now"),
        ({"temperature": 0.5}, "sampling.temperature: 1.0 in the store, 0.5 now"),
        ({"engine": Picky(texts=("C",))}, r"engine.texts: \S+ in the store, \S+ now"),
        ({"wording": "clean"}, r"prompt.template.instruction: "),
    ],
)
def test_other_settings_are_refused(
    settings: dict[str, Any], named: str, encoder: PromptEncoder, tmp_path: Path
) -> None:
    ask(encoder, tmp_path, Picky())
    now = PromptEncoder(encoder.model, template=settings.pop("wording", "plain"))
    with pytest.raises(DataError, match=named):
        ask(now, tmp_path, settings.pop("engine", Picky()), **settings)


def test_completions_belong_to_the_weights_of_a_checkpoint(
    encoder: PromptEncoder, tiny_folder: Path, tmp_path: Path
) -> None:
    """Wherever the checkpoint and the model lie."""

    def validate(store: str, model: Path = tiny_folder, checkpoint: Path | None = None) -> None:
        callback = RolloutCallback(TransformersEngine(), SamplingParams(max_tokens=2), store=str(tmp_path / store))
        data = BenchmarkDataModule(PromptEncoder(str(model), template="plain"), {"b": Phantom("test", 2)})
        module = SFTModule(Backbone(str(model)), Optimization())
        runner(tmp_path, callback).validate(module, data, ckpt_path=checkpoint, verbose=False)

    callback = RolloutCallback(Picky(), SamplingParams(max_tokens=99))
    trainer = runner(tmp_path, callback, max_steps=3, max_epochs=-1)
    module = SFTModule(Backbone(str(tiny_folder)), Optimization(learning_rate=1e-4))
    trainer.fit(module, SFTDataModule(Phantom("train", 2), encoder, global_batch_size=2))
    trainer.save_checkpoint(tmp_path / "one.ckpt")

    validate("base")
    validate("base", shutil.copytree(tiny_folder, tmp_path / "elsewhere"))
    validate("trained", checkpoint=tmp_path / "one.ckpt")
    validate("trained", checkpoint=(tmp_path / "one.ckpt").rename(tmp_path / "two.ckpt"))
    with pytest.raises(DataError, match=r"engine\.weights: \S+ in the store, \S+ now\."):
        validate("base", checkpoint=tmp_path / "two.ckpt")


def test_other_questions_under_the_same_names_are_refused(encoder: PromptEncoder, tmp_path: Path) -> None:
    class Renamed(Phantom):
        def load(self) -> SampleSet:
            return SampleSet([replace(sample, uid=f"q:{i}") for i, sample in enumerate(super().load())])

    def validate(seed: int) -> None:
        callback = RolloutCallback(Picky(), SamplingParams(max_tokens=99), store=str(tmp_path / "store"))
        data = BenchmarkDataModule(encoder, {"b": Renamed("test", 3, seed=seed)})
        runner(tmp_path, callback).validate(RolloutModule(), data, verbose=False)

    validate(1)
    with pytest.raises(DataError, match="question q:0 of b has other words, options or pictures"):
        validate(2)


def test_the_user_is_told_the_counts_of_all_ranks(
    encoder: PromptEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("callbacks.rollout.gather", lambda mine: [mine, (1, 2, 3)])
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        ask(encoder, tmp_path, Picky())
    assert "1 completions restored, 23 sampled; 3 failed, and the same command" in caplog.text


def test_the_user_is_told_what_was_restored(
    encoder: PromptEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for expected in ("0 completions restored, 21 sampled", "21 completions restored, 0 sampled"):
        with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
            ask(encoder, tmp_path, Picky())
        assert expected in capsys.readouterr().err + caplog.text
