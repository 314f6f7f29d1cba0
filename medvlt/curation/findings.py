# SPDX-License-Identifier: Apache-2.0
"""What `medvlt data quality` found in a set: marks of questions, and what the options give away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any

from medvlt.curation.biases import BiasCounts

MARKS = ("blind", "duplicate", "contradictory", "caption_leak", "length_bias", "low_agreement")
"""Names of the marks, in the order of the report."""


@dataclass
class Findings:
    """What was found in a set.

    Attributes:
        names: Data set of each question, by uid, in order.
        indices: Index of each question in its data set, by uid.
        marks: Name to (uid to whether the question has the mark), of the examined questions.
        rules: Marked questions by the rule that found them, where a mark has several.
        biases: What the options of each data set give away.
        lucky_guesses: `blind` marks to expect if a model made one fixed guess for each question: the sum of 1/options.
    """

    names: dict[str, str] = field(default_factory=dict)
    indices: dict[str, int | str] = field(default_factory=dict)
    marks: dict[str, dict[str, bool]] = field(default_factory=lambda: {name: {} for name in MARKS})
    rules: Counter[str] = field(default_factory=Counter)
    biases: dict[str, BiasCounts] = field(default_factory=dict)
    lucky_guesses: float = 0.0

    def marked(self, name: str) -> list[str]:
        """Returns the uids that have a mark, in the order of the set."""
        return [uid for uid, value in self.marks[name].items() if value]

    def by_source(self, name: str) -> dict[str, tuple[int, int]]:
        """Returns for each data set how many questions have a mark, and how many were examined."""
        counts = {source: (0, 0) for source in self.names.values()}
        for uid, value in self.marks[name].items():
            marked, examined = counts[self.names[uid]]
            counts[self.names[uid]] = (marked + value, examined + 1)
        return counts

    def for_ledger(self, tried: Sequence[str], known: Container[str]) -> dict[str, dict[str, bool | None]]:
        """Returns marks of every question, None where it was not examined, so that no older mark stays there.

        Args:
            tried: Names of the marks that were looked for.
            known: Marks that the ledger has; another that no question was examined for is left out.
        """
        names = [name for name in tried if self.marks[name] or name in known]
        return {name: {uid: self.marks[name].get(uid) for uid in self.names} for name in names}

    def to_json(self) -> dict[str, Any]:
        """Returns everything as a record that JSON can hold."""
        return {
            "questions": len(self.names),
            "marks": {
                name: {
                    "marked": len(self.marked(name)),
                    "examined": len(self.marks[name]),
                    "by_source": {
                        source: {"marked": marked, "examined": examined}
                        for source, (marked, examined) in self.by_source(name).items()
                    },
                    "uids": self.marked(name),
                }
                for name in MARKS
            },
            "rules": dict(self.rules),
            "blind_marks_of_one_fixed_guess": self.lucky_guesses,
            "biases": {source: biases.to_json() for source, biases in self.biases.items()},
        }
