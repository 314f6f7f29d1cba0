# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of every strategy are read in one process; what is not whole, or not ours, is refused; no code runs."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_strategies import spawn, strategy
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter, save
from transformers import AutoModelForImageTextToText

from datamodules import SFTDataModule
from lightning_modules import SFTModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.errors import ConfigurationError
from medvlt.models.checkpoints import backbone_from_record, backbone_record, read_stored, read_weights
from medvlt.models.export import export
from medvlt.models.loading import Backbone, LoRA
from medvlt.models.optimization import Optimization

ADAPTERS = LoRA(rank=2, components=("vision", "projector", "language"))
KINDS: dict[str, dict[str, Any]] = {
    "fsdp2": {},
    "zero2": {},
    "zero2 bf16": {},
    "zero3": {"freeze": ("vision",)},  # what is frozen is stored elsewhere than what is trained
    "zero3 lora": {"lora": ADAPTERS},
}


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.clone()


def train_all(rank: int, folder: Path, output: Path) -> None:
    """Two steps under each strategy; rank 0 writes down the weights as they are in memory."""
    for kind, settings in KINDS.items():
        name = kind.split()[0]
        seed_everything(3)
        module = SFTModule(
            Backbone(str(folder), **settings),
            Optimization(learning_rate=1e-2, warmup_ratio=0.0, total_steps=10),
        )
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy=strategy(name), logger=False, enable_checkpointing=False,  # type: ignore[arg-type]
            enable_progress_bar=False, enable_model_summary=False, max_steps=2, limit_val_batches=0,
            precision="bf16-mixed" if kind.endswith("bf16") else "32-true",
        )  # fmt: skip
        encoder = PromptEncoder(str(folder), template="plain")
        trainer.fit(module, SFTDataModule(Phantom("train", 8), encoder, global_batch_size=4))
        trainer.save_checkpoint(output / f"{kind}.ckpt", weights_only=False)
        live = {}
        for parameter_name, parameter in module.policy.named_parameters():
            if name == "zero3":
                import deepspeed

                with deepspeed.zero.GatheredParameters([parameter]):
                    live[parameter_name] = whole(parameter)
            else:
                live[parameter_name] = whole(parameter)
        if rank == 0:
            torch.save(live, output / f"{kind}.live")


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("deepspeed")
    output = tmp_path_factory.mktemp("trained")
    spawn(train_all, tiny_folder, output)
    return output


def live_weights(trained: Path, kind: str) -> dict[str, Tensor]:
    live: dict[str, Tensor] = torch.load(trained / f"{kind}.live", weights_only=True)
    if kind.endswith("lora"):
        return {name: tensor for name, tensor in live.items() if "lora_" in name}
    return live


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_in_memory(kind: str, trained: Path, tiny_folder: Path, tmp_path: Path) -> None:
    stored = read_stored(trained / f"{kind}.ckpt")
    assert (stored.kind, stored.step) == ("sharded" if kind == "fsdp2" else "deepspeed", 2)
    assert stored.backbone == Backbone(str(tiny_folder), **KINDS[kind])
    assert stored.record["world_size"] == 2
    assert stored.adapters_only == kind.endswith("lora")
    found, live = read_weights(stored), live_weights(trained, kind)
    assert found.keys() == live.keys()
    for name, tensor in live.items():
        assert torch.equal(found[name].to(tensor.dtype), tensor), name


