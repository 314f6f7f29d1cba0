# SPDX-License-Identifier: Apache-2.0
"""Every shipped YAML, found by glob: parsed, printed, built, and run for two steps on a tiny model and tiny data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from medvlt.__main__ import main
from medvlt.paths import config_dir

CONFIGS = config_dir()
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
HARDWARE = [name for name in FILES if name.startswith("hardware/")]
RECIPES = [name for name in FILES if name.startswith(("demo/", "sft/"))]


def run(*args: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert not caught.value.code, f"exit code {caught.value.code}: medvlt {' '.join(args)}"


def verb(name: str) -> str:
    data = yaml.safe_load((CONFIGS / name).read_text())["data"]["class_path"]
    return "validate" if data == "BenchmarkDataModule" else "fit"


def test_the_glob_finds_them_and_each_is_of_a_kind() -> None:
    assert len(RECIPES) >= 7
    assert sorted(RECIPES + HARDWARE) == FILES


def test_the_readme_has_a_row_for_each() -> None:
    rows = re.findall(r"^\| `([^`]+\.yaml)` \|", (CONFIGS / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == FILES


@pytest.mark.parametrize("name", FILES)
def test_header_says_how_to_launch(name: str) -> None:
    head = [line for line in (CONFIGS / name).read_text().splitlines() if line.startswith("#")]
    assert head
    assert any("--config" in line for line in head)


@pytest.mark.parametrize("name", RECIPES)
def test_printing_is_a_fixed_point(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(verb(name), "--config", name, "--print_config")
    printed = capsys.readouterr().out
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    run(verb(name), "--config", str(again), "--print_config")
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(printed)


@pytest.mark.parametrize("fragment", HARDWARE)
def test_hardware_composes_with_every_recipe(fragment: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = yaml.safe_load((CONFIGS / fragment).read_text())["trainer"]
    for recipe in RECIPES:
        if recipe.startswith("demo/"):
            continue
        run("fit", "--config", recipe, "--config", fragment, "--print_config")
        trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
        for key in ("accelerator", "devices", "accumulate_grad_batches"):
            assert trainer[key] == wanted[key]
        steps = yaml.safe_load((CONFIGS / recipe).read_text())["data"]["init_args"]["global_batch_size"]
        ranks = wanted["devices"] * wanted.get("num_nodes", 1)
        assert steps % (ranks * wanted["accumulate_grad_batches"]) == 0, (recipe, fragment)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("sft/")])
def test_recipes_train_two_steps(name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real recipe, with a tiny model for the weights that would be downloaded and a file for the gated data."""
    monkeypatch.chdir(tmp_path)
    record = {
        "question": "Q?",
        "options": {"A": "yes", "B": "no"},
        "answer_label": "A",
        "answer": "yes",
        "reasoning": "r",
    }
    rows = [json.dumps(record | {"question": f"Question {number}?"}) for number in range(32)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    run(
        "fit", "--config", name, "--config", "hardware/cpu.yaml", f"--model.init_args.backbone.name={tiny_folder}",
        f"--data.init_args.encoder.model={tiny_folder}", "--data.init_args.train=JSONLines",
        "--data.init_args.train.init_args.path=rows.jsonl", "--data.init_args.num_workers=0", "--trainer.max_epochs=1",
    )  # fmt: skip
    kept = list((tmp_path / "runs").rglob("*.ckpt"))
    assert any(path.name == "epoch=0-step=2.ckpt" for path in kept), kept
    metrics = next((tmp_path / "runs").rglob("metrics.csv")).read_text()
    assert "train/loss" in metrics
    assert "lr-AdamW" in metrics


def test_demo_configs_run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo itself with a few questions: train, keep a checkpoint, evaluate it."""
    monkeypatch.chdir(tmp_path)
    model = [f"--model.init_args.backbone.name={tiny_folder}", f"--data.init_args.encoder.model={tiny_folder}"]
    few = [f"--data.init_args.benchmarks.phantom_{kind}.init_args.size=4" for kind in ("text", "picture")]
    train = ["--data.init_args.train.init_args.size=40", "--trainer.max_epochs=2"]
    run("fit", "--config", "demo/sft.yaml", *model, *few, *train)
    checkpoint = tmp_path / "runs/demo/sft/checkpoints/sft.ckpt"
    run("validate", "--config", "demo/evaluate.yaml", *model, *few, "--ckpt_path", str(checkpoint))
    for folder in ("sft", "evaluation"):
        results = json.loads((tmp_path / "runs/demo" / folder / "results.json").read_text())
        assert {row["benchmark"]: row["count"] for row in results["benchmarks"]} == {
            "phantom_text": 4,
            "phantom_picture": 4,
        }
