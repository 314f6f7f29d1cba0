# SPDX-License-Identifier: Apache-2.0
"""Classes cut out of a range of numbers, and questions with numbers as options.

Numbers are integers in units of the last decimal shown (37.9 degrees with one decimal is 379), so that a value on a
cut-off is classified exactly.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from medvlt.data.phantom.draft import MAX_OPTIONS, Draft

NUMERIC_FROM = 0.5
"""Difficulty from which families that compute a number ask for the number instead of its class."""


@dataclass(frozen=True, slots=True)
class Bands:
    """Classes of a measured value.

    Attributes:
        words: Names of the classes, from the lowest values to the highest.
        first: Lowest value drawn.
        cuts: Lowest value of every class but the first.
        last: Highest value drawn.
        teacher_cuts: The cut-offs that the simulated teacher believes in.
    """

    words: tuple[str, ...]
    first: int
    cuts: tuple[int, ...]
    last: int
    teacher_cuts: tuple[int, ...]

    def classify(self, value: int) -> int:
        """Returns the index of the class of `value`."""
        return bisect_right(self.cuts, value)

    def teacher_classify(self, value: int) -> int:
        """Returns the index of the class in which the simulated teacher puts `value`."""
        return bisect_right(self.teacher_cuts, value)

    def edges(self, index: int) -> tuple[int, int]:
        """Returns the lowest and the highest value of class `index`, both included."""
        low = self.cuts[index - 1] if index else self.first
        return low, self.cuts[index] - 1 if index < len(self.cuts) else self.last

    def place(self, value: int) -> tuple[int, int]:
        """Returns the index of the class of `value`, and the rank of `value` in it, from 0."""
        index = self.classify(value)
        return index, value - self.edges(index)[0]

    def draw(self, rng: Random, index: int, difficulty: float) -> int:
        """Returns a value of class `index`: uniform at difficulty 0, mostly close to a cut-off at difficulty 1.

        The distance from the cut-off is u^(1 + 3 difficulty) of the way to the far end of the class (half-way for a
        class between two cut-offs), u uniform in [0, 1). So every level draws from the same values.
        """
        low, high = self.edges(index)
        depth = rng.random() ** (1 + 3 * difficulty)
        if 0 < index < len(self.cuts):
            offset = int(depth * (high - low + 2) / 2)  # an odd count: both sides reach the middle value
            return low + offset if rng.random() < 0.5 else high - offset
        offset = int(depth * (high - low + 1))
        return low + offset if index else high - offset


def decimal(value: int, decimals: int) -> str:
    """Returns `value` / 10^`decimals` with exactly that many decimals: (379, 1) is "37.9"."""
    return f"{value / 10**decimals:.{decimals}f}"


def band_draft(bands: Bands, value: int, *, question: str, fact: str, key: str, one_input: bool = True) -> Draft:
    """Returns the question which class `value` belongs to.

    Args:
        bands: The classes.
        value: In units of the last decimal.
        question: The stem.
        fact: What the trace states before the class.
        key: See `Draft`.
        one_input: Whether the question gives `value` itself, and not several numbers that lead to it.
    """
    truth, guess = bands.classify(value), bands.teacher_classify(value)
    return Draft(question, fact, bands.words, truth, guess, key, bands.place(value) if one_input else None)


def number_grid(
    rng: Random, pick: int, difficulty: float, *, lowest: int, highest: int, step: int
) -> tuple[tuple[int, ...], int]:
    """Returns evenly spaced numbers for the options, rising, and the index of the right one.

    The index is drawn apart from the numbers, so the options alone do not give the answer away.

    Args:
        rng: Stream for the first number.
        pick: Chooses the index of the right number, see `Draw`.
        difficulty: In [0, 1]; there are 4 numbers, 5 from difficulty 0.75 on.
        lowest: Lower bound of all numbers, included.
        highest: Upper bound of all numbers, included; at least `lowest + 4 * step`.
        step: Distance of neighbours, such as what a common slip is off by.
    """
    count = MAX_OPTIONS if difficulty >= 0.75 else MAX_OPTIONS - 1
    last_step = step * (count - 1)
    start = rng.randint(lowest, highest - last_step)
    return tuple(range(start, start + last_step + 1, step)), pick % count


def number_draft(
    numbers: Sequence[int], truth: int, *, question: str, fact: str, key: str, place: tuple[int, int] | None = None
) -> Draft:
    """Returns a question whose options are numbers. The teacher takes the next option, or the right one if it is last.

    Args:
        numbers: The options, made from `number_grid`.
        truth: Index of the right one.
        question: The stem.
        fact: What the trace states before the number.
        key: See `Draft`.
        place: See `Draft`.
    """
    guess = min(truth + 1, len(numbers) - 1)
    return Draft(question, fact, tuple(map(str, numbers)), truth, guess, key, place)
