# SPDX-License-Identifier: Apache-2.0
"""What `medvlt data decontaminate` tells: a Markdown report, all pairs as JSON Lines, a few lines for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medvlt.curation.card import NOTICE, cell
from medvlt.curation.contamination import Contamination, Kind, Pair
from medvlt.data.files import replacing

_SHOWN = 10  # pairs of each set and kind in the report
_LENGTH = 240  # letters of each text in it


def write_report(
    found: Contamination, path: Path, drop: Iterable[Kind], rules: Mapping[str, Any], *, source: str
) -> None:
    """Writes the report and, beside it with the suffix `.jsonl`, one line for every pair; replaces what is there.

    Args:
        found: What was found.
        path: The Markdown file.
        drop: Kinds that count as contamination.
        rules: Thresholds, for the record.
        source: The training set in words.

    Raises:
        DataError: If a file cannot be written.
    """
    with replacing(path.with_suffix(".jsonl"), overwrite=True) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in json_lines(found)), encoding="utf-8")
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(markdown(found, drop, rules, source=source), encoding="utf-8")


def json_lines(found: Contamination) -> Iterator[str]:
    """Yields one JSON object for every pair, with the fields of `Pair`."""
    for pair in found.pairs:
        yield json.dumps(asdict(pair), ensure_ascii=False)


def summary(found: Contamination, drop: Iterable[Kind]) -> str:
    """Returns the counts in a few lines for a terminal."""
    matched = found.matched(drop)
    share = len(matched) / found.train_questions if found.train_questions else 0.0
    lines = [
        f"{name}: {kind}: {ours:,} training questions match {theirs:,} of its {found.evaluation_questions[name]:,}"
        for name, kind, ours, theirs in found.rows()
    ]
    lines.append(f"{len(matched):,} of {found.train_questions:,} training questions ({share:.1%}) are contaminated")
    for side, looked in (("training", found.train_pictures), ("evaluation", found.evaluation_pictures)):
        if looked is not None and looked.unreadable:
            lines.append(f"{len(looked.unreadable):,} {side} pictures could not be read and were not compared")
    return "\n".join([*lines, NOTICE])


def markdown(found: Contamination, drop: Iterable[Kind], rules: Mapping[str, Any], *, source: str) -> str:
    """Returns the report: counts, thresholds, what was not compared, and the first pairs of each set and kind."""
    kinds = list(drop)
    matched = found.matched(kinds)
    lines = [
        "# Contamination",
        "",
        f"{len(matched):,} of {found.train_questions:,} questions of {source} match an evaluation question in one of "
        f"these ways: {', '.join(kinds)}.",
        "",
        "| evaluation set | match | training questions | evaluation questions | of |",
        "|---|---|---|---|---|",
        *(
            f"| {cell(name)} | {kind} | {ours:,} | {theirs:,} | {found.evaluation_questions[name]:,} |"
            for name, kind, ours, theirs in found.rows()
        ),
        "",
    ]
    if clean := [name for name in found.evaluation_questions if name not in {row[0] for row in found.rows()}]:
        lines += [f"Nothing was found of: {', '.join(map(cell, clean))}.", ""]
    lines += ["## What was compared", ""]
    lines += [f"- {what}: {json.dumps(values)}" for what, values in rules.items() if values is not None]
    if found.train_pictures is None or found.evaluation_pictures is None:
        lines.append("- Pictures were not compared.")
    else:
        for side, looked in (("training", found.train_pictures), ("evaluation", found.evaluation_pictures)):
            lines.append(
                f"- Pictures of the {side} side: {looked.read:,} read, {looked.different:,} different, "
                f"{len(looked.unreadable):,} unreadable and so not compared."
            )
            lines += [f"  - {cell(uid)}: {cell(why)}" for uid, why in looked.unreadable[:_SHOWN]]
    lines += [
        f"- Questions without a word, which cannot be found by text: {found.wordless:,}.",
        "- `same_wording`: alike in words, but about a picture; that says little unless the picture matches too.",
        "- `same_but_numbers`: the same words with other numbers: a template filled in anew, or a question changed; "
        "the right answers tell more.",
        "",
        "## Pairs",
        "",
        f"At most {_SHOWN} of each set and kind; the `.jsonl` file beside this report has all {len(found.pairs):,}.",
        "",
    ]
    shown: dict[tuple[str, Kind], list[Pair]] = {}
    for pair in found.pairs:
        shown.setdefault((pair.evaluation_set, pair.kind), []).append(pair)
    for name, kind, *_ in found.rows():
        lines += [f"### {cell(name)}, {kind}", ""]
        for pair in shown[name, kind][:_SHOWN]:
            scores = ", ".join(f"{score} {value:.2f}" for score, value in pair.scores.items())
            more = f"; {pair.others:,} more in the set" if pair.others else ""
            lines += [
                f"- {cell(pair.train_uid)} and {cell(pair.evaluation_uid)} ({scores}{more})",
                f"  - training: {cell(pair.train_text, _LENGTH)} Right: {cell(pair.train_answer, _LENGTH)}",
                f"  - evaluation: {cell(pair.evaluation_text, _LENGTH)} Right: {cell(pair.evaluation_answer, _LENGTH)}",
            ]
        lines.append("")
    return "\n".join([*lines, NOTICE, ""])
