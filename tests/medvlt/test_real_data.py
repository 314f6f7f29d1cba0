# SPDX-License-Identifier: Apache-2.0
"""Real questions and pictures with the real tokenizer and a small random backbone, through the command line."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from medvlt.__main__ import main
from medvlt.models.tiny import TinySize, build_tiny


@pytest.fixture(scope="module")
def real_tokenizer_model(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "model"
    return build_tiny(folder, tokenizer_from=str(shared_data / "qwen2_5_vl_tokenizer"), size=TinySize(layers=2))


def run(tmp_path: Path, command: str, settings: dict[str, Any]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as caught:
        main([command, "--config", str(path)])
    assert caught.value.code == 0


def fit(tmp_path: Path, model: Path, source: dict[str, Any], template: Any, steps: int) -> list[float]:
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "out"), "name": "", "version": ""}}
    settings = {
        "trainer": {
            "accelerator": "cpu", "max_steps": steps, "log_every_n_steps": 1, "enable_checkpointing": False,
            "gradient_clip_val": 1.0, "default_root_dir": str(tmp_path / "out"), "logger": logger,
        },
        "model": {
            "class_path": "SFTModule",
            "init_args": {"backbone": {"name": str(model)}, "optimization": {"learning_rate": 3e-3}},
        },
        "data": {
            "class_path": "SFTDataModule",
            "init_args": {
                "encoder": {"model": str(model), "template": template, "images": {"max_pixels": 64 * 784}},
                "train": source, "global_batch_size": 4, "max_length": 1024,
            },
        },
    }  # fmt: skip
    run(tmp_path, "fit", settings)
    with (tmp_path / "out" / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_fit_on_text_with_reasoning(shared_data: Path, real_tokenizer_model: Path, tmp_path: Path) -> None:
    file = {"class_path": "JSONLines", "init_args": {"path": str(shared_data / "text_mcq_medmcqa_dev.jsonl")}}
    source = {"class_path": "Subset", "init_args": {"source": file, "with_reasoning": True, "limit": 200}}
    losses = fit(tmp_path, real_tokenizer_model, source, "reference", steps=12)
    assert losses[0] > 11  # log of a vocabulary of 151,936 is 11.9
    assert losses[-1] < losses[0] - 1.5


@pytest.mark.slow
def test_fit_on_pictures(shared_data: Path, real_tokenizer_model: Path, tmp_path: Path) -> None:
    source = {"class_path": "JSONLines", "init_args": {"path": str(shared_data / "vqa_rad_closed_yesno.jsonl")}}
    answers_only = {"answer_only_format": "<answer> {label} </answer>"}  # this set has no reasoning
    losses = fit(tmp_path, real_tokenizer_model, source, answers_only, steps=8)
    assert losses[-1] < losses[0] - 2


def test_validation_asks_exactly_the_rows(shared_data: Path, real_tokenizer_model: Path, tmp_path: Path) -> None:
    path = shared_data / "vqa_rad_closed_yesno.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    engine = {"class_path": "ScriptedEngine", "init_args": {"texts": ["<think> seen </think>\n<answer> A </answer>"]}}
    settings = {
        "trainer": {
            "accelerator": "cpu", "logger": False, "default_root_dir": str(tmp_path / "out"),
            "callbacks": [
                {"class_path": "RolloutCallback", "init_args": {"engine": engine, "sampling": {"temperature": 0.0}}},
                {"class_path": "ResultsTable"},
            ],
        },
        "verbose": False,
        "model": {"class_path": "RolloutModule"},
        "data": {
            "class_path": "BenchmarkDataModule",
            "init_args": {
                "encoder": {"model": str(real_tokenizer_model), "images": {"max_pixels": 16 * 784}},
                "benchmarks": {"vqa_rad": {"class_path": "JSONLines", "init_args": {"path": str(path)}}},
            },
        },
    }  # fmt: skip
    run(tmp_path, "validate", settings)
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]
    assert result["questions"] == len(rows) == 708
    assert result["correct"] == sum(row["answer_label"] == "A" for row in rows)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("kind", ["vllm" if importlib.util.find_spec("vllm") else "transformers"])
def test_grpo_on_pictures_and_text(
    kind: str, shared_data: Path, real_tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three iterations on VQA-RAD pictures and MedQA text; the parity gate has to let them pass."""
    (tmp_path / "my_rewards.py").write_text("def odd(s, c, v):\n    return float(sum(c.token_ids[:4]) % 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("vqa_rad_closed_yesno.jsonl", "text_mcq_medqa_train.jsonl")
    files = [{"class_path": "JSONLines", "init_args": {"path": str(shared_data / name)}} for name in names]
    sources = [{"class_path": "Subset", "init_args": {"source": file, "limit": 24}} for file in files]
    vllm = {"class_path": "VLLMEngine", "init_args": {"max_model_len": 1024, "max_images": 1}}
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "out"), "name": "", "version": ""}}
    settings = {
        "trainer": {
            "accelerator": "cpu", "max_epochs": 3, "log_every_n_steps": 1, "enable_checkpointing": False,
            "accumulate_grad_batches": 2, "default_root_dir": str(tmp_path / "out"), "logger": logger,
            "callbacks": [
                {
                    "class_path": "RolloutCallback",
                    "init_args": {
                        "engine": vllm if kind == "vllm" else {"class_path": "TransformersEngine"},
                        "group_sampling": {"n": 4, "max_tokens": 24},
                    },
                },
                {"class_path": "CompletionLogger", "init_args": {"rows": 2}},
            ],
        },
        "model": {
            "class_path": "GRPOModule",
            "init_args": {
                "backbone": {"name": str(real_tokenizer_model)},
                "optimization": {"learning_rate": 1e-3, "schedule": "constant"},
                "rewards": {
                    "accuracy": {"class_path": "AccuracyReward"},
                    "odd": {"class_path": "FunctionReward", "init_args": {"function": "my_rewards.odd"}},
                },
                "kl_coef": 0.01,
            },
        },
        "data": {
            "class_path": "PromptDataModule",
            "init_args": {
                "encoder": {"model": str(real_tokenizer_model), "images": {"max_pixels": 64 * 784}},
                "train": {"class_path": "Mixture", "init_args": {"sources": sources}},
                "prompts_per_iteration": 8, "max_prompt_tokens": 900,
            },
        },
    }  # fmt: skip
    run(tmp_path, "fit", settings)
    with (tmp_path / "out" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    gaps = [float(row[gap]) for row in rows if row[(gap := "train/sampling/sampling_logp_difference/max")]]
    assert len(losses) == len(gaps) == 3
    assert max(gaps) < 1e-4
    assert any(loss != 0 for loss in losses)
    records = [
        json.loads(line)
        for number in range(3)
        for line in (tmp_path / "out" / "completions-train" / f"{number:06d}.jsonl").read_text().splitlines()
    ]
    assert len(records) == 3 * 8 * 4
    assert {bool(record["pictures"]) for record in records} == {True, False}
    assert all(Path(name).is_file() for record in records for name in record["pictures"])
    assert {record["version"] for record in records} == {0, 1, 2}
    assert {record["rewards"]["odd"] for record in records} == {0.0, 1.0}
