# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a model folder and back: the same weights, the same prompts, the same answers."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration

from datamodules import SFTDataModule
from lightning_modules import SFTModule
from medvlt.__main__ import main
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.errors import ConfigurationError, DataError
from medvlt.models import model_folder
from medvlt.models.checkpoints import backbone_record, read_stored
from medvlt.models.export import export
from medvlt.models.loading import Backbone, LoRA, load_backbone
from medvlt.models.model_folder import COPIED_FILES
from medvlt.models.optimization import Optimization
from medvlt.models.policy import Policy
from medvlt.models.restore import read_base, unknown_base

ADAPTED = LoRA(rank=2, components=("vision", "projector", "language"))


def train(backbone: Backbone, checkpoints: Path) -> tuple[SFTModule, Path]:
    """Two steps; returns the live module and its checkpoint."""
    keeper = ModelCheckpoint(dirpath=checkpoints, filename="kept", every_n_train_steps=2)
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, max_steps=2,
        enable_model_summary=False, callbacks=[keeper], limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    module = SFTModule(backbone, Optimization(learning_rate=1e-2, warmup_ratio=0.0, total_steps=10))
    encoder = PromptEncoder(backbone.name, template="plain")
    trainer.fit(module, SFTDataModule(Phantom("train", 8), encoder, global_batch_size=4))
    return module, checkpoints / "kept.ckpt"


