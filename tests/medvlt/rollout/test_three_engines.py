# SPDX-License-Identifier: Apache-2.0
"""One evaluation over three engines: the policy itself, vLLM in the process, and an endpoint behind HTTP.

The endpoint here is a few lines over transformers; `test_openai_server.py` compares with vLLM's own server, and
`benchmarks/results/2026-11-23-three-engines.md` has all three on real questions with a trained model.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from medvlt.__main__ import main
from medvlt.data.encoder import PromptEncoder
from medvlt.data.prompts import PromptTemplate
from medvlt.evaluation.records import COLUMNS
from medvlt.evaluation.runs import iterate_records, read_run
from medvlt.models.loading import Backbone, load_backbone
from medvlt.models.policy import Policy
from medvlt.rollout.transformers import TransformersEngine
from medvlt.types import RolloutKey, Sample, SamplingParams

if TYPE_CHECKING:
    from conftest import FaultyServer  # type: ignore[import-not-found]

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

IMAGES = {"max_pixels": 16 * 784}


@pytest.fixture
def endpoint(faulty: FaultyServer, no_openai_settings: None, tiny_folder: Path) -> FaultyServer:
    """An endpoint with the model that the other engines have; it knows of a question what the message says."""
    engine = TransformersEngine()
    words = PromptTemplate(instruction="", question_prefix="")  # the message has all of them
    engine.start(PromptEncoder(str(tiny_folder), template=words), Policy(load_backbone(Backbone(str(tiny_folder)))))

    def answer(body: dict[str, Any], attempt: int) -> dict[str, Any]:
        (message,) = body["messages"]
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        pictures = [base64.b64decode(p["image_url"]["url"].partition(",")[2]) for p in parts if p["type"] != "text"]
        sample = Sample("asked", parts[-1]["text"], {}, None, "", tuple(pictures))
        params = SamplingParams(temperature=body["temperature"], max_tokens=body["max_tokens"])
        with torch.inference_mode():
            (group,) = engine.generate([sample], params, keys=[RolloutKey(0, 0, "asked")])
        (completion,) = group.completions
        message = {"role": "assistant", "content": completion.text}
        choice = {"index": 0, "message": message, "finish_reason": completion.finish_reason}
        usage = {"prompt_tokens": len(group.prompt_token_ids), "completion_tokens": completion.length}
        return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}

    faulty.fault = answer
    return faulty


def write_questions(folder: Path) -> None:
    """One longer than vLLM's blocks of 128 tokens, one with two pictures."""
    for number, size in enumerate(((90, 61), (112, 84))):
        noise = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    rows = [
        {"question": "A patient of 61 years has a cough. " * 12 + "What now?", "images": []},
        {"question": "Which of the two is larger?", "images": ["0.png", "1.png"]},
    ]
    rows = [row | {"options": {"A": "yes", "B": "no"}, "answer_label": "A"} for row in rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def validate(tiny_folder: Path, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Returns `medvlt validate` with an engine, and what it writes of each completion."""
    write_questions(tmp_path)

    def run(name: str, engine: dict[str, Any], model: dict[str, Any]) -> list[dict[str, Any]]:
        root = tmp_path / name
        phantom = {
            kind: {"class_path": "Phantom", "init_args": {"split": "test", "size": 4, "modality": kind}}
            for kind in ("text", "picture")
        }
        settings = {
            "trainer": {
                "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
                "default_root_dir": str(root),
                "callbacks": [
                    {"class_path": "EvaluationRecorder"},
                    {"class_path": "RolloutCallback", "init_args": {
                        "engine": engine, "sampling": {"temperature": 0.0, "max_tokens": 24},
                    }},
                ],
            },
            "model": model,
            "data": {"class_path": "BenchmarkDataModule", "init_args": {
                "encoder": {"model": str(tiny_folder), "template": "step_by_step", "images": IMAGES},
                "benchmarks": {
                    **phantom,
                    "own": {"class_path": "Benchmark", "init_args": {"source": str(tmp_path / "rows.jsonl")}},
                },
            }},
        }  # fmt: skip
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        with pytest.raises(SystemExit) as caught:
            main(["validate", "--config", str(path)])
        assert not caught.value.code
        assert sum(answers.questions for answers in read_run(root).benchmarks.values()) == 10
        return [{column: record[column] for column in COLUMNS} for record in iterate_records(root)]

    return run


def test_texts_and_verdicts_are_equal(
    endpoint: FaultyServer, validate: Callable[..., list[dict[str, Any]]], tiny_folder: Path
) -> None:
    without_backbone = {"class_path": "RolloutModule"}
    policy = {"class_path": "SFTModule", "init_args": {"backbone": {"name": str(tiny_folder)}}}
    ours = validate("transformers", {"class_path": "TransformersEngine"}, policy)
    address = {"model": "tiny", "base_url": endpoint.url}
    asked = validate("endpoint", {"class_path": "OpenAIEngine", "init_args": address}, without_backbone)
    small = {"dtype": "float32", "max_model_len": 1024, "max_images": 2, "max_num_seqs": 16, "kv_cache_gib": 0.125}
    sampled = validate("vllm", {"class_path": "VLLMEngine", "init_args": small}, without_backbone)
    assert len({record["completion"] for record in ours}) >= 8  # the model says something else to each
    assert asked == ours
    assert sampled == ours
