# SPDX-License-Identifier: Apache-2.0
"""Options of closed questions made elsewhere, by hand or by a model that saw questions only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from medvlt.data.drops import RecordError
from medvlt.data.sources import json_records
from medvlt.errors import DataError
from medvlt.evaluation.benchmarks.extraction import label_of


@dataclass(frozen=True)
class GivenOptions:
    """Options by question.

    Attributes:
        by_hash: By the reference's hash of question and answer; these go first.
        by_question: By the question's text, blanks joined; the same for all questions of that wording.
    """

    by_hash: Mapping[str, tuple[str, ...]]
    by_question: Mapping[str, tuple[str, ...]]

    def find(self, question: str, identity: str) -> tuple[str, ...] | None:
        """Returns the options of a question, None if the file has none.

        Args:
            question: Its text.
            identity: Its hash; see `by_hash`.
        """
        return self.by_hash.get(identity) or self.by_question.get(_joined(question))

    def check(self, asked: Iterable[tuple[str, str, str]], source: str) -> None:
        """Makes sure that every entry is of a question, and holds what the question was answered with.

        Args:
            asked: Question, annotated answer and hash of every question.
            source: The file.

        Raises:
            DataError: If an entry is of none, or lacks the answer.
        """
        unused, wrong = {*self.by_hash, *self.by_question}, []
        for question, answer, identity in asked:
            unused -= {identity, _joined(question)}
            found = self.find(question, identity)
            if found is not None and label_of(answer, dict(zip(ascii_uppercase, found, strict=False))) is None:
                wrong.append(f"{question!r:.80} ({', '.join(found)}; annotated: {answer})")
        for fault, entries in (
            ("are of no closed question of the source", sorted(unused)),
            ("lack the annotated answer", wrong),
        ):
            if entries:
                raise DataError(
                    f"{source}: the options of {len(entries)} entries {fault}: {'; '.join(entries[:5])}. Correct them "
                    "or take them out of options_file"
                )


def read_options(path: str | Path) -> GivenOptions:
    """Reads a JSON Lines file with `options`, a list of texts, and `hash` or `question` in each line.

    Raises:
        DataError: If it cannot be read, or a line is something else or contradicts an earlier one.
    """
    tables: dict[str, dict[str, tuple[str, ...]]] = {"hash": {}, "question": {}}
    try:
        for number, record in enumerate(json_records(Path(path)), start=1):
            if isinstance(record, RecordError):
                raise DataError(f"{path}, entry {number}: {record}")
            options, kind = record.get("options"), "hash" if record.get("hash") else "question"
            key = record.get(kind)
            texts = [text.strip() for text in options if isinstance(text, str)] if isinstance(options, list) else []
            whole = len(texts) > 1 and all(texts) and len({*texts}) == len(texts) == len(options or ())
            if not (whole and isinstance(key, str) and key.strip()):
                raise DataError(
                    f"{path}, entry {number}: expected `options` with two or more different texts and a `question` or "
                    f"a `hash`, got {record!r:.200}"
                )
            key, found = _joined(key), tuple(texts)
            if tables[kind].setdefault(key, found) != found:
                raise DataError(
                    f"{path}, entry {number}: other options for {key!r:.80} than before; name the questions by `hash` "
                    "if equal wordings need different options"
                )
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; correct options_file") from error
    return GivenOptions(tables["hash"], tables["question"])


def _joined(text: str) -> str:
    return " ".join(text.split())
