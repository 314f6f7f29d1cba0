# SPDX-License-Identifier: Apache-2.0
"""Options of closed questions made elsewhere, by hand or by a model that saw questions only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medvlt.data.drops import RecordError
from medvlt.data.sources import json_records
from medvlt.errors import DataError


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
        return self.by_hash.get(identity) or self.by_question.get(" ".join(question.split()))


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
            key, found = " ".join(key.split()), tuple(texts)
            if tables[kind].setdefault(key, found) != found:
                raise DataError(
                    f"{path}, entry {number}: other options for {key!r:.80} than before; name the questions by `hash` "
                    "if equal wordings need different options"
                )
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; correct options_file") from error
    return GivenOptions(tables["hash"], tables["question"])
