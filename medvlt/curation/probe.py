# SPDX-License-Identifier: Apache-2.0
"""A probe: one model with one prompt that was asked questions, to learn how hard they are for it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from medvlt.data.samples import uids_fingerprint
from medvlt.errors import DataError
from medvlt.rewards.grade import GRADER_VERSION
from medvlt.rollout.store_identity import flat

COUNTS = ("n", "strict", "robust", "format", "truncated", "errors", "mean_tokens")
"""Of a question in a probe: completions sampled; of these right by the grader of the reference's pass counts, right by
the robust grader, in the asked format, cut at the token limit; completions that failed and are not in n; mean length in
tokens."""

COLUMNS = (*COUNTS, "pictures", "grader")
"""Columns of a probe: `COUNTS`, the pictures that were shown with the question, and the grader's version."""

NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""What a probe or a mark may be called."""

_IDENTITY = ("prompt", "seed", "sampling", "details")
"""Without `model`: a folder may be moved, and a name on the Hub means the same weights as its snapshot; `details` tells
weights apart."""


@dataclass(frozen=True)
class Probe:
    """One model with one prompt, asked some questions.

    The counts depend on `prompt`, `sampling`, `seed` and `details`, which are compared where a probe is continued. The
    fields from `pictures` on follow from the counts, and `Ledger.with_probe` fills them in, apart from `date`.

    Attributes:
        name: Heads the columns; letters, digits, `_`, `-`, `.`.
        model: Name or folder of the model that answered, to be read; not compared.
        prompt: Name of the prompt template.
        sampling: Settings of the sampling, `n` among them.
        seed: Of the sampling.
        details: Whatever else the completions depend on, such as a fingerprint of the weights.
        checkpoint: File whose weights took the place of the model's, empty if there was none; not compared.
        versions: Of the packages that took part in the last run, by name; not compared.
        pictures: Questions that were asked with a picture.
        grader_version: Version of the grading rules; several, separated by commas, if the rows differ.
        date: Day of the last change, ISO 8601.
        questions: How many were asked.
        fingerprint: Of the questions that were asked, see `medvlt.curation.card.fingerprint`.
    """

    name: str
    model: str
    prompt: str
    sampling: Mapping[str, Any]
    seed: int
    details: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    pictures: int = 0
    grader_version: str = ""
    date: str = ""
    questions: int = 0
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        if not isinstance(self.sampling.get("n"), int) or self.sampling["n"] < 1:
            raise DataError(f"probe {self.name!r}: sampling needs n, a whole number from 1 on, got {self.sampling}")

    @property
    def n(self) -> int:
        """Completions that were asked for, of every question."""
        return int(self.sampling["n"])

    @property
    def answered_by(self) -> str:
        """The model in words, with the checkpoint whose weights it had."""
        return f"{self.model} with weights of {self.checkpoint}" if self.checkpoint else self.model

    def differences(self, other: Probe) -> list[str]:
        """Returns in words what differs, apart from n, in the settings that the completions depend on."""
        mine, others = self._identity(), other._identity()
        return [
            f"{key} {mine.get(key)!r} and {others.get(key)!r}"
            for key in sorted(mine.keys() | others.keys())
            if mine.get(key) != others.get(key) and key != "sampling.n"
        ]

    def _identity(self) -> dict[str, Any]:
        """As JSON gives it back, where a tuple equals the list that it is read as; nested names joined by dots."""
        return dict(flat(json.loads(json.dumps({name: getattr(self, name) for name in _IDENTITY}))))


def check_name(name: str) -> None:
    """Raises DataError unless a probe may have this name."""
    if not NAME.fullmatch(name) or name == "mark":
        raise DataError(f"a probe's name heads its columns: letters, digits, '_', '-', '.', not 'mark'; got {name!r}")


def described(probe: Probe, columns: Mapping[str, Sequence[Any]]) -> Probe:
    """Returns the probe with what follows from the columns of its ledger."""
    asked = [uid for uid, n in zip(columns["uid"], columns[f"{probe.name}/n"], strict=True) if n is not None]
    return replace(
        probe,
        pictures=sum(bool(number) for number in columns[f"{probe.name}/pictures"]),
        grader_version=",".join(sorted({grader for grader in columns[f"{probe.name}/grader"] if grader is not None})),
        questions=len(asked),
        fingerprint=uids_fingerprint(asked),
    )


def accepted_graders(what: str, graders: Iterable[str], accepted: str | None) -> str:
    """Returns which versions of the grader made counts that are about to be used, joined by commas.

    Args:
        what: The counts in words, for the message.
        graders: Version that graded each question.
        accepted: An older version whose counts are good enough; None for none.

    Raises:
        DataError: If another version than the present or the accepted one is among them.
    """
    versions = Counter(graders)
    if others := {version: number for version, number in versions.items() if version not in (GRADER_VERSION, accepted)}:
        raise DataError(
            f"{sum(others.values())} {what} were made by version {', '.join(map(repr, others))} "
            f"of the grader, the present one is {GRADER_VERSION!r}; run the `medvlt "
            "predict` that made them again: completions in its store are graded anew, not sampled; or set "
            f"accept_grader_version={next(iter(others))}"
        )
    return ",".join(sorted(versions))


def check_row(probe: Probe, uid: str, row: Mapping[str, Any]) -> None:
    """Raises DataError if the counts of a question are incomplete or impossible."""
    if strange := row.keys() ^ set(COLUMNS):
        raise DataError(
            f"probe {probe.name!r}, question {uid}: missing or unknown columns {', '.join(sorted(strange))}"
        )
    counts = {name: row[name] for name in ("strict", "robust", "format", "truncated")}
    if row["n"] + row["errors"] != probe.n or not all(0 <= count <= row["n"] for count in counts.values()):
        raise DataError(
            f"probe {probe.name!r}, question {uid}: expected n + errors = {probe.n} and every count in 0..n, got "
            f"{dict(row)}"
        )
