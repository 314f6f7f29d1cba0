# SPDX-License-Identifier: Apache-2.0
"""The findings of `medvlt data quality` in the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from medvlt.console import wide_console
from medvlt.curation.biases import BiasCounts, Rate
from medvlt.curation.card import NOTICE, cell, markdown_table
from medvlt.curation.findings import MARKS, Findings
from medvlt.data.files import replacing
from medvlt.data.samples import SampleSet

MEANING = {
    "blind": "right without the picture significantly more often than guessing",
    "duplicate": "an earlier question has the same wording, pictures, options and answer",
    "contradictory": "what is right in one is wrong in another question with the same wording and pictures",
    "caption_leak": "the question gives its answer away, or quotes the figure's caption, or the right option does",
    "length_bias": "the right option is by far the longest or the shortest",
    "low_agreement": "strong models are right significantly less often than guessing: a wrong key, or a hard question",
}
"""What each mark means, in a sentence."""

READING = (
    "Rates with their 95% Wilson interval, against chance. Questions in which two options share the greatest (or the "
    "smallest) length are left out of the rate. On few questions the commonest letter lies above chance by itself; the "
    "chi-square test takes that into account."
)
"""How to read the table of biases."""

EXAMPLES = 5
"""Questions of each mark that the report shows."""


def print_findings(findings: Findings) -> None:
    """Prints marks and biases by data set."""
    console = wide_console()
    header, rows = mark_rows(findings)
    console.print(_table(f"Marked questions, of those examined. {NOTICE}", header, rows))
    header, rows = bias_rows(findings.biases)
    console.print(_table("What the options give away: share, 95% interval, chance", header, rows))


def mark_rows(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """Returns the table of marks: header, and a row per data set and one for all."""
    sources = list(dict.fromkeys(findings.names.values()))
    counts = {name: findings.by_source(name) for name in MARKS}
    rows = []
    for source in sources:
        size = sum(name == source for name in findings.names.values())
        rows.append([source, str(size), *(_of(*counts[name][source]) for name in MARKS)])
    whole = [_of(len(findings.marked(name)), len(findings.marks[name])) for name in MARKS]
    return ["data set", "questions", *MARKS], [*rows, ["all", str(len(findings.names)), *whole]]


def bias_rows(biases: Mapping[str, BiasCounts]) -> tuple[list[str], list[list[str]]]:
    """Returns the table of biases: header, and a row per data set."""
    rows = []
    for source, counts in biases.items():
        letters = "; ".join(
            f"{' '.join(f'{letter} {number}' for letter, number in balance.counts.items())}: p = {balance.p_value:.2g}"
            for balance in counts.letter_balances()
        )
        rates = [counts.length_rate("longest"), counts.length_rate("shortest"), counts.letter_majority()]
        rows.append([source, *map(_rate, rates), letters])
    header = ["data set", "longest option is right", "shortest is right", "commonest letter is right"]
    return [*header, "right answers by letter, chi-square test of an even spread"], rows


def report_paths(report: Path) -> tuple[Path, Path]:
    """Returns the Markdown and the JSON file of a report; of the name that was asked for only `.md` or `.json` goes."""
    stem = report.with_suffix("") if report.suffix in (".md", ".json") else report
    return stem.with_name(f"{stem.name}.md"), stem.with_name(f"{stem.name}.json")


def write_report(
    findings: Findings, samples: SampleSet, about: Mapping[str, Any], markdown: Path, numbers: Path
) -> None:
    """Writes the Markdown and the JSON report, each whole or not at all.

    Args:
        findings: What was found.
        samples: The questions, for examples.
        about: Rules and probes.
        markdown: File for people.
        numbers: File for programs.
    """
    text = to_markdown(findings, samples, about)  # first, so that a failure leaves neither file
    record = {"source": samples.report.source, **about, **findings.to_json(), "notice": NOTICE}
    with replacing(numbers, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    with replacing(markdown, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def to_markdown(findings: Findings, samples: SampleSet, about: Mapping[str, Any]) -> str:
    """Returns the report as Markdown."""
    lines = [f"# Quality of {cell(samples.report.source)}", "", NOTICE, "", "## Marks", ""]
    lines += ["Marked questions, of those examined. A mark is a reason to look; none proves a question wrong.", ""]
    lines.append(markdown_table(*mark_rows(findings)))
    lines += ["", *(f"- `{name}`: {MEANING[name]}" for name in MARKS), ""]
    if findings.marks["blind"]:
        lines += [
            f"`blind`: a model that made one fixed guess for each question would earn about "
            f"{findings.lucky_guesses:.0f} marks by luck, the sum of 1 / options; {len(findings.marked('blind'))} were "
            "given.",
            "",
        ]
    if findings.rules:
        lines += ["By rule: " + "; ".join(f"{rule}: {n}" for rule, n in findings.rules.most_common()) + ".", ""]
    lines += ["Settings: `" + json.dumps(about).replace("`", "'") + "`", "", "## What the options give away", ""]
    lines.append(markdown_table(*bias_rows(findings.biases)))
    lines += ["", READING, ""]
    positions = {uid: index for index, uid in enumerate(samples.uids)}
    for name in MARKS:
        marked = findings.marked(name)
        if marked:
            lines += [f"## `{name}`: {min(EXAMPLES, len(marked))} of {len(marked)}", ""]
            examples = _example_rows(samples, [positions[uid] for uid in marked[:EXAMPLES]])
            lines += [markdown_table(*examples), ""]
    return "\n".join(lines)


def _example_rows(samples: SampleSet, indices: Iterable[int]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for index in indices:
        sample = samples.light(index)
        options = "; ".join(f"{letter} {text}" for letter, text in sample.options.items())
        rows.append([sample.uid, f"{sample.question:.300}", f"{options:.300}", str(sample.answer_label)])
    return ["uid", "question", "options", "right"], rows


def _of(marked: int, examined: int) -> str:
    return f"{marked} of {examined} ({marked / examined:.1%})" if examined else "not examined"


def _rate(rate: Rate) -> str:
    if not rate.of:
        return "no such question"
    low, high = rate.interval
    return f"{rate.share:.1%} ({low:.1%} to {high:.1%}), chance {rate.chance:.1%}"


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich.text import Text

    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: brackets are not markup
    return table
