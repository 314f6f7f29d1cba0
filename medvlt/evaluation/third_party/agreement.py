# SPDX-License-Identifier: Apache-2.0
"""How often our grader and another harness say the same of the same outputs, and why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medvlt.curation.card import NOTICE, cell, markdown_table
from medvlt.evaluation.regrade_report import confusion, verdict_words
from medvlt.evaluation.statistics.intervals import bootstrap_interval, wilson_interval


@dataclass
class Agreement:
    """Two verdicts on every output.

    Attributes:
        verdicts: (right by their grader, right by ours) to outputs.
        reasons: (our reason, right by theirs, right by ours) to outputs.
        questions: (benchmark, question) to whether the verdicts on each of its outputs agree.
        letters: Outputs of which both read a letter, and how many times it is the same: [both, same].
        unstated: Outputs without a verdict of theirs.
        failed: Outputs that never came.
        disagreements: The lines of a run on which the verdicts differ.
    """

    verdicts: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    reasons: Counter[tuple[str, bool, bool]] = field(default_factory=Counter)
    questions: dict[tuple[str, str], list[bool]] = field(default_factory=dict)
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
            self.questions.setdefault((record["benchmark"], record["uid"]), []).append(theirs == ours)
            if record["label"] is not None and record.get("stated_label") is not None:
                self.letters[0] += 1
                self.letters[1] += record["label"] == record["stated_label"]
            if theirs != ours:
                self.disagreements.append(dict(record))

    def update(self, other: Agreement) -> None:
        """Adds the counts of another."""
        self.verdicts.update(other.verdicts)
        self.reasons.update(other.reasons)
        for question, agreed in other.questions.items():
            self.questions[question] = self.questions.get(question, []) + agreed
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
    return confusion(agreement.verdicts, "by theirs", "by ours")


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
    """Returns the agreement in a sentence; the interval takes every question for an observation of its own."""
    kind, low, high = _interval(agreement)
    share = agreement.agreed / agreement.compared if agreement.compared else 0.0
    both, same = agreement.letters
    return (
        f"The two graders agree on {agreement.agreed:,} of {agreement.compared:,} outputs ({share:.2%}, 95% {kind} "
        f"interval over questions {low:.2%} to {high:.2%}); where both read a letter, it is the same in {same:,} of "
        f"{both:,}. Not compared: {agreement.unstated:,} without a verdict of theirs, {agreement.failed:,} that "
        "never came."
    )


def _interval(agreement: Agreement) -> tuple[str, float, float]:
    """Wilson's where that is exact: one output per question, or all alike, where a bootstrap has no width."""
    agreed, compared, questions = agreement.agreed, agreement.compared, len(agreement.questions)
    if compared == questions or agreed in (0, compared):
        return "Wilson", *wilson_interval(agreed * questions // max(compared, 1), questions)
    scores = [same for outputs in agreement.questions.values() for same in outputs]
    clusters = [number for number, outputs in enumerate(agreement.questions.values()) for _ in outputs]
    interval = bootstrap_interval(scores, clusters=clusters, seed=0)
    return "bootstrap", interval.low, interval.high


def to_markdown(agreement: Agreement, title: str, examples: int = 20) -> str:
    """Returns the comparison as Markdown.

    Args:
        agreement: The comparison.
        title: What was compared.
        examples: Disagreements to show.
    """
    lines = [f"# {cell(title)}", "", NOTICE, "", summary(agreement), ""]
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
    options = "; ".join(f"{letter} {text}" for letter, text in record["options"].items())
    return [
        f"{record['uid']} #{record['sample']}",
        f"{options:.250}",
        str(record["answer_label"]),
        record["completion"][-200:],
        theirs,
        verdict_words(record),
    ]
