# SPDX-License-Identifier: Apache-2.0
"""What is written down of a graded completion, and how pictures are named in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvlt.types import Completion, ImageSource, RolloutGroup, Verdict

COLUMNS = (
    "benchmark",
    "uid",
    "sample",
    "question",
    "options",
    "picture_ids",
    "answer_label",
    "completion",
    "tokens",
    "finish_reason",
    "error",
    "label",
    "correct",
    "format_ok",
    "reason",
    "grader_version",
)
"""What every line has; there may be more."""

_TYPES: Mapping[str, type] = {
    "benchmark": str,
    "uid": str,
    "sample": int,
    "question": str,
    "options": dict,
    "picture_ids": list,
    "completion": str,
    "tokens": int,
    "finish_reason": str,
    "correct": bool,
    "format_ok": bool,
    "reason": str,
}


def completion_record(
    group: RolloutGroup,
    number: int,
    completion: Completion,
    verdict: Verdict,
    picture_ids: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Returns what is written of a completion, of an evaluation or of training.

    Args:
        group: The group it belongs to.
        number: Its number in the group, from 0.
        completion: The completion.
        verdict: What the grader says of it.
        picture_ids: `picture_id` of each picture, if they are known already; the same for a whole group.
    """
    sample = group.sample
    ids = [picture_id(picture) for picture in sample.images] if picture_ids is None else list(picture_ids)
    return {
        "uid": sample.uid,
        "sample": number,
        "dataset_name": sample.dataset_name,
        "dataset_index": sample.dataset_index,
        "question": sample.question,
        "options": dict(sample.options),
        "pictures": [picture_name(picture, known) for picture, known in zip(sample.images, ids, strict=True)],
        "picture_ids": ids,
        "answer_label": sample.answer_label,
        "prompt_tokens": len(group.prompt_token_ids),
        "completion": completion.text,
        "tokens": completion.length,
        "finish_reason": completion.finish_reason,
        "error": completion.error,
        "version": completion.version,
        "label": verdict.label,
        "correct": verdict.correct,
        "format_ok": verdict.format_ok,
        "reason": verdict.reason,
        "grader_version": verdict.grader_version,
    }


def picture_id(picture: ImageSource) -> str:
    """Returns 16 hex digits of the SHA-256 of a picture's contents, wherever it lies.

    Of a file or of bytes they are those of the encoded picture, of a decoded picture those of mode, size and pixels. A
    file that cannot be read is told from others by its name; the engine says what is wrong with it.
    """
    if isinstance(picture, Path):
        try:
            content = picture.read_bytes()
        except OSError:
            content = f"unreadable\x1f{picture.name}".encode("utf-8", "surrogateescape")
    elif isinstance(picture, bytes):
        content = picture
    else:
        content = f"{picture.mode}\x1f{picture.size}\x1f".encode() + picture.tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def picture_name(picture: ImageSource, known_id: str | None = None) -> str:
    """Returns the path of a picture, or where it has none "sha256:" and its id.

    Args:
        picture: The picture.
        known_id: Its `picture_id`, if it was taken already.
    """
    return str(picture) if isinstance(picture, Path) else f"sha256:{known_id or picture_id(picture)}"


def encode_record(record: Mapping[str, Any]) -> bytes:
    """Returns a record as a line of `completions.jsonl`; endpoints may send halves of surrogate pairs, which stay."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def record_problem(record: Any) -> str:
    """Returns why a line is no stored completion; "" if it is one."""
    if not isinstance(record, dict):
        return "no JSON object"
    missing = [name for name in COLUMNS if name not in record]
    if missing:
        return f"without {', '.join(missing)}"
    wrong = [f"{name} is {record[name]!r:.40}" for name, kind in _TYPES.items() if not isinstance(record[name], kind)]
    return ", ".join(wrong)
