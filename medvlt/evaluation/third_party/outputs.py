# SPDX-License-Identifier: Apache-2.0
"""What every reader of third-party outputs gives: a question, its outputs, and what their own harness said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medvlt.errors import DataError


class LineError(DataError):
    """A stored line that cannot be used; the message says why, the reader adds where."""


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """One completion as another harness stored it.

    Attributes:
        text: The whole reply, as raw as it is stored.
        stated_correct: What its own harness said; None if that is not stored.
        stated_answer: What its own harness read, as it is stored: a letter, a text, a position, or None.
        error: Why it never came; empty if it came.
        tokens: Its length, where it is stored; else 0.
    """

    text: str
    stated_correct: bool | None = None
    stated_answer: object = None
    error: str = ""
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class StoredQuestion:
    """A question with its outputs.

    Attributes:
        benchmark: Name of the benchmark or task.
        key: Its number or name inside the benchmark.
        question: The stem; empty if it is not stored.
        options: Letter to text; empty if they are not stored, and then the benchmark itself must be given.
        golds: What may name the right option, as it is stored: letters, texts or positions; the first that does counts.
        outputs: Its outputs, in order.
        dataset_name: Where it comes from, if that is more exact than the benchmark.
        variant: Name of the way in which the outputs were scored, where the harness stores a line for each way.
    """

    benchmark: str
    key: int | str
    question: str
    options: Mapping[str, str]
    golds: tuple[object, ...]
    outputs: tuple[StoredOutput, ...]
    dataset_name: str = ""
    variant: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.key, bool) or not isinstance(self.key, int | str):
            raise LineError(f"expected a number or a name of the question, got {self.key!r:.40}")


def stored_output(text: object, stated: object, answer: object) -> StoredOutput:
    """Returns an output whose text and verdict may be missing or of another type."""
    verdict = stated if isinstance(stated, bool) else None
    if isinstance(text, str):
        return StoredOutput(text, verdict, answer)
    return StoredOutput("", verdict, answer, error=f"no text was stored: {text!r:.200}")


def verdict_of(score: object) -> bool | None:
    """Returns the verdict that a score of 0 or 1 states; None of any other, which may be on another scale."""
    return bool(score) if isinstance(score, int | float) and score in (0, 1) else None