@pytest.mark.slow
def test_the_optimizer_has_more_digits_than_the_forward(trained: Path, tmp_path: Path) -> None:
    """They are read as DeepSpeed's own converter reads them, and refused where they are of another step."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    folder = Path(shutil.copytree(trained / "zero2 bf16.ckpt", tmp_path / "copy.ckpt"))
    found = read_weights(read_stored(folder))
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(folder), "checkpoint")
    assert {f"policy.{name}" for name in found} == theirs.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, theirs[f"policy.{name}"]), name
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in found.values())
    state = torch.load(folder / "checkpoint" / "mp_rank_00_model_states.pt", weights_only=False)
    next(iter(state["module"].values())).add_(1.0)
    torch.save(state, folder / "checkpoint" / "mp_rank_00_model_states.pt")
    with pytest.raises(ConfigurationError, match=r"the float32 weights of policy\.\S+ are not those that the forward"):
        read_weights(read_stored(folder))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp2", "zero3 lora"])
def test_a_folder_is_exported(kind: str, trained: Path, tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    """The export itself compares answers with the policy's; here the weights with those in memory."""
    export(trained / f"{kind}.ckpt", tmp_path / "model")
    assert "transformers answers 2 prompts as the policy does" in capsys.readouterr().out
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").state_dict()
    live = torch.load(trained / f"{kind}.live", weights_only=True)
    for name, tensor in reloaded.items():
        if kind == "fsdp2":
            assert torch.equal(tensor, live[f"backbone.{name}"]), name
            continue
        layer, leaf = f"backbone.base_model.model.{name.rpartition('.')[0]}", name.rpartition(".")[2]
        if f"{layer}.lora_A.default.weight" in live and leaf == "weight":
            up, down = live[f"{layer}.lora_B.default.weight"], live[f"{layer}.lora_A.default.weight"]
            expected = live[f"{layer}.base_layer.weight"] + ADAPTERS.alpha / ADAPTERS.rank * (up @ down)
            torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("fsdp2", lambda f: (f / "__1_0.distcp").unlink(), r"the shard __1_0\.distcp is missing, one of 2"),
        ("fsdp2", lambda f: cut(f / "__1_0.distcp"), r"shard __1_0\.distcp is cut off \(expected [\d,]+ bytes, found"),
        ("fsdp2", lambda f: (f / "meta.pt").unlink(), "has no meta.pt: it was interrupted while it was written"),
        ("fsdp2", lambda f: (f / ".metadata").unlink(), "has no .metadata: it was interrupted while it was written"),
        ("fsdp2", lambda f: cut(f / ".metadata"), "cannot be read as the index of a sharded checkpoint"),
        ("fsdp2", lambda f: cut(f / "meta.pt"), r"meta\.pt cannot be read as a checkpoint"),
        ("zero2", lambda f: (f / "latest").unlink(), "has no file 'latest': it was interrupted while it was written"),
        ("zero2", lambda f: cut(f / "checkpoint" / "mp_rank_00_model_states.pt"), "cannot be read as a"),
        ("zero2", lambda f: next((f / "checkpoint").glob("*_1_*optim*")).unlink(), "is missing, one of 2 ranks'"),
        ("zero2", lambda f: cut(next((f / "checkpoint").glob("*_1_*optim*"))), r"_1_\S+ cannot be read as a"),
        ("zero3", lambda f: next((f / "checkpoint").glob("*_1_*optim*")).unlink(), "is missing, one of 2 ranks'"),
        ("zero3", lambda f: cut(next((f / "checkpoint").glob("*_1_*optim*"))), r"_1_\S+ cannot be read as a"),
        ("zero3", lambda f: next((f / "checkpoint").glob("*_1_*model*")).unlink(), "is missing, one of 2 ranks'"),
        ("zero3", lambda f: cut(next((f / "checkpoint").glob("*_1_*model*"))), r"_1_\S+ cannot be read as a"),
        ("zero3", lambda f: [p.unlink() for p in (f / "checkpoint").glob("*model*")], "has neither mp_rank_00"),
    ],
)
def test_what_is_not_whole(
    kind: str, damage: Callable[[Path], Any], message: str, trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy.ckpt"
    shutil.copytree(trained / f"{kind}.ckpt", folder)
    read_stored(folder)
    damage(folder)
    with pytest.raises(ConfigurationError, match=message):
        read_stored(folder)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.slow
def test_a_damaged_shard_is_named(trained: Path, tmp_path: Path) -> None:
    """Of the right length, so only reading finds it."""
    shutil.copytree(trained / "fsdp2.ckpt", tmp_path / "copy.ckpt")
    shard = tmp_path / "copy.ckpt" / "__0_0.distcp"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(ConfigurationError, match="a shard is damaged"):
        read_weights(read_stored(tmp_path / "copy.ckpt"))


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (MARK,))


MARK = Path("/tmp/medvlt-test-this-must-not-be-made")