@pytest.fixture(scope="module")
def full(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SFTModule, Path]:
    return train(Backbone(str(tiny_folder)), tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def adapted(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SFTModule, Path]:
    return train(Backbone(str(tiny_folder), lora=ADAPTED), tmp_path_factory.mktemp("adapted"))


@pytest.fixture(scope="module")
def exported(full: tuple[SFTModule, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(full[1], folder)
    return folder


def checkpoint_of(policy: Policy, backbone: Backbone, path: Path) -> Path:
    """What the trainer would write, as far as the export reads it."""
    weights = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
    torch.save({"state_dict": weights, "backbone": backbone_record(backbone), "global_step": 7}, path)
    return path


def moved_policy(backbone: Backbone) -> Policy:
    """A policy that is nowhere what it was when it was loaded."""
    policy = Policy(load_backbone(backbone))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return policy


def logits(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> Tensor:
    """All logits of a question with a picture, by the library's own forward."""
    model = copy.deepcopy(model).eval()
    model.set_attn_implementation("sdpa")
    (sample,) = Phantom("test", 1, modality="picture").load()
    prompt = PromptEncoder(str(folder)).encode(sample)
    with torch.no_grad():
        return model(
            input_ids=prompt.token_ids[None],
            position_ids=prompt.position_ids[:, None],
            pixel_values=prompt.pixel_values,
            image_grid_thw=prompt.image_grid_thw,
        ).logits


def test_logits_are_those_of_the_live_policy(full: tuple[SFTModule, Path], exported: Path, tiny_folder: Path) -> None:
    reloaded = AutoModelForImageTextToText.from_pretrained(exported)
    expected = logits(full[0].policy.base, tiny_folder)
    assert torch.equal(logits(reloaded, tiny_folder), expected)
    untrained = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    assert (logits(untrained, tiny_folder) - expected).abs().max() > 1e-2


def test_adapters_are_merged(adapted: tuple[SFTModule, Path], tiny_folder: Path, tmp_path: Path) -> None:
    export(adapted[1], tmp_path / "model")
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    expected = logits(adapted[0].policy.base, tiny_folder)
    torch.testing.assert_close(logits(reloaded, tiny_folder), expected, rtol=0, atol=1e-5)
    untrained = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    assert (logits(untrained, tiny_folder) - expected).abs().max() > 1e-2
    assert "LoRA adapters of rank 2 on vision, projector, language" in (tmp_path / "model" / "README.md").read_text()


def test_the_folder_is_the_base_with_other_weights(exported: Path, tiny_folder: Path) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (exported, tiny_folder))
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}
    copied = {path.name for path in tiny_folder.iterdir()} & set(COPIED_FILES)
    assert copied >= {"tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "generation_config.json"}
    assert {path.name for path in exported.iterdir()} == copied | {"config.json", "model.safetensors", "README.md"}
    for name in copied:
        assert (exported / name).read_bytes() == (tiny_folder / name).read_bytes(), name
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (exported, tiny_folder))
    for part in ("text_config", "vision_config"):
        assert ours[part].pop("dtype") == theirs["dtype"] == "float32"
    assert ours == theirs


def test_the_real_files_are_taken_over(shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The base as it is on the Hub: an old configuration, a slow tokenizer, the template in a file of its own."""
    base, real = tmp_path / "base", shared_data / "qwen2_5_vl_tokenizer"
    base.mkdir()
    for path in real.iterdir():
        shutil.copyfile(path, base / path.name)
    config = json.loads((base / "config.json").read_text())
    config |= dict.fromkeys(("hidden_size", "intermediate_size"), 128) | {"num_attention_heads": 4}
    config |= dict.fromkeys(("num_hidden_layers", "max_window_layers"), 1) | {"num_key_value_heads": 2}
    config["rope_scaling"]["mrope_section"] = [4, 6, 6]
    config["vision_config"] |= {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2}
    config["vision_config"] |= {"out_hidden_size": 128, "fullatt_block_indexes": [0]}
    (base / "config.json").write_text(json.dumps(config))
    model = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(base)).float()
    backbone = Backbone(str(base))
    export(checkpoint_of(Policy(model), backbone, tmp_path / "a.ckpt"), tmp_path / "model")
    assert "bfloat16" not in caplog.text  # nothing is trained in it, whatever the configuration of the base says
    for path in real.iterdir():
        assert path.name == "config.json" or (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()
    assert load_backbone(replace(backbone, name=str(tmp_path / "model"), dtype="auto")).dtype == torch.float32
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["dtype"] == written["text_config"]["dtype"] == "float32"  # the base says bfloat16 in both places


def test_prompts_are_encoded_alike(exported: Path, tiny_folder: Path) -> None:
    for sample in Phantom("test", 6).load():
        ours, theirs = (PromptEncoder(str(folder)).encode(sample) for folder in (exported, tiny_folder))
        assert torch.equal(ours.token_ids, theirs.token_ids)
        assert (ours.pixel_values is None) == (theirs.pixel_values is None)
        if ours.pixel_values is not None:
            assert torch.equal(ours.pixel_values, theirs.pixel_values)


def test_another_run_starts_from_the_folder(full: tuple[SFTModule, Path], exported: Path, tmp_path: Path) -> None:
    start = load_backbone(Backbone(str(exported))).state_dict()
    live = full[0].policy.base.state_dict()
    assert start.keys() == live.keys()
    assert all(torch.equal(tensor, live[name]) for name, tensor in start.items())
    _, checkpoint = train(Backbone(str(exported), lora=LoRA(rank=2)), tmp_path)
    export(checkpoint, tmp_path / "second")
    assert f"base: `{exported}`" in (tmp_path / "second" / "README.md").read_text()


def test_the_same_checkpoint_gives_the_same_bytes(full: tuple[SFTModule, Path], exported: Path, tmp_path: Path) -> None:
    export(full[1], tmp_path / "model")
    for path in exported.iterdir():
        assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_model_card(full: tuple[SFTModule, Path], exported: Path, tiny_folder: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "not for clinical use" in card
    for fact in (f"base: `{tiny_folder}`", f"checkpoint: `{full[1]}`, optimizer step 2", "dtype: float32"):
        assert fact in card


@pytest.mark.parametrize("lora", [None, ADAPTED])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_nothing_is_rounded_twice(dtype: str, lora: LoRA | None, tiny_folder: Path, tmp_path: Path) -> None:
    """A bfloat16 base, with float32 adapters: by itself nothing is rounded, on request once."""
    backbone = Backbone(str(tiny_folder), dtype="bfloat16", lora=lora)
    policy = moved_policy(backbone)
    export(checkpoint_of(policy, backbone, tmp_path / "a.ckpt"), tmp_path / "model", dtype=dtype)
    written = torch.float32 if dtype == "float32" or (dtype == "auto" and lora) else torch.bfloat16
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype="auto").state_dict()
    exact = {name.replace(".base_layer", ""): tensor.double() for name, tensor in policy.base.state_dict().items()}
    for name in [name for name in exact if ".lora_A." in name]:
        layer = name.partition(".lora_A.")[0]
        up = exact[name.replace("lora_A", "lora_B")]
        exact[f"{layer}.weight"] = exact[f"{layer}.weight"] + ADAPTED.alpha / ADAPTED.rank * (up @ exact[name])
    for name, tensor in reloaded.items():
        assert tensor.dtype == written
        half_a_unit = 2**-8 if dtype == "bfloat16" else 1e-6
        torch.testing.assert_close(tensor.double(), exact[name], rtol=half_a_unit, atol=1e-6)


def test_tied_embeddings_are_written_once(tiny_folder: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(config))
    weights = load_file(base / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    policy = moved_policy(Backbone(str(base)))
    assert policy.base.lm_head.weight is policy.base.get_input_embeddings().weight
    export(checkpoint_of(policy, Backbone(str(base)), tmp_path / "a.ckpt"), tmp_path / "model", dtype="bfloat16")
    assert load_file(tmp_path / "model" / "model.safetensors").keys() == weights.keys()
    reloaded = load_backbone(Backbone(str(tmp_path / "model"), dtype="auto"))
    assert torch.equal(reloaded.lm_head.weight, policy.base.lm_head.weight.bfloat16())


def test_adapters_go_on_the_base_they_were_trained_on(
    adapted: tuple[SFTModule, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    """The checkpoint holds adapters alone, so another model of the same shapes would fit, and be wrong."""
    assert all("lora_" in name for name in torch.load(adapted[1], weights_only=True)["state_dict"])
    other = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    moved = Path(shutil.copytree(tiny_folder, tmp_path / "moved"))
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"][0] += 1.0
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ConfigurationError, match=r"holds adapters for .* with the weights [0-9a-f]{16}, and .*other' has"
    ):
        export(adapted[1], tmp_path / "model", base=str(other))
    export(adapted[1], tmp_path / "model", base=str(moved))
    assert f"base: `{moved}`" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("recorded", ["", "someone/tiny@main", None])
def test_a_base_that_nobody_can_compare(
    recorded: str | None, adapted: tuple[SFTModule, Path], tiny_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    """A folder is taken, with a word about it; another model on the Hub is not."""
    checkpoint = torch.load(adapted[1], weights_only=True)
    del checkpoint["medvlt"]["base"]
    checkpoint["medvlt"] |= {} if recorded is None else {"base": recorded}
    checkpoint["backbone"] |= {"name": "someone/tiny"}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    stored = read_stored(tmp_path / "a.ckpt")
    start = read_base(str(tiny_folder))
    for name, revision in (("someone/other", None), ("someone/tiny", "v2")):
        with pytest.raises(ConfigurationError, match=rf"for someone/tiny@main, without .* --base names {name}@"):
            unknown_base(stored, replace(start, name=name, revision=revision))
    export(tmp_path / "a.ckpt", tmp_path / "model", base=str(tiny_folder), check="none")
    assert "warning: the weights of the base" in capsys.readouterr().out
    assert "- not known: the weights of the base" in (tmp_path / "model" / "README.md").read_text()
    assert unknown_base(read_stored(adapted[1]), start) == ""


def test_a_base_with_another_vocabulary_is_refused(
    full: tuple[SFTModule, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    template = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").write_text(template.replace("assistant", "helper"))
    with pytest.raises(ConfigurationError, match="has another vocabulary or chat template than the one"):
        export(full[1], tmp_path / "model", base=str(other))


def test_adapters_that_are_not_there_are_missed(
    full: tuple[SFTModule, Path], adapted: tuple[SFTModule, Path], tmp_path: Path
) -> None:
    checkpoint = torch.load(adapted[1], weights_only=True)
    gone = next(name for name in checkpoint["state_dict"] if "lora_B" in name)
    del checkpoint["state_dict"][gone]
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(ConfigurationError, match=f"1 missing: {gone.removeprefix('policy.')}"):
        export(tmp_path / "a.ckpt", tmp_path / "model")
    with pytest.raises(ConfigurationError, match=r"writes LoRA adapters alone, and .* has none"):
        export(full[1], tmp_path / "model", adapter=True)


def test_a_base_that_has_moved(tiny_folder: Path, tmp_path: Path) -> None:
    backbone = Backbone("runs/long/gone", revision="abc")
    policy = moved_policy(Backbone(str(tiny_folder)))
    path = checkpoint_of(policy, backbone, tmp_path / "a.ckpt")
    with pytest.raises(ConfigurationError, match=r"base 'runs/long/gone' is neither .* say with --base where it is"):
        export(path, tmp_path / "model")
    export(path, tmp_path / "model", base=str(tiny_folder))
    assert f"- base: `{tiny_folder}`\n" in (tmp_path / "model" / "README.md").read_text()


def test_a_base_on_the_hub(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the cache of the Hub, at the revision that was trained; the weights of the base need not be there."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / commit
    shutil.copytree(tiny_folder, snapshot, ignore=shutil.ignore_patterns("*.safetensors"))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "trained").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    policy = moved_policy(Backbone(str(tiny_folder)))
    backbone = Backbone("someone/tiny", revision="trained")
    export(checkpoint_of(policy, backbone, tmp_path / "a.ckpt"), tmp_path / "model")
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (tiny_folder / "tokenizer.json").read_bytes()
    assert "`someone/tiny` at revision `trained`" in (tmp_path / "model" / "README.md").read_text()


def test_the_command(full: tuple[SFTModule, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["export", str(full[1]), str(tmp_path / "model"), "--dtype", "bfloat16", "--check", "none"])
    assert caught.value.code == 0
    assert f"{full[1]} at step 2 to {tmp_path / 'model'}" in capsys.readouterr().out
    assert {t.dtype for t in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.bfloat16}


def test_faults_in_the_weights_are_listed(full: tuple[SFTModule, Path], tiny_folder: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(full[1], weights_only=True)
    weights = checkpoint["state_dict"]
    del weights["policy.backbone.lm_head.weight"]
    weights["policy.backbone.model.extra"] = torch.zeros(1)
    weights["reference.weight"] = torch.zeros(1)
    weights["policy.backbone.model.language_model.norm.weight"] = torch.zeros(5)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(ConfigurationError) as caught:
        export(tmp_path / "a.ckpt", tmp_path / "model")
    message = str(caught.value)
    assert "1 missing: backbone.lm_head.weight;" in message
    assert "2 unexpected: backbone.model.extra, reference.weight;" in message
    assert "1 of another shape: backbone.model.language_model.norm.weight (5,) instead of (128,)" in message
    assert "with --base" in message
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", '{"model_type": "llama"}', "is a 'llama' model; expected 'qwen2_5_vl'"),
        ("config.json", "{", "is neither a model folder"),
        ("tokenizer_config.json", None, "has no tokenizer_config.json"),
        ("preprocessor_config.json", None, "has no preprocessor_config.json or processor_config.json"),
    ],
)
def test_what_is_no_base(
    file: str, content: str | None, message: str, full: tuple[SFTModule, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    if content is None:
        (base / file).unlink()
    else:
        (base / file).write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        export(full[1], tmp_path / "model", base=str(base))


def test_nothing_is_overwritten(full: tuple[SFTModule, Path], exported: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    before = (exported / "README.md").stat().st_mtime_ns
    for target in (exported, tmp_path / "file"):
        with pytest.raises(ConfigurationError, match="exists and is not empty"):
            export(full[1], target)
    assert (tmp_path / "file").read_text() == "precious"
    assert (exported / "README.md").stat().st_mtime_ns == before


@pytest.mark.parametrize(("there", "error"), [(False, OSError), (True, OSError), (False, SafetensorError)])
def test_all_or_nothing(
    there: bool, error: type[Exception], full: tuple[SFTModule, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after the weights: nothing stays, and an empty folder that was there is still there."""
    target = tmp_path / "model"
    if there:
        target.mkdir()

    def no_space(*args: Any) -> None:
        raise error("No space left on device")

    monkeypatch.setattr(model_folder.shutil, "copyfile", no_space)
    with pytest.raises(DataError, match=r"cannot write \S+/model: No space left"):
        export(full[1], target)
    assert [path.name for path in tmp_path.rglob("*")] == (["model"] if there else [])
    monkeypatch.undo()
    export(full[1], target)
    assert (target / "model.safetensors").is_file()
