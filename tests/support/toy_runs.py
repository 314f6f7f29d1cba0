# SPDX-License-Identifier: Apache-2.0
"""Made-up evaluations on disk: the questions of a benchmark are the same in every run, the answers follow a seed."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from medvlt.data.samples import uids_fingerprint
from medvlt.evaluation.runs import PICTURES_FOLDER, write_run

LETTERS = "ABCD"
FINDINGS = ("pneumothorax", "pleural effusion", "cardiomegaly", "no finding")


def toy_run(
    folder: Path,
    label: str,
    benchmarks: Mapping[str, int],
    *,
    n: int = 1,
    accuracy: float | Mapping[str, float] = 0.5,
    seed: int = 0,
    correct: Mapping[str, npt.ArrayLike] | None = None,
    share: int = 1,
    pictures: bool = True,
    failed: Collection[tuple[str, int, int]] = (),
    left_out: Collection[tuple[str, int]] = (),
    rotate: int = 0,
    control: Mapping[str, Any] | None = None,
    thumbnails: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a run and returns its folder.

    Args:
        folder: Of the run.
        label: Of the run.
        benchmarks: Name to number of questions; question i of a benchmark is the same in every run.
        n: Completions of each question.
        accuracy: Probability that a completion is right, of all or of each benchmark.
        seed: Of the answers.
        correct: Which completions are right, (Q, n) or (Q,) for n = 1, instead of drawn ones, of some benchmarks.
        share: How many questions in a row ask about one picture.
        pictures: Whether the questions have pictures at all.
        failed: (benchmark, question, completion) that never came.
        left_out: (benchmark, question) that were not asked.
        rotate: By how many places the option texts are moved on, as `RotatedOptions` does; the right letter follows.
        control: What run.json says of a control.
        thumbnails: Whether each picture has a thumbnail.
        about: Further or other fields of run.json.
    """
    records: list[dict[str, Any]] = []
    asked: dict[str, list[str]] = {}
    for name, questions in benchmarks.items():
        chance = accuracy[name] if isinstance(accuracy, Mapping) else accuracy
        if correct is not None and name in correct:
            table = np.asarray(correct[name], dtype=bool).reshape(questions, n)
        else:
            key = int.from_bytes(hashlib.sha256(f"{seed}{name}".encode("utf-8", "surrogatepass")).digest()[:4], "big")
            table = np.random.default_rng(key).random((questions, n)) < chance
        kept = [number for number in range(questions) if (name, number) not in left_out]
        asked[name] = [f"{name}/{number}" for number in kept]
        for number in kept:
            for sample in range(n):
                record = toy_record(name, number, sample, right=bool(table[number, sample]), rotate=rotate)
                record["picture_ids"] = [picture_id(name, number, share)] if pictures else []
                record["pictures"] = [f"{name}-{number // share}.png"] if pictures else []
                if (name, number, sample) in failed:
                    record |= failure()
                records.append(record)
    said = {
        "label": label,
        "model": "toy/model-3b",
        "checkpoint": "",
        "stage": "validate",
        "identity": {"engine": {"name": "scripted"}, "seed": seed},
        "control": control,
        "sampling": {"n": n, "temperature": 0.0 if n == 1 else 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 64},
        "seed": seed,
        "grader": {"policy": "robust", "version": "1"},
        "benchmarks": {
            name: {"questions": len(uids), "uids": uids_fingerprint(uids), "source": "toy", "expected": None}
            for name, uids in asked.items()
        },
        "limited_to": None,
        "prompt": "medvlthinker",
        "versions": {"medvlt": "0"},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
    }
    write_run(folder, {**said, **(about or {})}, records)
    if thumbnails and pictures:
        write_thumbnails(folder, {identity for record in records for identity in record["picture_ids"]})
    return folder


def toy_record(benchmark: str, number: int, sample: int, *, right: bool, rotate: int = 0) -> dict[str, Any]:
    """One line of a run. The model wrongly prefers the finding behind the right one, wherever it stands."""
    texts = [FINDINGS[(place - rotate) % len(FINDINGS)] for place in range(len(FINDINGS))]
    options = dict(zip(LETTERS, texts, strict=True))
    place = {text: letter for letter, text in options.items()}
    answer = place[FINDINGS[number % len(FINDINGS)]]
    label = answer if right else place[FINDINGS[(number + 1) % len(FINDINGS)]]
    thought = f"Picture {number} shows {options[label]}, " + "really " * (number % 7 + sample)
    return {
        "benchmark": benchmark,
        "uid": f"{benchmark}/{number}",
        "dataset_name": benchmark,
        "dataset_index": number,
        "sample": sample,
        "question": f"What is seen in picture {number} of {benchmark}?",
        "options": options,
        "pictures": [],
        "picture_ids": [],
        "answer_label": answer,
        "prompt_tokens": 40,
        "completion": f"<think>{thought.strip()}.</think> <answer>{label}</answer>",
        "tokens": 10 + number % 7 + sample,
        "finish_reason": "stop",
        "error": "",
        "version": 0,
        "label": label,
        "correct": right,
        "format_ok": True,
        "reason": "label",
        "grader_version": "1",
    }


def failure(message: str = "HTTP 500: no answer") -> dict[str, Any]:
    """What is different in the line of a completion that never came."""
    return {
        "completion": "", "tokens": 0, "finish_reason": "error", "error": message,
        "label": None, "correct": False, "format_ok": False, "reason": "empty",
    }  # fmt: skip


def picture_id(benchmark: str, number: int, share: int = 1) -> str:
    return hashlib.sha256(f"{benchmark}/{number // share}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_thumbnails(folder: Path, identities: Collection[str]) -> None:
    (folder / PICTURES_FOLDER).mkdir(exist_ok=True)
    for identity in identities:
        (folder / PICTURES_FOLDER / f"{identity}.jpg").write_bytes(thumbnail(identity))


def thumbnail(identity: str) -> bytes:
    """A picture whose colour tells its id."""
    red, green, blue = (int(identity[start : start + 2], 16) for start in (0, 2, 4))
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (red, green, blue)).save(buffer, format="JPEG")
    return buffer.getvalue()


def lines(folder: Path) -> Iterator[bytes]:
    """The stored lines of a run, to be broken and written back."""
    with (folder / "completions.jsonl").open("rb") as file:
        yield from file
