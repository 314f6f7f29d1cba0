# SPDX-License-Identifier: Apache-2.0
"""The configs of `medvlt predict`: probes and teachers, run on a few questions with scripted answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from medvlt.__main__ import main
from medvlt.curation.ledger import Ledger
from medvlt.data.sources import SavedDataset
from medvlt.paths import config_dir

CONFIGS = config_dir()
CURATE = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("curate/*.yaml"))
DISTILL = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("distill/*.yaml"))
RIGHT = "<think> because </think>\n<answer> A </answer>"


def settings_of(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    return settings


def predict(name: str, tiny_folder: Path, *more: str) -> None:
    """Runs a config with scripted answers, a tiny tokenizer, and a file in the place of the gated questions."""
    rows = [
        {"question": f"Question {i}?", "options": {"A": f"yes {i}", "B": f"no {i}"}, "answer_label": "AB"[i % 2]}
        for i in range(5)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (benchmark,) = settings_of(name)["data"]["init_args"]["benchmarks"]
    engine = {"class_path": "ScriptedEngine", "init_args": {"texts": [RIGHT]}}
    with pytest.raises(SystemExit) as caught:
        main([
            "predict", "--config", name, "--config", "hardware/cpu.yaml",
            f"--data.init_args.encoder.model={tiny_folder}",
            f"--data.init_args.benchmarks.{benchmark}=JSONLines",
            f"--data.init_args.benchmarks.{benchmark}.init_args.path=rows.jsonl",
            f"--trainer.callbacks.init_args.engine={json.dumps(engine)}", *more,
        ])  # fmt: skip
    assert not caught.value.code


def callback(settings: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = [c["init_args"] for c in settings["trainer"]["callbacks"] if c["class_path"].endswith(kind)]
    return dict(found)


@pytest.mark.parametrize("name", CURATE)
def test_probes_fill_the_ledger(name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    predict(name, tiny_folder)
    ledger = Ledger.read("data/ledger.parquet")
    (probe,) = ledger.probes
    assert sorted(ledger.column(f"{probe}/n").values()) == [16] * 5
    assert sorted(ledger.column(f"{probe}/strict").values()) == [0, 0, 16, 16, 16]
    assert list(Path("runs").rglob("completions/*"))


@pytest.mark.parametrize("name", CURATE)
def test_probes_have_the_numbers_of_the_reference(name: str) -> None:
    settings = settings_of(name)
    rollout = callback(settings, "VLLMRolloutCallback")
    sampling = rollout["sampling"]
    assert (sampling["n"], sampling["temperature"], sampling["top_p"], sampling["max_tokens"]) == (16, 1.0, 1.0, 4096)
    assert (rollout["seed"], settings["data"]["init_args"]["batch_size"]) == (42, 512)
    encoder = settings["data"]["init_args"]["encoder"]
    assert encoder["template"] == "reference"
    size = Path(name).stem.removesuffix("_blind").rpartition("_")[2]
    assert encoder["model"] == f"Qwen/Qwen2.5-VL-{size.upper()}-Instruct"
    blind = "_blind" if name.endswith("_blind.yaml") else ""
    assert callback(settings, "PassCountLedger") == {
        "path": "data/ledger.parquet", "probe": f"qwen2_5_vl_{size}{blind}",
    }  # fmt: skip


def test_every_probe_that_a_recipe_names_is_shipped() -> None:
    probes = {callback(settings_of(name), "PassCountLedger")["probe"] for name in CURATE}
    named = {
        settings_of(path.relative_to(CONFIGS).as_posix())["data"]["init_args"]["train"]["init_args"]["selection"][
            "probe"
        ]
        for path in CONFIGS.glob("grpo/*.yaml")
    }
    assert named <= probes


@pytest.mark.parametrize("name", DISTILL)
def test_teachers_write_a_set_to_train_on(
    name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = settings_of(name)
    engine = callback(settings, "RolloutCallback")["engine"]
    assert engine["class_path"] == "OpenAIEngine"
    assert "key" not in json.dumps(engine).replace("api_key_variable", "")  # a key is never in a file
    predict(name, tiny_folder)
    written = SavedDataset(callback(settings, "TeacherTraces")["output"]).load()
    assert [sample.reasoning for sample in written] == ["because"] * 3
    assert all(sample.answer_label == "A" for sample in written)
