# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import CombinedLoader

from callbacks import RolloutCallback
from callbacks.rollout_settings import (
    check_equal_batches,
    is_limited,
    predict_sets,
    prompt_encoder,
    rollout_identity,
    shards_weights,
)
from datamodules import BenchmarkDataModule, SFTDataModule
from lightning_modules import RolloutModule, SFTModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.errors import ConfigurationError
from medvlt.models.loading import Backbone
from medvlt.models.optimization import Optimization
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.rollout.transformers import TransformersEngine
from medvlt.types import SamplingParams


def quiet_trainer(folder: Path, callback: RolloutCallback) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, max_epochs=1,
        enable_model_summary=False, callbacks=[callback], default_root_dir=folder,
    )  # fmt: skip


def test_a_store_is_refused_where_weights_move(tiny_folder: Path, tmp_path: Path) -> None:
    callback = RolloutCallback(ScriptedEngine(["A"]), store=str(tmp_path / "store"))
    data = SFTDataModule(Phantom("train", 4), PromptEncoder(str(tiny_folder)), global_batch_size=2)
    with pytest.raises(ConfigurationError, match="`fit` moves them; leave store out"):
        quiet_trainer(tmp_path, callback).fit(SFTModule(Backbone(str(tiny_folder)), Optimization()), data)
    assert not (tmp_path / "store").exists()


def test_the_identity_has_all_but_the_number_of_completions(tiny_folder: Path, tmp_path: Path) -> None:
    def identity(n: int, top_p: float) -> dict[str, object]:
        callback = RolloutCallback(ScriptedEngine(["A"]), SamplingParams(n=n, top_p=top_p), seed=5)
        data = BenchmarkDataModule(PromptEncoder(str(tiny_folder)), {"b": Phantom("test", 2)})
        trainer, module = quiet_trainer(tmp_path, callback), RolloutModule()
        trainer.validate(module, data, verbose=False)
        found, about = rollout_identity(callback, trainer, module)
        assert json.loads(json.dumps(found)) == found
        assert about["model"] == str(tiny_folder)
        return found

    assert identity(1, 0.5) == identity(3, 0.5) != identity(1, 0.6)
    assert identity(1, 0.5).keys() == {"engine", "precision", "sampling", "seed", "prompt"}


def test_a_run_without_an_encoder_is_told_what_is_missing(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, RolloutCallback(ScriptedEngine(["A"])))
    with pytest.raises(ConfigurationError, match="needs the prompt encoder of a data module"):
        prompt_encoder(trainer)


def test_questions_of_one_loader_are_found_as_those_of_several(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, RolloutCallback(ScriptedEngine(["A"])))
    loader: torch.utils.data.DataLoader[object] = torch.utils.data.DataLoader(list(Phantom("test", 3).load()))  # type: ignore[arg-type]
    for loaders, number in ((loader, 1), ([loader, loader], 2)):
        trainer.predict_loop._combined_loader = CombinedLoader(loaders, "sequential")
        assert [samples.uids for samples in predict_sets(trainer)] == [Phantom("test", 3).load().uids] * number


def test_ranks_with_different_numbers_of_batches_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callbacks.rollout_settings.gather", lambda mine: [mine, [3, 1]])
    check_equal_batches([3, 1])
    with pytest.raises(ConfigurationError, match=r"\[\[2, 1\], \[3, 1\]\] by rank and loader"):
        check_equal_batches([2, 1])


@pytest.mark.parametrize(
    ("kind", "sharded"),
    [("auto", False), ("ddp", False), ("fsdp2", True), ("zero1", False), ("zero2", False), ("zero3", True)],
)
def test_the_live_policy_samples_where_its_weights_are_whole(
    kind: str, sharded: bool, tiny_folder: Path, tmp_path: Path
) -> None:
    if "zero" in kind and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    strategies = {"auto": SingleDeviceStrategy, "ddp": DDPStrategy, "fsdp2": ModelParallelStrategy}
    strategy = DeepSpeedStrategy(stage=int(kind[-1])) if "zero" in kind else strategies[kind]()
    callback = RolloutCallback(TransformersEngine())
    trainer = quiet_trainer(tmp_path, callback)
    trainer._accelerator_connector.strategy = strategy
    assert shards_weights(trainer) is sharded
    data = BenchmarkDataModule(PromptEncoder(str(tiny_folder)), {"b": Phantom("test", 2)})
    trainer.datamodule = data  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match=r"shards; use .*deepspeed_stage_2") if sharded else nullcontext():
        callback.setup(trainer, RolloutModule(), "validate")


@pytest.mark.parametrize(("limit", "limited"), [(1.0, False), (None, False), (1, True), (0.5, True)])
def test_one_batch_is_a_part_and_the_whole_is_not(limit: float | None, limited: bool) -> None:
    assert is_limited(Trainer(accelerator="cpu", logger=False, limit_predict_batches=limit)) is limited
