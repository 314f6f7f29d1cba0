# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medvlt.errors import ConfigurationError
from medvlt.models.loading import Backbone, LoRA, component_parameters, load_backbone


def test_components_are_all_parameters_once(tiny_folder: Path) -> None:
    model = load_backbone(Backbone(str(tiny_folder)))
    parts = [component_parameters(model, name) for name in ("vision", "projector", "language")]
    assert all(parts)
    ids = [id(parameter) for part in parts for parameter in part]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize(
    ("frozen", "prefixes"),
    [
        ("vision", ("model.visual.blocks", "model.visual.patch_embed")),
        ("projector", ("model.visual.merger",)),
        ("language", ("model.language_model", "lm_head")),
    ],
)
def test_freezing(tiny_folder: Path, frozen: str, prefixes: tuple[str, ...]) -> None:
    model = load_backbone(Backbone(str(tiny_folder), freeze=(frozen,)))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(prefixes), name


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_dtype(tiny_folder: Path, dtype: str) -> None:
    model = load_backbone(Backbone(str(tiny_folder), dtype=dtype))
    assert model.dtype == (torch.float32 if dtype == "auto" else getattr(torch, dtype))


def test_lora_touches_only_its_components(tiny_folder: Path) -> None:
    model = load_backbone(Backbone(str(tiny_folder), lora=LoRA(rank=2, components=("projector",))))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("visual.merger.mlp" in name and "lora_" in name for name in trained)


def test_lora_and_freezing_of_the_same_part_contradict(tiny_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="overlap"):
        load_backbone(Backbone(str(tiny_folder), lora=LoRA(), freeze=("language",)))


def test_nothing_to_train(tiny_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing is left to train"):
        load_backbone(Backbone(str(tiny_folder), freeze=("vision", "projector", "language")))


def test_missing_folder() -> None:
    with pytest.raises(ConfigurationError, match="neither a model folder"):
        load_backbone(Backbone("/nowhere/at-all"))


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigurationError, match="'llama' model; expected 'qwen2_5_vl'"):
        load_backbone(Backbone(str(tmp_path)))


def test_missing_weights_are_not_made_up(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("o_proj.weight")))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match="do not cover the model: 1 tensors"):
        load_backbone(Backbone(str(folder)))


def test_pickled_weights_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="cannot be loaded as safetensors weights"):
        load_backbone(Backbone(str(folder)))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"components": ()}])
def test_lora_settings_that_mean_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"backbone\.lora needs rank >= 1"):
        LoRA(**wrong)


def test_quantized_weights_cannot_be_trained() -> None:
    for settings in ({}, {"lora": LoRA(), "dtype": "auto"}):
        with pytest.raises(ConfigurationError, match=r"quantization='nf4' .* set backbone\.lora\.rank"):
            Backbone("any", quantization="nf4", **settings)
