# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from medvlt.data.encoder import PromptEncoder
from medvlt.data.images import ImageLimits
from medvlt.data.prompts import PromptTemplate
from medvlt.errors import DataError
from medvlt.rollout.store_identity import (
    differences,
    encoder_identity,
    folder_fingerprint,
    model_identity,
    prompt_digest,
    weights_fingerprint,
)
from medvlt.types import Sample

TEMPLATE = PromptTemplate()


def encoded(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(file, "png")
    return file.getvalue()


SAMPLE = Sample("u", "Which?", {"A": "yes", "B": "no"}, "A", "yes", (encoded(1), encoded(2)))


def test_a_copy_of_a_model_folder_is_the_same_model(tiny_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "elsewhere")
    assert model_identity(str(copy)) == model_identity(str(tiny_folder)) == folder_fingerprint(copy)
    assert len(model_identity(str(copy))) == 16


@pytest.mark.parametrize("name", ["big", "small", "norm"])
def test_one_other_tensor_is_another_model(name: str, tmp_path: Path) -> None:
    """However little of the file it is: a projector that was trained alone, a norm."""
    tensors = {"big": torch.randn(600, 600), "small": torch.randn(7, 7), "norm": torch.ones(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    before = folder_fingerprint(tmp_path)
    save_file(tensors | {name: tensors[name] + 0.5}, tmp_path / "model.safetensors")
    assert folder_fingerprint(tmp_path) != before
    save_file(tensors | {name: tensors[name].bfloat16()}, tmp_path / "model.safetensors")
    assert folder_fingerprint(tmp_path) != before


def test_the_same_tensors_in_other_files_are_the_same_model(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(40, 40), "b": torch.randn(5)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    before = folder_fingerprint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for name, tensor in tensors.items():
        save_file({name: tensor}, tmp_path / f"model-{name}.safetensors")
    assert folder_fingerprint(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
def test_what_is_no_safetensors_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"model\.safetensors is no safetensors file"):
        folder_fingerprint(tmp_path)


def test_a_model_that_is_not_here_is_known_by_name(tmp_path: Path) -> None:
    assert model_identity("nobody/nothing", "v1") == "nobody/nothing@v1"
    assert model_identity("nobody/nothing") == "nobody/nothing@main"
    assert model_identity(str(tmp_path / "gone" / "far" / "away")).endswith("away@main")
    (tmp_path / "config.json").write_text("{}")
    assert model_identity(str(tmp_path)) == f"{tmp_path}@main"


def test_weights_are_known_by_their_values_whatever_the_order() -> None:
    weights = {
        "a": torch.arange(5000.0).reshape(50, 100),
        "b": torch.ones(3, dtype=torch.bfloat16),
        "c": torch.ones(()),
    }
    before = weights_fingerprint(weights.items())
    assert weights_fingerprint(reversed(weights.items())) == before
    assert weights_fingerprint({name: tensor.clone() for name, tensor in weights.items()}.items()) == before
    others = [
        weights | {"a": weights["a"] + 1},
        weights | {"a": weights["a"].reshape(100, 50)},
        weights | {"b": weights["b"].float()},
        weights | {"c": torch.zeros(())},
        {"a": weights["a"], "b": weights["b"]},
        {"x": weights["a"], "b": weights["b"], "c": weights["c"]},
    ]
    assert len({before, *(weights_fingerprint(other.items()) for other in others)}) == 7


def test_a_picture_is_its_content(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(encoded(1))
    from_file = replace(SAMPLE, images=(tmp_path / "one.png", encoded(2)))
    assert prompt_digest(TEMPLATE, from_file) == prompt_digest(TEMPLATE, SAMPLE)


def test_whatever_changes_the_prompt_changes_the_digest(tmp_path: Path) -> None:
    digests = [
        prompt_digest(TEMPLATE, SAMPLE),
        prompt_digest(PromptTemplate.named("clean"), SAMPLE),
        prompt_digest(TEMPLATE, replace(SAMPLE, question="Why?")),
        prompt_digest(TEMPLATE, replace(SAMPLE, options={"B": "no", "A": "yes"})),
        prompt_digest(TEMPLATE, replace(SAMPLE, options={"A": "yes", "B": "No"})),
        prompt_digest(TEMPLATE, replace(SAMPLE, images=SAMPLE.images[::-1])),
        prompt_digest(TEMPLATE, replace(SAMPLE, images=SAMPLE.images[:1])),
        prompt_digest(TEMPLATE, replace(SAMPLE, images=(encoded(1), encoded(3)))),
        prompt_digest(TEMPLATE, replace(SAMPLE, images=(encoded(1), tmp_path / "missing.png"))),
        prompt_digest(TEMPLATE, replace(SAMPLE, images=(Image.new("L", (4, 8)), encoded(2)))),
        prompt_digest(TEMPLATE, replace(SAMPLE, images=(Image.new("L", (8, 4)), encoded(2)))),
    ]
    assert len(set(digests)) == len(digests)


def test_what_does_not_reach_the_prompt_does_not_matter() -> None:
    other = replace(SAMPLE, uid="v", answer_label="B", answer="no", reasoning="because", pass_count=3)
    assert prompt_digest(TEMPLATE, other) == prompt_digest(TEMPLATE, SAMPLE)


def test_an_encoder_is_its_wording_pixels_and_tokenizer(tiny_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "elsewhere")
    here = encoder_identity(PromptEncoder(str(tiny_folder)))
    assert encoder_identity(PromptEncoder(str(copy))) == here
    assert encoder_identity(PromptEncoder())["tokenizer"] == ""
    assert differences(
        here, encoder_identity(PromptEncoder(str(copy), images=ImageLimits(max_pixels=28 * 28 * 50)))
    ) == [f"images.max_pixels: {16384 * 28 * 28} in the store, {28 * 28 * 50} now"]
    reply = PromptTemplate.named("clean")
    reply = replace(reply, answer_only_format="{label}")
    assert encoder_identity(PromptEncoder(str(tiny_folder), template=reply)) == here


def test_every_difference_is_named() -> None:
    assert differences({"a": {"b": 1, "c": [1]}}, {"a": {"b": 1, "c": [1]}}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}, "d": "x" * 100}) == [
        "a.b: 1 in the store, 2 now",
        f'd: nothing in the store, "{"x" * 76}... now',
    ]
