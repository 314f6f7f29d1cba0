# SPDX-License-Identifier: Apache-2.0
"""Sample logs of lmms-eval (`--log_samples`): `{date}_samples_{task}.jsonl`."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlt.evaluation.third_party.options import label_of, options_in_prompt, options_of
from medvlt.evaluation.third_party.outputs import LineError, StoredOutput, StoredQuestion, verdict_of

_NAME = re.compile(r"(?:.*_)?samples_(.+)")
_LETTER = ("parsed_pred", "pred_answer", "pred")
_GOLD = ("answer", "gt", "target")


def files(path: Path) -> list[Path]:
    """Returns the file, or the sample logs of a folder, one per task."""
    return sorted(path.rglob("*samples_*.jsonl")) if path.is_dir() else [path]


def parse(record: Mapping[str, Any], path: Path) -> StoredQuestion:
    """Returns the question of a line; the file's name tells the task.

    Newer logs have no `doc`: the options are read out of the prompt, `input`.

    Raises:
        LineError: If the line has not the harness's columns.
    """
    if "doc_id" not in record or "target" not in record or not ("resps" in record or "filtered_resps" in record):
        raise LineError("not a line of lmms-eval: expected doc_id, target, and resps or filtered_resps")
    doc = record["doc"] if isinstance(record.get("doc"), Mapping) else {}
    prompt = str(record.get("input", ""))
    options = options_of(doc) or options_in_prompt(prompt)
    texts = _texts(record.get("resps", record.get("filtered_resps")))
    correct, answer = _verdict(record, options) if len(texts) == 1 else (None, None)
    lengths = [int(count.get("output_tokens") or 0) for count in record.get("token_counts") or [] if count]
    lengths += [0] * (len(texts) - len(lengths))
    found = _NAME.fullmatch(path.stem)
    return StoredQuestion(
        benchmark=found[1] if found else path.stem,
        key=record["doc_id"],
        question=str(doc.get("question") or prompt),
        options=options,
        golds=(record["target"],),
        outputs=tuple(
            StoredOutput(text, correct, answer, tokens=tokens) for text, tokens in zip(texts, lengths, strict=False)
        ),
    )


def _verdict(record: Mapping[str, Any], options: Mapping[str, str]) -> tuple[bool | None, object]:
    """What the harness said, (right or None, the answer it read): the first metric in one of the known shapes."""
    known = options or dict.fromkeys(string.ascii_uppercase, "")
    for name, value in record.items():
        if isinstance(value, Mapping) and name != "doc":
            letter = next((value[key] for key in _LETTER if key in value), None)
            letter = letter[0] if isinstance(letter, list) and len(letter) == 1 else letter
            gold = next((value[key] for key in _GOLD if key in value), None)
            if letter is not None and gold is not None:
                read, right = label_of(letter, known), label_of(gold, known)
                if read is None and right is None:
                    return str(letter).strip().casefold() == str(gold).strip().casefold(), letter
                return (read == right if options or (read and right) else None), letter
            if (correct := verdict_of(value.get("score"))) is not None:
                return correct, letter
    for name in ("exact_match", "acc", "accuracy"):
        if (correct := verdict_of(record.get(name))) is not None:
            return correct, None
    return None, None


def _texts(responses: object) -> list[str]:
    if isinstance(responses, list) and len(responses) == 1 and isinstance(responses[0], list):
        responses = responses[0]
    listed = responses if isinstance(responses, list) else [responses]
    texts = [text for text in listed if isinstance(text, str)]
    if not texts or len(texts) != len(listed):
        raise LineError(f"expected the text of the reply, got {responses!r:.80}")
    return texts
