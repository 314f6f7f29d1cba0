# SPDX-License-Identifier: Apache-2.0
"""Result files of the MedVLThinker reference: `eval_results.jsonl`, its shards, and regraded files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlt.evaluation.third_party.options import options_in_prompt, options_of
from medvlt.evaluation.third_party.outputs import LineError, StoredQuestion, stored_output

_QUESTION, _OPTIONS = "Question: ", "\n\nOptions:"
"""What stands around the question in the reference's prompt."""


def files(path: Path) -> list[Path]:
    """Returns the files to read: the file; of a folder its merged file, or else its shards, `shards/dp_*.jsonl`."""
    if not path.is_dir():
        return [path]
    merged = path / "eval_results.jsonl"
    if merged.is_file():
        return [merged]
    folder = path / "shards" if (path / "shards").is_dir() else path
    return sorted(folder.glob("dp_*.jsonl"), key=lambda file: (len(file.name), file.name))


def parse(record: Mapping[str, Any], path: Path) -> StoredQuestion:
    """Returns the question of a line.

    The lines hold no options of their own but for regraded files; else they are read out of the prompt.

    Raises:
        LineError: If the line has not the reference's columns.
    """
    try:
        name, index = str(record["dataset_name"]), int(record["dataset_index"])
        rollouts = record["parsed_outputs"]
        prompt = _text(record.get("prompts"))
        options = options_of(record) or options_in_prompt(prompt)
        outputs = tuple(
            stored_output(rollout["output_text"], rollout["is_correct"], rollout.get("pred_letter"))
            for rollout in rollouts
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LineError(f"not a row of the reference, {type(error).__name__}: {error}") from error
    return StoredQuestion(name, index, _question(prompt), options, (record.get("answer_label"),), outputs)


def _question(prompt: str) -> str:
    """The stem; "" of a prompt without the words that stand around it, whose text may be nulled."""
    before, found, _ = prompt.rpartition(_OPTIONS)
    _, asked, stem = (before if found else prompt).rpartition(_QUESTION)
    return stem.strip() if found or asked else ""


def _text(prompts: object) -> str:
    """The text of a rendered prompt, or of a list of chat messages whose pictures were nulled."""
    if isinstance(prompts, str):
        return prompts
    if isinstance(prompts, Mapping):
        kind = prompts.get("text") if "text" in prompts else prompts.get("content")
        return _text(kind)
    if isinstance(prompts, list):
        return "\n".join(filter(None, map(_text, prompts)))
    return ""
