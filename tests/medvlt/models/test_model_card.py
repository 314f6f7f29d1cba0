# SPDX-License-Identifier: Apache-2.0
"""The card says how the model was made, and its code runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import metadata_load
from PIL import Image

from medvlt.data.encoder import PromptEncoder
from medvlt.data.images import ImageLimits
from medvlt.data.prompts import PromptTemplate
from medvlt.models.checkpoints import StoredCheckpoint, backbone_record
from medvlt.models.export import export
from medvlt.models.loading import Backbone, LoRA, load_backbone
from medvlt.models.model_card import QUESTION, CardFacts, model_card, snippet
from medvlt.models.policy import Policy
from medvlt.models.restore import read_base
from medvlt.rollout.store_identity import encoder_identity, model_identity

TEMPLATE = PromptTemplate(
    system="Answer as a `doctor`.\nBriefly.", instruction="Think.", option_format="({label}) {text}"
)
LIMITS = ImageLimits(min_pixels=784, max_pixels=64 * 784)
CONFIG = "model:\n  class_path: GRPOModule\n# ``` not the end\n"
LICENCE = "license: other\nlicense_name: qwen-research\nlicense_link: https://example.org/licence\n"


def record(encoder: PromptEncoder, **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "version": "0.1.0",
        "module": "GRPOModule",
        "adapters_only": False,
        "base": "0123456789abcdef",
        "world_size": 8,
        "strategy": "FSDP2Strategy",
        "data": {
            "class": "PromptDataModule",
            "source": "<b>M23k</b>|x",
            "samples": 17,
            "fingerprint": "feedfacefeedface",
        },
        "prompt": encoder_identity(encoder),
        "metrics": {"val/accuracy": 0.62512345, "train/reward": 0.5},
        "config": CONFIG,
    }
    return known | changes


@pytest.fixture(scope="module")
def base(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("bases") / "base"))
    (folder / "README.md").write_text(f"---\n{LICENCE}base_model: Qwen/Qwen2.5-VL-3B-Instruct\n---\n# theirs\n")
    (folder / "LICENSE").write_text("their licence")
    return folder


@pytest.fixture(scope="module", params=["model", "adapter"])
def exported(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exported")
    adapter = request.param == "adapter"
    backbone = Backbone(str(base), lora=LoRA(rank=2) if adapter else None)
    policy = Policy(load_backbone(backbone))
    weights = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
    encoder = PromptEncoder(str(base), template=TEMPLATE, images=LIMITS)
    stored = {"state_dict": weights, "backbone": backbone_record(backbone), "global_step": 7}
    torch.save(stored | {"medvlt": record(encoder, base=model_identity(str(base)))}, place / "a.ckpt")
    export(place / "a.ckpt", place / request.param, adapter=adapter)
    return place / request.param


def test_the_hub_reads_it(exported: Path) -> None:
    found = metadata_load(exported / "README.md")
    assert found is not None
    assert found | {"tags": None} == {
        "base_model": "Qwen/Qwen2.5-VL-3B-Instruct",
        "library_name": "peft" if exported.name == "adapter" else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": None,
        **yaml.safe_load(LICENCE),
    }
    assert (exported / "LICENSE").read_text() == "their licence"


def test_what_it_says(exported: Path, base: Path) -> None:
    card = (exported / "README.md").read_text()
    for said in (
        "**not for clinical use**",
        f"base: `{base}`",
        "a.ckpt`, optimizer step 7",
        "dtype: float32",
        "method: `GRPOModule`",
        f"fingerprint of the base's weights: `{model_identity(str(base))}`",
        r"| source | \<b\>M23k\</b\>\|x |",
        "| fingerprint | feedfacefeedface |",
        "| samples | 17 |",
        "| val/accuracy | 0.625123 |",
        "strategy: FSDP2Strategy, ranks: 8",
        "Think.\n\nQuestion: Which vitamin is missing in scurvy?\n\nOptions:\n\n(A) Vitamin A",
        "Answer as a `doctor`.\nBriefly.",
        "784 to 50,176 pixels",
        "under qwen-research",
        "## Limits",
    ):
        assert said in card, said
    trained = (
        "LoRA adapters of rank 2 on language, this folder" if exported.name == "adapter" else "trained: all weights"
    )
    assert trained in card
    assert (exported / "training_config.yaml").read_text() == CONFIG
    assert f"````yaml\n{CONFIG.strip()}\n````" in card  # a longer fence than the text holds


def test_the_snippet_runs(exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """And its prompt is the trainer's, token by token and pixel by pixel."""
    pytest.importorskip("torchvision")  # transformers' processor needs it for videos
    block = (exported / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(exported)
    names: dict[str, Any] = {}
    exec(compile(block.replace("max_new_tokens=2048", "max_new_tokens=3"), "README.md", "exec"), names)
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]
    encoder = PromptEncoder(str(exported), template=TEMPLATE, images=LIMITS)
    prompt = encoder.encode(replace(QUESTION, images=(Image.new("RGB", (336, 336)),)))
    assert names["inputs"]["input_ids"][0].tolist() == prompt.token_ids.tolist()
    assert names["inputs"]["image_grid_thw"].tolist() == prompt.image_grid_thw.tolist()
    torch.testing.assert_close(names["inputs"]["pixel_values"], prompt.pixel_values, rtol=0, atol=1e-5)


def card_of(base: Path, record: dict[str, Any], name: str = "model") -> str:
    stored = StoredCheckpoint(Path("a`b.ckpt"), "file", Backbone(str(base)), 3, record)
    encoder = PromptEncoder(str(base))
    return model_card(CardFacts(name, stored, read_base(str(base)), encoder, torch.float32, adapter=False))


def test_the_snippet_names_the_base_that_was_trained(base: Path) -> None:
    settings = Backbone(str(base), dtype="bfloat16", lora=LoRA(rank=2), quantization="nf4")
    stored = StoredCheckpoint(Path("b.ckpt"), "file", settings, 3, {})
    start = replace(read_base(str(base)), revision="0badcafe")
    code = snippet(CardFacts("a", stored, start, PromptEncoder(str(base)), torch.float32, adapter=True))
    assert f"base, revision = {str(base)!r}, '0badcafe'" in code
    assert code.count("from_pretrained(base, revision=revision") == 2
    assert "BitsAndBytesConfig" in code
    plain = replace(stored, backbone=replace(settings, quantization=None))
    code = snippet(CardFacts("a", plain, start, PromptEncoder(str(base)), torch.float32, adapter=True))
    assert "BitsAndBytesConfig" not in code


def test_of_an_older_checkpoint(tiny_folder: Path) -> None:
    """Nothing is made up where nothing is known."""
    card = card_of(tiny_folder, {}, name="a_model *of* mine")
    assert "# a\\_model \\*of\\* mine" in card
    assert "checkpoint: `` a`b.ckpt ``, optimizer step 3" in card
    assert "does not say which wording was trained" in card
    assert "names no licence" in card
    for absent in ("## Data", "## Metrics", "## Recipe", "base_model", "license:"):
        assert absent not in card


def test_a_broken_card_of_the_base_is_no_obstacle(tiny_folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    (base / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    assert "names no licence" in card_of(base, {})
