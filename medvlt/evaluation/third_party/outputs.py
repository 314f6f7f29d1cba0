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
        stated_label: The letter that its own harness read, or None.
        error: Why it never came; empty if it came.
        tokens: Its length, where it is stored; else 0.
    """

    text: str
    stated_correct: bool | None = None
    stated_label: str | None = None
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
        answer_label: The right letter, as far as it is stored.
        outputs: Its outputs, in order.
        dataset_name: Where it comes from, if that is more exact than the benchmark.
        variant: Name of the way in which the outputs were scored, where the harness stores a line for each way.
    """

    benchmark: str
    key: int | str
    question: str
    options: Mapping[str, str]
    answer_label: str | None
    outputs: tuple[StoredOutput, ...]
    dataset_name: str = ""
    variant: str = ""
