# SPDX-License-Identifier: Apache-2.0
"""Sample logs of lm-evaluation-harness (`--log_samples`): `samples_{task}_{date}.jsonl`, of generative tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlt.evaluation.third_party.options import options_in_prompt, options_of
from medvlt.evaluation.third_party.outputs import LineError, StoredOutput, StoredQuestion, verdict_of

_NAME = re.compile(r"samples_(.+?)(?:_\d{4}-\d\d-\d\dT[\d.:-]+)?")
_VERDICTS = ("exact_match", "acc")
"""Metrics that say right or wrong; else the first that the line names and holds."""
_GOLD = ("answer_idx", "answer_index", "answer", "cop", "label", "gold")
"""Where a task's record may hold the right answer if the line's target does not name it."""


def files(path: Path) -> list[Path]:
    """Returns the file, or the sample logs of a folder, one per task."""
    return sorted(path.rglob("samples_*.jsonl")) if path.is_dir() else [path]


def parse(record: Mapping[str, Any], path: Path) -> StoredQuestion:
    """Returns the question of a line; the file's name tells the task.

    A task with several filters has a line per filter for each question: `variant` is the filter's name.

    Raises:
        LineError: If the line has not the harness's columns, or holds likelihoods of options instead of text.
    """
    doc = record.get("doc")
    if not isinstance(doc, Mapping) or "doc_id" not in record or "resps" not in record:
        raise LineError("not a line of lm-evaluation-harness: expected doc_id, doc and resps")
    prompt = _prompt(record.get("arguments"))
    options = options_of(doc) or options_in_prompt(prompt)
    texts = _texts(record["resps"])
    scores = (record[name] for name in (*_VERDICTS, *record.get("metrics", ())) if name in record)
    stated = verdict_of(next(scores, None)) if len(texts) == 1 else None
    filtered = _flat(record.get("filtered_resps"))
    answer = filtered[0] if len(texts) == len(filtered) == 1 and stated is not None else None
    return StoredQuestion(
        benchmark=task_name(path),
        key=record["doc_id"],
        question=str(doc.get("question") or doc.get("Question") or doc.get("sent1") or prompt),
        options=options,
        golds=(record.get("target"), *(doc.get(name) for name in _GOLD)),
        outputs=tuple(StoredOutput(text, stated, answer) for text in texts),
        variant=str(record.get("filter", "")),
    )


def task_name(path: Path) -> str:
    """Returns the task that a file's name tells."""
    found = _NAME.fullmatch(path.stem)
    return found[1] if found else path.stem


def _texts(responses: object) -> list[str]:
    texts = _flat(responses)
    if not isinstance(responses, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise LineError("no generated text, only likelihoods of the options; a generative task is needed")
    if len(responses) > 1:  # a request per option: [[["-1.5", "False"]], ...]
        raise LineError("several requests for one question, as for likelihoods of options; a generative task is needed")
    return texts


def _flat(responses: object) -> list[Any]:
    """The repeats of the one request: [["a", "b"]] or ["a"]."""
    if not isinstance(responses, list):
        return [responses]
    return responses[0] if len(responses) == 1 and isinstance(responses[0], list) else responses


def _prompt(arguments: object) -> str:
    """The first text among the request's arguments: the prompt."""
    if isinstance(arguments, str):
        return arguments
    inner = arguments.values() if isinstance(arguments, Mapping) else arguments if isinstance(arguments, list) else ()
    return next(filter(None, map(_prompt, inner)), "")
