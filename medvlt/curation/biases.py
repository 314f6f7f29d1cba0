# SPDX-License-Identifier: Apache-2.0
"""What a whole set gives away: the right option by its letter or by its length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medvlt.evaluation.statistics.intervals import wilson_interval


@dataclass(frozen=True)
class Rate:
    """How often something holds, against chance.

    Attributes:
        holds: Questions where it does.
        of: Questions where it could.
        chance: Share expected of guessing among the options, in [0, 1]: the mean of 1 / options over these questions.
    """

    holds: int
    of: int
    chance: float

    @property
    def share(self) -> float:
        """Share, in [0, 1]; 0 of nothing."""
        return self.holds / self.of if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson interval of the share at 95% confidence."""
        return wilson_interval(self.holds, self.of)

    @property
    def differs(self) -> bool:
        """Whether chance lies outside the interval."""
        low, high = self.interval
        return self.of > 0 and not low <= self.chance <= high

    def to_json(self) -> dict[str, Any]:
        """Returns a record that JSON can hold."""
        return {
            "holds": self.holds,
            "of": self.of,
            "share": self.share,
            "interval_95": list(self.interval),
            "chance": self.chance,
        }


@dataclass(frozen=True)
class LetterBalance:
    """How the right answers of questions with the same letters are spread over them.

    Attributes:
        counts: Right answers by letter, in order; also letters that are never right.
        chi_square: sum (count - N / k)^2 / (N / k) over the k letters.
        p_value: P(chi-square with k - 1 degrees of freedom >= chi_square): how often an even spread looks as uneven.
    """

    counts: dict[str, int]
    chi_square: float
    p_value: float

    @property
    def questions(self) -> int:
        """Questions with these letters."""
        return sum(self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """Returns a record that JSON can hold."""
        return {"counts": self.counts, "chi_square": self.chi_square, "p_value": self.p_value}


@dataclass
class BiasCounts:
    """Counts over the questions of a set, added one by one."""

    _letters: dict[tuple[str, ...], Counter[str]] = field(default_factory=dict)
    _lengths: dict[str, list[float]] = field(default_factory=dict)

    def add(self, options: dict[str, str], answer_label: str) -> None:
        """Counts one question.

        Args:
            options: Letter to text.
            answer_label: The right letter.
        """
        self._letters.setdefault(tuple(options), Counter())[answer_label] += 1
        lengths = {letter: len(text.strip()) for letter, text in options.items()}
        for name, extreme in (("longest", max(lengths.values())), ("shortest", min(lengths.values()))):
            found = [letter for letter, length in lengths.items() if length == extreme]
            if len(found) == 1:  # of several equally long ones none can be picked by its length
                row = self._lengths.setdefault(name, [0, 0, 0.0])
                row[0] += found[0] == answer_label
                row[1] += 1
                row[2] += 1 / len(options)

    def length_rate(self, name: str) -> Rate:
        """Returns how often the one "longest" or "shortest" option is right; questions with a tie are left out."""
        holds, of, chance = self._lengths.get(name, [0, 0, 0.0])
        return Rate(int(holds), int(of), chance / of if of else 0.0)

    def letter_balances(self) -> list[LetterBalance]:
        """Returns the spread over letters, separately for each row of letters (A to D, A to E), the commonest first."""
        by_size = sorted(self._letters.items(), key=lambda item: -item[1].total())
        return [letter_balance(letters, counts) for letters, counts in by_size]

    def letter_majority(self) -> Rate:
        """Returns how often the commonest right letter is right, chosen for each row of letters apart.

        What a model gets that has learned nothing but the letters. On the few questions of a small set this lies above
        chance by itself.
        """
        holds = sum(max(counts.values()) for counts in self._letters.values())
        of = sum(counts.total() for counts in self._letters.values())
        chance = sum(counts.total() / len(letters) for letters, counts in self._letters.items())
        return Rate(holds, of, chance / of if of else 0.0)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as a record that JSON can hold."""
        return {
            "longest_is_right": self.length_rate("longest").to_json(),
            "shortest_is_right": self.length_rate("shortest").to_json(),
            "commonest_letter_is_right": self.letter_majority().to_json(),
            "letters": [balance.to_json() for balance in self.letter_balances()],
        }


def letter_balance(letters: Sequence[str], right: Counter[str]) -> LetterBalance:
    """Returns Pearson's chi-square test of an even spread over the letters.

    Args:
        letters: All letters, two or more.
        right: Right answers by letter.
    """
    import torch

    counts = {letter: right[letter] for letter in letters}
    expected = sum(counts.values()) / len(letters)
    statistic = sum((count - expected) ** 2 / expected for count in counts.values()) if expected else 0.0
    half_freedom = torch.tensor((len(letters) - 1) / 2, dtype=torch.float64)
    tail = torch.special.gammaincc(half_freedom, torch.tensor(statistic / 2, dtype=torch.float64))
    return LetterBalance(counts, statistic, float(tail))
