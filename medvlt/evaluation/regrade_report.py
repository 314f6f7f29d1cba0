# SPDX-License-Identifier: Apache-2.0
"""What grading again changed, in the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from medvlt.console import wide_console
from medvlt.curation.card import NOTICE, cell, markdown_table
from medvlt.evaluation.runs import EvaluationRun
from medvlt.evaluation.statistics.intervals import picture_clusters
from medvlt.evaluation.statistics.paired import paired_bootstrap

if TYPE_CHECKING:
    from medvlt.evaluation.regrade import Changes

KEPT = {
    "failed": "never came and stay failed",
    "open_question": "belong to questions without options and keep their verdict",
}
"""Why a completion was not graded again."""

READING = (
    "The difference is after minus before on the same completions; its 95% interval is a paired bootstrap over "
    "questions, or over pictures where questions share them. It says how much of the change hangs on which questions "
    "were asked, not whether one of the graders is right: for that, read the changed items."
)


def print_changes(old: EvaluationRun, new: EvaluationRun, changes: Changes) -> None:
    """Prints the confusion of the two gradings and the change of each benchmark."""
    console = wide_console()
    console.print(f"{_policy(old.about)} against {_policy(new.about)}. {NOTICE}", markup=False, highlight=False)
    for title, (header, rows) in (
        ("Completions", confusion_rows(changes)),
        ("Reasons that changed", reason_rows(changes)),
        ("Accuracy", accuracy_rows(old, new)),
    ):
        if rows:
            console.print(printed_table(title, header, rows))
    for line in _kept_lines(changes):
        console.print(line, markup=False, highlight=False)


def to_markdown(old: EvaluationRun, new: EvaluationRun, changes: Changes) -> str:
    """Returns the report of a regrading.

    Args:
        old: The evaluation as it was.
        new: The same completions with their new verdicts.
        changes: What changed from one to the other.
    """
    total = sum(changes.verdicts.values())
    lines = [
        f"# {cell(old.label)}, graded again",
        "",
        NOTICE,
        "",
        f"Before: {cell(_policy(old.about))}. After: {cell(_policy(new.about))}. {total:,} completions; "
        f"{changes.flipped:,} changed from right to wrong or back, {changes.changed:,} in verdict, letter, reason or "
        "format; all of these are in `changes.jsonl`.",
        "",
        *(f"{line}\n" for line in _kept_lines(changes)),
        "## Right and wrong",
        "",
        markdown_table(*confusion_rows(changes)),
        "",
        "## Accuracy in percent",
        "",
        markdown_table(*accuracy_rows(old, new)),
        "",
        READING,
        "",
    ]
    header, rows = reason_rows(changes)
    if rows:
        lines += ["## Reasons that changed", "", markdown_table(header, rows), ""]
    if changes.examples:
        lines += [f"## The first {len(changes.examples)} of {changes.flipped:,} changed items", ""]
        lines += [markdown_table(*_example_rows(changes.examples)), ""]
    return "\n".join(lines)


def confusion_rows(changes: Changes) -> tuple[list[str], list[list[object]]]:
    """Returns the confusion table: header, and rows for what was right and what was wrong before."""
    return confusion(changes.verdicts, "before", "after")


def confusion(
    verdicts: Mapping[tuple[bool, bool], int], first: str, second: str
) -> tuple[list[str], list[list[object]]]:
    """Returns a confusion table of two verdicts: (right by the first, right by the second) to completions."""
    rows: list[list[object]] = [
        [f"{name} {first}", verdicts[right, True], verdicts[right, False]]
        for name, right in (("right", True), ("wrong", False))
    ]
    return ["", f"right {second}", f"wrong {second}"], rows


def reason_rows(changes: Changes) -> tuple[list[str], list[list[object]]]:
    """Returns the changes of the reason, commonest first."""
    changed = [(pair, count) for pair, count in changes.reasons.items() if pair[0] != pair[1]]
    changed.sort(key=lambda item: (-item[1], item[0]))
    return ["reason before", "reason after", "completions"], [[*pair, count] for pair, count in changed]


def accuracy_rows(old: EvaluationRun, new: EvaluationRun) -> tuple[list[str], list[list[object]]]:
    """Returns accuracy before and after, with the paired difference in points, benchmark by benchmark."""
    rows: list[list[object]] = []
    for name, before in old.benchmarks.items():
        after = new.benchmarks[name]
        clusters = picture_clusters(before.pictures)
        difference = paired_bootstrap(after.scores, before.scores, clusters=clusters, seed=0)
        value, low, high = (100 * bound for bound in difference)
        accuracies = [f"{100 * float(answers.scores.mean()):.2f}" for answers in (before, after)]
        rows.append([name, before.questions, *accuracies, f"{value:+.2f} ({low:+.2f} to {high:+.2f})"])
    return ["benchmark", "questions", "before", "after", "difference (95%)"], rows


def _example_rows(examples: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for change in examples:
        options = "; ".join(f"{letter} {text}" for letter, text in change["options"].items())
        end = change["completion"][-200:]
        verdicts = [verdict_words(change[side]) for side in ("before", "after")]
        asked = f"{change['question']:.200} [{options:.200}]"
        rows.append([f"{change['uid']} #{change['sample']}", asked, str(change["answer_label"]), end, *verdicts])
    return ["item", "question and options", "answer", "end of the completion", "before", "after"], rows


def verdict_words(verdict: Mapping[str, Any]) -> str:
    """Returns the verdict of a stored line in words."""
    letter = "no letter" if verdict["label"] is None else verdict["label"]
    return f"{'right' if verdict['correct'] else 'wrong'}, {letter}, {verdict['reason']}"


def _policy(about: Mapping[str, Any]) -> str:
    grader = about.get("grader") or {}
    return f"{grader.get('policy', 'unknown policy')}, grader version {grader.get('version', 'unknown')}"


def _kept_lines(changes: Changes) -> list[str]:
    return [f"Not graded again: {count:,} completions that {KEPT[why]}." for why, count in changes.kept.items()]


def printed_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Returns a table for the terminal: the first column to the left, the others to the right."""
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*(Text(f"{value:,}" if isinstance(value, int) else str(value)) for value in row))
    return table
