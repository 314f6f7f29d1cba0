# SPDX-License-Identifier: Apache-2.0
"""Groups of training as the policy saw them: completions with reward and advantage, of three iterations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medvlt.errors import DataError
from medvlt.evaluation.alignment import WARNING
from medvlt.evaluation.page.book import COMPLETIONS, FIELD_LIMIT, Card, Group, answer, options, text_limit
from medvlt.evaluation.page.svg import glyph
from medvlt.evaluation.page.text import shortened
from medvlt.evaluation.runs import shown_questions

FOLDER = "completions-train"
GROUPS = 4
"""Groups of an iteration that are shown."""


@dataclass(frozen=True)
class Iteration:
    """Some groups of one iteration of a training run."""

    run: str
    number: str
    cards: tuple[Card, ...]


def iterations(folders: Sequence[Path], notes: list[str]) -> list[Iteration]:
    """Returns groups of the first, the middle and the last iteration of each training run that kept its completions.

    Args:
        folders: Of training runs; `callbacks.CompletionLogger` writes `completions-train/` in its folder, which is
            looked for at any depth.
        notes: Where to add what was left out.

    Raises:
        DataError: If a file cannot be read, or no line of it.
    """
    shown = []
    for folder in folders:
        for kept in sorted(path for path in folder.rglob(FOLDER) if path.is_dir()):
            files = sorted(kept.glob("*.jsonl"))
            places = sorted({0, len(files) // 2, len(files) - 1}) if files else []
            shown += [_iteration(folder.name, files[place], notes) for place in places]
            if len(places) < len(files):
                notes.append(f"Of {folder.name}, {len(places)} of {len(files):,} iterations of training are shown.")
    return shown


def _iteration(run: str, path: Path, notes: list[str]) -> Iteration:
    groups: dict[str, list[dict[str, Any]]] = {}
    wrong: list[str] = []
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                    _card([record], FIELD_LIMIT)
                    groups.setdefault(str(record["uid"]), []).append(record)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    wrong.append(f"{type(error).__name__}: {error}")
    except OSError as error:
        wrong.append(str(error))
    if wrong and not groups:
        raise DataError(
            f"cannot read {path} as the completions of an iteration ({wrong[0]}); expected what "
            "callbacks.CompletionLogger writes; remove the file, or leave its folder out of training"
        )
    if wrong:
        notes.append(
            f"{WARNING}{len(wrong):,} lines of {path.name} of {run} cannot be read and are skipped ({wrong[0]})."
        )
    chosen = shown_questions(list(groups), GROUPS)
    limit = text_limit(len(chosen) * COMPLETIONS)
    return Iteration(run, path.stem, tuple(_card(groups[uid], limit) for uid in chosen))


def _card(lines: Sequence[Mapping[str, Any]], limit: int) -> Card:
    first = lines[0]
    right = sum(bool(line["correct"]) for line in lines)
    answers = tuple(
        replace(answer(line, limit), reward=_number(line.get("reward")), advantage=_number(line.get("advantage")))
        for line in lines[:COMPLETIONS]
    )
    group = Group(0, glyph(0), "group", "", right, len(lines), (), answers)
    return Card(
        benchmark=0,
        heading=str(first.get("dataset_name") or "training"),
        uid=str(first["uid"]),
        question=shortened(str(first["question"]), FIELD_LIMIT),
        options=options(first),
        pictures=(),
        groups=(group,),
        changed=False,
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
