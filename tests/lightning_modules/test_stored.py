# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says of its run; adapters alone; checkpoints that a run cannot go on from."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch.distributed.checkpoint.metadata import Metadata, TensorProperties, TensorStorageMetadata

from callbacks import AtomicCheckpoint
from datamodules import SFTDataModule
from lightning_modules import FSDP1Strategy, FSDP2Strategy, RolloutModule, SFTModule, stored
from lightning_modules.policy import dropout_seed
from lightning_modules.stored import check_before_loading, check_stored, save_adapters_alone
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.errors import ConfigurationError
from medvlt.models.checkpoints import CheckpointKind, StoredCheckpoint, read_stored, read_weights
from medvlt.models.loading import Backbone, LoRA
from medvlt.models.optimization import Optimization
from medvlt.models.tiny import TinySize, build_tiny
from medvlt.rollout.store_identity import model_identity

ADAPTERS = LoRA(rank=2, alpha=4, dropout=0.3)


def fit(
    folder: Path,
    root: Path,
    *,
    steps: int,
    lora: LoRA | None = ADAPTERS,
    resume: Path | None = None,
    early: bool = False,
) -> SFTModule:
    keeper = AtomicCheckpoint(dirpath=root, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=steps,
        max_epochs=9, accumulate_grad_batches=2, callbacks=[keeper],
    )  # fmt: skip
    module = SFTModule(Backbone(str(folder), lora=lora), Optimization(learning_rate=1e-2, total_steps=4))
    encoder = PromptEncoder(str(folder), template="plain")
    data = SFTDataModule(Phantom("train", 12, modality="text"), encoder, global_batch_size=4)
    if early:
        trainer.ckpt_path, resume = resume, None
    trainer.fit(module, data, ckpt_path=resume)
    return module


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of each of four optimizer steps of a run with adapters."""
    root = tmp_path_factory.mktemp("whole")
    fit(tiny_folder, root, steps=4)
    return root


def test_what_a_checkpoint_says(whole: Path, tiny_folder: Path) -> None:
    record = read_stored(whole / "step=4.ckpt").record
    assert json.loads(json.dumps(record)) == record
    assert (record["module"], record["kind"]) == ("SFTModule", "SFTModule")
    assert record["adapters_only"] is True
    assert record["base"] == model_identity(str(tiny_folder))
    assert (record["world_size"], record["strategy"]) == (1, "SingleDeviceStrategy")
    assert record["data"]["class"] == "SFTDataModule"
    assert record["data"]["source"].startswith("Phantom(size=12, settings=Settings(split='train'")
    assert record["data"]["samples"] == 12
    assert len(record["data"]["fingerprint"]) == 16
    assert record["prompt"]["tokenizer"]
    assert record["metrics"]["train/loss"] > 0
    assert record["config"] == ""


def test_adapters_alone_are_stored(whole: Path, tiny_folder: Path) -> None:
    """And the state of the optimizer for them, in a file that is small beside the model."""
    weights = read_weights(read_stored(whole / "step=4.ckpt"))
    assert all("lora_" in name for name in weights)
    assert len(weights) == 2 * 2 * 7  # A and B of the seven linear layers of each of two blocks
    assert (whole / "step=4.ckpt").stat().st_size < 0.6 * (tiny_folder / "model.safetensors").stat().st_size


def test_resumed_with_dropout_equals_undisturbed(whole: Path, tiny_folder: Path, tmp_path: Path) -> None:
    torch.rand(7)  # the global generator is somewhere else
    fit(tiny_folder, tmp_path, steps=4, resume=whole / "step=2.ckpt")
    expected, resumed = (read_weights(read_stored(root / "step=4.ckpt")) for root in (whole, tmp_path))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())


def test_seed_of_dropout() -> None:
    places = [(seed, epoch, batch, rank) for seed in (1, 2) for epoch in (0, 1) for batch in (0, 1) for rank in (0, 1)]
    seeds = {dropout_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_adapters_that_are_not_there_or_unknown(whole: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Loading is not strict, as the base is not there; both would be silent."""
    checkpoint = torch.load(whole / "step=2.ckpt", weights_only=True)
    name = sorted(checkpoint["state_dict"])[0]
    tensor = checkpoint["state_dict"].pop(name)
    torch.save(checkpoint, tmp_path / "missing.ckpt")
    with pytest.raises(
        ConfigurationError, match=r"missing.ckpt are not those .* 1 are missing, such as policy.*lora_A"
    ):
        fit(tiny_folder, tmp_path, steps=4, resume=tmp_path / "missing.ckpt")
    checkpoint["state_dict"] |= {name: tensor, "policy.lora_C": tensor}
    torch.save(checkpoint, tmp_path / "unknown.ckpt")
    with pytest.raises(ConfigurationError, match=r"not those of this model: 1 are unknown, such as policy.lora_C"):
        fit(tiny_folder, tmp_path, steps=4, resume=tmp_path / "unknown.ckpt")


