# SPDX-License-Identifier: Apache-2.0
"""A generated question before its options get letters, and what every family of questions is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeAlias

from medvlt.data.phantom.scene import Scene

Modality: TypeAlias = Literal["text", "picture"]
"""Whether a question can be answered from its text alone or needs its picture."""

MAX_OPTIONS = 5


@dataclass(frozen=True, slots=True)
class Draft:
    """One question with its answer, options not yet lettered.

    Attributes:
        question: The stem.
        fact: What a trace states before it names the answer, such as "rate 135 is".
        choices: Option texts, 2 to 5, all different, in the natural order of the family.
        truth: Index of the right choice.
        guess: Index of the choice of the simulated teacher, who follows a rule of his own; often equal to `truth`.
        key: The values behind the question as text. Equal values give equal keys.
        place: Where the values can be numbered: the answer, and the rank of the value among those with that answer. It
            decides the split; if None, the key does.
        scene: What the picture shows; None for a question about text.
    """

    question: str
    fact: str
    choices: tuple[str, ...]
    truth: int
    guess: int
    key: str
    place: tuple[int, int] | None = None
    scene: Scene | None = None


Draw: TypeAlias = Callable[[Random, int, float], Draft]
"""Draws a question from (stream, pick, difficulty).

`pick` is a large integer that chooses the right answer (modulo the number of answers). It stays the same when a draw is
repeated because its values belong to another split, so that the answers are balanced in every split.
"""


def between(easy: float, hard: float, difficulty: float) -> float:
    """Returns `easy` at difficulty 0, `hard` at difficulty 1, and the straight line in between."""
    return easy + (hard - easy) * difficulty
