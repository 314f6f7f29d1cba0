# SPDX-License-Identifier: Apache-2.0
"""When the engine is started, given weights and closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from callbacks import RolloutCallback
from datamodules import BenchmarkDataModule, PromptDataModule, SFTDataModule
from lightning_modules import GRPOModule, RolloutModule, SFTModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.errors import EngineError
from medvlt.models.loading import Backbone
from medvlt.models.optimization import Optimization
from medvlt.rollout.scripted import ScriptedEngine
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