@pytest.mark.parametrize("early", [True, False])
def test_another_base_is_refused(early: bool, whole: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Where the Trainer knows the checkpoint from the beginning, before a model is loaded."""
    size = TinySize(layers=2, max_position_embeddings=2048, initializer_range=0.2)
    other = build_tiny(tmp_path / "other", size=size)
    with pytest.raises(ConfigurationError, match=r"is of another run: its base is .* with weights \w{16}, this one"):
        fit(other, tmp_path, steps=4, resume=whole / "step=2.ckpt", early=early)
    copy = build_tiny(tmp_path / "copy", size=TinySize(layers=2, max_position_embeddings=2048, initializer_range=0.1))
    assert fit(copy, tmp_path, steps=3, resume=whole / "step=2.ckpt", early=early)  # the same elsewhere


def test_refused_before_the_model_is_loaded(
    whole: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SFTModule, "configure_model", lambda module: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigurationError, match=r"backbone.lora was LoRA\(rank=2, .*, is None. Use the settings of"):
        fit(tiny_folder, tmp_path, steps=4, lora=None, resume=whole / "step=2.ckpt", early=True)


BASE = "0123456789abcdef"


def refusal(
    monkeypatch: pytest.MonkeyPatch,
    *,
    kind: CheckpointKind = "file",
    strategy: Strategy | None = None,
    backbone: Backbone = Backbone("base"),  # noqa: B008 - frozen
    record: dict[str, Any] | None = None,
    now: str = BASE,
    training: bool = True,
    ranks: int = 2,
    path: Path = Path("x.ckpt"),
) -> str:
    """What is said of a checkpoint of an SFTModule of the model "base" on two ranks under DDP; "" if it may be used."""
    said = {"module": "SFTModule", "base": BASE, "world_size": 2, "strategy": "DDPStrategy"} | (record or {})
    checkpoint = StoredCheckpoint(path, kind, backbone, 3, said)
    monkeypatch.setattr(stored, "read_stored", lambda path: checkpoint)
    monkeypatch.setattr(stored, "base_identity", lambda backbone: now)
    trainer = SimpleNamespace(
        strategy=strategy or DDPStrategy(),
        world_size=ranks,
        state=SimpleNamespace(fn="fit" if training else "validate"),
    )
    module = type("SFTModule", (), {"backbone": Backbone("base"), "trainer": trainer})()
    try:
        check_stored(path, module, loaded=False)
    except ConfigurationError as error:
        return str(error)
    return ""


def test_what_a_run_cannot_go_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch) == ""
    assert "its base is 'base' with weights 0123456789abcdef, this one 'base' with weights f0" in refusal(
        monkeypatch, now="f0"
    )
    assert "its base is a@main, this one b@main" in refusal(monkeypatch, record={"base": "a@main"}, now="b@main")
    for unknown in ({"record": {"base": "base@main"}}, {"now": "base@main"}, {"now": ""}, {"record": {"base": ""}}):
        assert refusal(monkeypatch, **unknown) == ""  # type: ignore[arg-type]
    frozen = Backbone("base", freeze=("vision",))
    assert "backbone.freeze was ['vision'], is []" in refusal(monkeypatch, backbone=frozen)
    assert refusal(monkeypatch, backbone=frozen, training=False) == ""
    grpo = {"module": "GRPOModule", "kind": "GRPOModule"}
    adapters = replace(frozen, freeze=(), lora=LoRA(dropout=0.1))
    assert "backbone.lora was LoRA(rank=16" in refusal(monkeypatch, backbone=adapters, training=False)
    assert "GRPOModule wrote it, this is SFTModule" in refusal(monkeypatch, record=grpo)
    assert refusal(monkeypatch, record=grpo, training=False) == ""
    # all weights are in the checkpoint, so that an evaluation needs the base for its shapes alone; adapters need it
    assert refusal(monkeypatch, now="f0", training=False) == ""
    alone = {"adapters_only": True}
    assert "weights f0" in refusal(monkeypatch, record=alone, now="f0", training=False)
    other = refusal(monkeypatch, record=grpo, now="f0")
    assert "weights f0; GRPOModule wrote it" in other
    assert "`medvlt export x.ckpt FOLDER` and model.backbone.name: FOLDER" in other


def test_what_a_strategy_cannot_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of folders what counts is whose shards are there, not which class wrote them."""
    assert refusal(monkeypatch, strategy=FSDP2Strategy()) == ""
    for strategy in (DDPStrategy(), SingleDeviceStrategy("cpu")):
        assert "was written by DeepSpeed, which alone" in refusal(monkeypatch, strategy=strategy, kind="deepspeed")
    readers = {"state_dict": (FSDP2Strategy(), ModelParallelStrategy(1, 1)), "model": (FSDP1Strategy(), FSDPStrategy())}
    everyone = [DDPStrategy(), SingleDeviceStrategy("cpu"), *readers["state_dict"], *readers["model"]]
    for root, kind in (("state_dict", "FSDP2"), ("model", "FSDP1")):
        folder = tmp_path / f"{kind}.ckpt"
        folder.mkdir()
        tensor = TensorStorageMetadata(TensorProperties(), torch.Size([0]), [])
        names = ("optimizer_0.state.policy.x", f"{root}.policy.x")
        (folder / ".metadata").write_bytes(pickle.dumps(Metadata(dict.fromkeys(names, tensor), storage_data={})))
        (folder / "meta.pt").touch()
        for strategy in everyone:
            said = refusal(monkeypatch, strategy=strategy, kind="sharded", ranks=4, path=folder)
            if strategy in readers[root]:
                assert said == ""
            else:
                assert f"shards of {kind}, which {type(strategy).__name__} does not read" in said
                assert f"strategy: {kind.lower()}, or export its weights (`medvlt export {folder} FOLDER`)" in said


def test_what_deepspeed_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    from lightning.pytorch.strategies import DeepSpeedStrategy

    zero: dict[str, Any] = {"strategy": DeepSpeedStrategy(stage=2), "record": {"strategy": "DeepSpeedStrategy"}}
    assert refusal(monkeypatch, kind="deepspeed", **zero) == ""
    assert "on 2 ranks and there are 3 now; DeepSpeed cannot" in refusal(monkeypatch, kind="deepspeed", ranks=3, **zero)
    assert refusal(monkeypatch, kind="deepspeed", ranks=3, training=False, **zero) == ""
    assert "x.ckpt is a single file, and DeepSpeed" in refusal(monkeypatch, **zero)
    whole = DeepSpeedStrategy(stage=3, load_full_weights=True)
    assert refusal(monkeypatch, strategy=whole) == ""
    save_adapters_alone(zero["strategy"])
    assert zero["strategy"].exclude_frozen_parameters


def test_folders_of_adapters_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"FSDP2Strategy \(strategy: fsdp2\), or set save_distributed_check"):
        save_adapters_alone(ModelParallelStrategy(1, 1))
    save_adapters_alone(ModelParallelStrategy(1, 1, save_distributed_checkpoint=False))
    save_adapters_alone(FSDP2Strategy())
    with pytest.raises(ConfigurationError, match="set state_dict_type: full"):
        save_adapters_alone(FSDPStrategy(state_dict_type="sharded"))


def test_the_module_of_the_present_run_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Trainer may be given another module than before, and the strategy stays."""
    compared: list[Any] = []
    monkeypatch.setattr(stored, "check_stored", lambda path, module, *, loaded: compared.append(module))
    strategy: Any = type("Loading", (), {"load_checkpoint": lambda self, path: path})()
    modules = [SFTModule(Backbone("a")), SFTModule(Backbone("b"))]
    for module in modules:
        check_before_loading(strategy)
        strategy.lightning_module = module
        assert strategy.load_checkpoint("x.ckpt") == "x.ckpt"
    strategy.lightning_module = RolloutModule()  # has no weights to load
    strategy.load_checkpoint("x.ckpt")
    assert compared == modules
