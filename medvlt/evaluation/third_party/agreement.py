# SPDX-License-Identifier: Apache-2.0
"""How often our grader and another harness say the same of the same outputs, and why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medvlt.curation.card import cell, markdown_table
from medvlt.evaluation.runs import NOTE
from medvlt.evaluation.statistics.intervals import wilson_interval


@dataclass
class Agreement:
    """Two verdicts on every output.

    Attributes:
        verdicts: (right by their grader, right by ours) to outputs.
        reasons: (our reason, right by theirs, right by ours) to outputs.
        letters: Outputs of which both read a letter, and how many times it is the same: [both, same].
        unstated: Outputs without a verdict of theirs.
        failed: Outputs that never came.
        disagreements: The lines of a run on which the verdicts differ.
    """

    verdicts: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    reasons: Counter[tuple[str, bool, bool]] = field(default_factory=Counter)
    letters: list[int] = field(default_factory=lambda: [0, 0])
    unstated: int = 0
    failed: int = 0
    disagreements: list[dict[str, Any]] = field(default_factory=list)

    @property
    def compared(self) -> int:
        """Outputs with two verdicts."""
        return sum(self.verdicts.values())

    @property
    def agreed(self) -> int:
        """Outputs with two equal verdicts."""
        return self.verdicts[True, True] + self.verdicts[False, False]

    def add(self, record: Mapping[str, Any]) -> None:
        """Counts a line of an imported run."""
        theirs, ours = record.get("stated_correct"), bool(record["correct"])
        if record["finish_reason"] == "error":
            self.failed += 1
        elif theirs is None:
            self.unstated += 1
        else:
            self.verdicts[theirs, ours] += 1
            self.reasons[str(record["reason"]), theirs, ours] += 1
            if record["label"] is not None and record.get("stated_label") is not None:
                self.letters[0] += 1
                self.letters[1] += record["label"] == record["stated_label"]
            if theirs != ours:
                self.disagreements.append(dict(record))

    def update(self, other: Agreement) -> None:
        """Adds the counts of another."""
        self.verdicts.update(other.verdicts)
        self.reasons.update(other.reasons)
        self.letters = [ours + theirs for ours, theirs in zip(self.letters, other.letters, strict=True)]
        self.unstated += other.unstated
        self.failed += other.failed
        self.disagreements += other.disagreements


def agreement_of(records: Iterable[Mapping[str, Any]]) -> Agreement:
    """Returns the agreement on the lines of an imported run."""
    agreement = Agreement()
    for record in records:
        agreement.add(record)
    return agreement


def verdict_rows(agreement: Agreement) -> tuple[list[str], list[list[object]]]:
    """Returns their verdicts against ours."""
    rows: list[list[object]] = [
        [f"{name} by theirs", agreement.verdicts[theirs, True], agreement.verdicts[theirs, False]]
        for name, theirs in (("right", True), ("wrong", False))
    ]
    return ["", "right by ours", "wrong by ours"], rows


def reason_rows(agreement: Agreement) -> tuple[list[str], list[list[object]]]:
    """Returns agreement by our reason code, commonest first."""
    totals: Counter[str] = Counter()
    for (reason, _, _), count in agreement.reasons.items():
        totals[reason] += count
    rows: list[list[object]] = []
    for reason, total in sorted(totals.items(), key=lambda item: (-item[1], item[0])):
        only_theirs, only_ours = agreement.reasons[reason, True, False], agreement.reasons[reason, False, True]
        rows.append([reason, total, total - only_theirs - only_ours, only_theirs, only_ours])
    return ["our reason", "outputs", "agree", "right by theirs only", "right by ours only"], rows


def summary(agreement: Agreement) -> str:
    """Returns the agreement in a sentence; the interval takes every output for an observation of its own."""
    low, high = wilson_interval(agreement.agreed, agreement.compared)
    share = agreement.agreed / agreement.compared if agreement.compared else 0.0
    both, same = agreement.letters
    return (
        f"The two graders agree on {agreement.agreed:,} of {agreement.compared:,} outputs ({share:.2%}, 95% Wilson "
        f"interval {low:.2%} to {high:.2%}); where both read a letter, it is the same in {same:,} of {both:,}. Not "
        f"compared: {agreement.unstated:,} without a verdict of theirs, {agreement.failed:,} that never came."
    )


def to_markdown(agreement: Agreement, title: str, examples: int = 20) -> str:
    """Returns the comparison as Markdown.

    Args:
        agreement: The comparison.
        title: What was compared.
        examples: Disagreements to show.
    """
    lines = [f"# {cell(title)}", "", NOTE, "", summary(agreement), ""]
    for rows in (verdict_rows(agreement), reason_rows(agreement)):
        lines += [markdown_table(*rows), ""]
    shown = agreement.disagreements[:examples]
    if shown:
        lines += [f"## The first {len(shown)} of {len(agreement.disagreements):,} disagreements", ""]
        header = ["item", "options", "answer", "end of the output", "theirs", "ours"]
        lines += [markdown_table(header, map(_example, shown)), ""]
    return "\n".join(lines)


def _example(record: Mapping[str, Any]) -> list[str]:
    theirs = f"{'right' if record['stated_correct'] else 'wrong'}, {record.get('stated_label') or 'no letter'}"
    ours = f"{'right' if record['correct'] else 'wrong'}, {record['label'] or 'no letter'}, {record['reason']}"
    options = "; ".join(f"{letter} {text}" for letter, text in record["options"].items())
    return [
        f"{record['uid']} #{record['sample']}",
        f"{options:.250}",
        str(record["answer_label"]),
        record["completion"][-200:],
        theirs,
        ours,
    ]