def sharded(folder: Path, root: str, weights: dict[str, Tensor]) -> Path:
    """What FSDP writes, by torch's own writer in one process."""
    save({root: weights}, storage_writer=FileSystemWriter(folder), no_dist=True)
    torch.save({"backbone": backbone_record(Backbone("x")), "global_step": 3}, folder / "meta.pt")
    return folder


@pytest.mark.parametrize("root", ["state_dict", "model"])
def test_both_layouts_of_shards(root: str, tmp_path: Path) -> None:
    """FSDP1 has another name over the weights."""
    weights = {"policy.a.b": torch.arange(6.0).view(2, 3), "policy.c": torch.ones(2, dtype=torch.bfloat16)}
    stored = read_stored(sharded(tmp_path / "x.ckpt", root, weights | {"elsewhere": torch.ones(1)}))
    found = read_weights(stored)
    assert found.keys() == {"a.b", "c"}
    assert all(torch.equal(found[name.removeprefix("policy.")], tensor) for name, tensor in weights.items())


def test_no_code_runs(tmp_path: Path) -> None:
    MARK.unlink(missing_ok=True)
    folder = sharded(tmp_path / "x.ckpt", "state_dict", {"policy.a": torch.ones(2)})
    index = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(ConfigurationError, match=r"it names \S+, which has no place there"):
        read_stored(folder)
    (folder / ".metadata").write_bytes(index)
    torch.save({"backbone": {}, "global_step": Exploit()}, folder / "meta.pt")
    with pytest.raises(ConfigurationError, match="Weights only load failed"):
        read_stored(folder)
    states = tmp_path / "deepspeed" / "checkpoint"
    states.mkdir(parents=True)
    (states.parent / "latest").write_text("checkpoint")
    torch.save({"module": Exploit()}, states / "mp_rank_00_model_states.pt")
    with pytest.raises(ConfigurationError, match="Weights only load failed"):
        read_stored(states.parent)
    torch.save({"state_dict": Exploit()}, tmp_path / "file.ckpt")
    with pytest.raises(ConfigurationError, match="Weights only load failed"):
        read_stored(tmp_path / "file.ckpt")
    assert not MARK.exists()


def test_a_shard_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "x.ckpt", "state_dict", {"policy.a": torch.ones(2)})
    index = pickle.loads((folder / ".metadata").read_bytes())
    for key, place in index.storage_data.items():
        index.storage_data[key] = replace(place, relative_path="../secret")
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(ConfigurationError, match="outside its folder"):
        read_stored(folder)


def test_a_part_that_no_shard_has_is_not_left_random(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "x.ckpt", "state_dict", {"policy.a": torch.ones(2)})
    index = pickle.loads((folder / ".metadata").read_bytes())
    index.state_dict_metadata["state_dict.policy.a"].size = torch.Size([4])
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(ConfigurationError, match=r"parts of state_dict\.policy\.a are in no shard"):
        read_weights(read_stored(folder))


def test_what_is_no_checkpoint_of_ours(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("weights")
    (tmp_path / "empty").mkdir()
    record = {"global_step": 3, "backbone": backbone_record(Backbone("x"))}
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "foreign")
    torch.save(record | {"backbone": {"nmae": "x"}}, tmp_path / "newer")
    torch.save(record | {"state_dict": {}}, tmp_path / "no weights")
    for name, message in {
        "nowhere": "there is no checkpoint",
        "empty": "is a folder and none of the checkpoints",
        "text": "cannot be read as a checkpoint",
        "foreign": "expected the keys backbone and global_step in .*, found state_dict, epoch",
        "newer": "use the version that wrote it",
    }.items():
        with pytest.raises(ConfigurationError, match=message):
            read_stored(tmp_path / name)
    with pytest.raises(ConfigurationError, match="holds no weights"):
        read_weights(read_stored(tmp_path / "no weights"))


def test_settings_survive_the_checkpoint(tmp_path: Path) -> None:
    unusual = Backbone(tmp_path, freeze=("vision",), gradient_checkpointing=True, lora=LoRA(4, 8, 0.1, ("projector",)))  # type: ignore[arg-type]
    torch.save(backbone_record(unusual), tmp_path / "record")
    read = backbone_from_record(torch.load(tmp_path / "record", weights_only=True))
    assert read == replace(unusual, name=str(tmp_path))
