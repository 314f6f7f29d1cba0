# SPDX-License-Identifier: Apache-2.0
"""Scored output files of MMMU-Pro's own script (MMMU-Benchmark/MMMU, `mmmu-pro/output/*.jsonl`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlt.evaluation.third_party.options import options_of
from medvlt.evaluation.third_party.outputs import LineError, StoredQuestion, stored_output

BENCHMARK = "MMMU-Pro"


def files(path: Path) -> list[Path]:
    """Returns the file; the files of a folder are of different models and cannot be one run."""
    return [path] if not path.is_dir() else []


def parse(record: Mapping[str, Any], path: Path) -> StoredQuestion:
    """Returns the question of a line.

    Its script guesses a letter at random where it can read none (`parse_multi_choice_response`), so its verdict on
    such a reply means nothing.

    Raises:
        LineError: If the line has not the script's columns.
    """
    try:
        key, question, reply = str(record["id"]), str(record["question"]), record["response"]
        options = options_of(record)
        answer = record["answer"]
    except KeyError as error:
        raise LineError(f"not a row of MMMU-Pro's outputs, without {error}") from error
    output = stored_output(reply, record.get("if_right"), record.get("pred_indexs"))
    subject = str(record.get("subject", ""))
    return StoredQuestion(BENCHMARK, key, question, options, (answer,), (output,), dataset_name=subject)
