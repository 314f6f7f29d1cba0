# SPDX-License-Identifier: Apache-2.0
"""Made-up outputs of four harnesses: replies in many wordings whose letter is known, in the forms they store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medvlt.data.prompts import PromptTemplate
from medvlt.data.sources import JSONLines
from medvlt.evaluation.third_party.reading import OutputForm
from medvlt.types import Sample

TEXTS = ("pneumothorax", "pleural effusion", "cardiomegaly", "rib fracture")
REPLIES = (
    "{letter}",
    "({letter})",
    "{letter}. {text}",
    "{text}",
    "**{letter}**",
    "<think>It may be (A) or (B).</think>\n<answer> {letter} </answer>",
    "<think>{text} fits.</think><answer>{text}</answer>",
    "Looking at the film, the lung is bright. The answer is ({letter}) {text}.",
    "Step by step.\n\nAnswer: {letter}",
    "So we find that\n$\\boxed{{{letter}}}$",
    "The correct answer is **{letter}. {text}**, because of the sharp line.",
    "I considered A, then D.\nFinal answer: {letter}",
)
"""Wordings of a letter and its text."""

COUNT = 4 * len(REPLIES)

Row = tuple[Sample, str, str]
"""Question, reply, and the letter that the reply was made of."""


def generated(count: int = COUNT) -> list[Row]:
    """Every wording with every letter; the replied letter is right in two of five."""
    rows = []
    for number in range(count):
        shift = number % 4
        options = dict(zip("ABCD", (*TEXTS[shift:], *TEXTS[:shift]), strict=True))
        letter = "ABCD"[(number // len(REPLIES) + number) % 4]
        right = letter if number % 5 < 2 else "ABCD"["ABCD".index(letter) - 1]
        reply = REPLIES[number % len(REPLIES)].format(letter=letter, text=options[letter])
        question = f"What does film {number} show?"
        sample = Sample(f"x:{number}", question, options, right, options[right], dataset_name="films")
        rows.append((sample, reply, letter))
    return rows


def reference_line(number: int, row: Row) -> dict[str, Any]:
    sample, reply, letter = row
    output = {"output_text": reply, "pred_letter": letter, "is_correct": letter == sample.answer_label}
    return {
        "dp_index": 0, "dataset_name": "films", "dataset_index": number, "answer_label": sample.answer_label,
        "prompts": f"<|im_start|>user\n{PromptTemplate().prompt_text(sample)}<|im_end|>\n<|im_start|>assistant\n",
        "answer": sample.answer, "parsed_outputs": [output], "num_rollouts": 1,
        "num_correct": int(output["is_correct"]),
    }  # fmt: skip


def lm_eval_line(number: int, row: Row) -> dict[str, Any]:
    sample, reply, letter = row
    doc = {"question": sample.question, "options": [*sample.options.values()], "answer": sample.answer_label}
    return {
        "doc_id": number, "doc": doc, "target": sample.answer_label, "resps": [[reply]], "filtered_resps": [letter],
        "arguments": {"gen_args_0": {"arg_0": "Question ...", "arg_1": {"until": ["</s>"]}}},
        "filter": "custom-extract", "metrics": ["exact_match"], "exact_match": float(letter == sample.answer_label),
    }  # fmt: skip


def lmms_eval_line(number: int, row: Row) -> dict[str, Any]:
    sample, reply, letter = row
    options = "\n".join(f"{label}. {text}" for label, text in sample.options.items())
    return {
        "doc_id": number, "target": sample.answer_label, "filtered_resps": [reply],
        "token_counts": [{"output_tokens": 9}],
        "input": f"{sample.question}\n{options}\nAnswer with the option's letter from the given choices directly.",
        "films_acc": {"id": str(number), "answer": sample.answer_label, "parsed_pred": letter},
    }  # fmt: skip


def mmmu_pro_line(number: int, row: Row) -> dict[str, Any]:
    sample, reply, letter = row
    return {
        "id": f"test_Radiology_{number}", "question": sample.question, "options": str([*sample.options.values()]),
        "answer": sample.answer_label, "subject": "Radiology", "response": reply, "pred_indexs": letter,
        "if_right": letter == sample.answer_label,
    }  # fmt: skip


LINES: dict[OutputForm, tuple[str, Callable[[int, Row], dict[str, Any]]]] = {
    "reference": ("eval_results.jsonl", reference_line),
    "lm_eval": ("samples_films_2026-01-02T03-04-05.678.jsonl", lm_eval_line),
    "lmms_eval": ("20260102_030405_samples_films.jsonl", lmms_eval_line),
    "mmmu_pro": ("films.jsonl", mmmu_pro_line),
}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def made(form: OutputForm) -> list[dict[str, Any]]:
    return [LINES[form][1](number, row) for number, row in enumerate(generated())]


def stored(folder: Path, name: str = "completions.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def benchmark(path: Path, rows: list[Row]) -> JSONLines:
    records = [
        {
            "question": sample.question, "options": dict(sample.options), "answer_label": sample.answer_label,
            "answer": sample.answer, "dataset_name": "films", "dataset_index": number,
        }
        for number, (sample, *_) in enumerate(rows)
    ]  # fmt: skip
    return JSONLines(write(path, records))
