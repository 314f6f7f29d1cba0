# SPDX-License-Identifier: Apache-2.0
"""What the readers of original sources share: where rows lie, which form they have, how options get their letters."""

from __future__ import annotations

import string
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from medvlt.data.drops import DropReason, RecordError
from medvlt.data.fields import parse_json
from medvlt.data.samples import SampleSet, Source
from medvlt.data.schema import Record
from medvlt.errors import ConfigurationError, DataError
from medvlt.evaluation.benchmarks.checks import BenchmarkChecks
from medvlt.evaluation.benchmarks.rows import Convert, Part, Row, StoredRows, read_rows, stored_rows

_RECORD = frozenset({"question", "options", "answer_label"})


@dataclass(frozen=True, kw_only=True)
class OriginalBenchmark(BenchmarkChecks, Source):
    """A benchmark read from where its authors published it, or from a folder of `medvlt data build benchmark`.

    Args:
        source: A name on the Hub, a folder in the Hub's layout, a file of its rows, a set of records, or a source.
        revision: Commit, branch or tag of a name on the Hub.
    """

    name: ClassVar[str]
    parts: ClassVar[tuple[Part, ...]]
    columns: ClassVar[frozenset[str]]
    """Columns by which the original rows are known."""
    pictures: ClassVar[tuple[str, ...]] = ()
    """Columns that hold pictures."""
    conversion: ClassVar[tuple[str, ...]] = ()
    """Settings that say how original rows become records, and nothing of records."""

    source: str | Path | Source
    revision: str | None = None

    @abstractmethod
    def converter(self) -> Convert:
        """Returns how an original row becomes a record."""

    def load(self) -> SampleSet:
        """Reads and counts the questions.

        Raises:
            DataError: If they cannot be read, are in neither form or of another benchmark, or are not all there.
            ConfigurationError: If a setting cannot be followed.
        """
        if isinstance(self.source, Source):
            if self.revision is not None:
                raise ConfigurationError("revision belongs to a name on the Hub; give it to the source")
            self._refuse_conversion(type(self.source).__name__)
            return self.checked(self.source.load())
        rows = stored_rows(self.source, self.parts, self.revision)
        if rows.columns >= self.columns:
            return self.checked(self._converted(rows))
        if rows.columns >= _RECORD:
            self._refuse_conversion(rows.source)
            checks = self.read_checks
            return self.checked(read_rows(rows, marked_record, checks, dataset_name=self.name, pictures=("images",)))
        raise DataError(
            f"{rows.source}: expected the rows of {self.name} with the columns {', '.join(sorted(self.columns))}, or "
            f"records with {', '.join(sorted(_RECORD))}; its columns: {', '.join(sorted(rows.columns)) or 'none'}. "
            "Check the source and its revision"
        )

    def checked(self, samples: SampleSet, *, part: bool = False) -> SampleSet:
        """Returns the samples if they are those of this benchmark, and all there.

        Raises:
            DataError: If some are of another data set; see also `BenchmarkChecks`.
        """
        names = Counter(samples.light(index).dataset_name for index in range(len(samples)))
        if names.keys() - {self.name}:
            found = ", ".join(f"{name or '(no name)'} ({count:,})" for name, count in names.items())
            raise DataError(
                f"{samples.report.source}: expected questions of {self.name} only, got {found}; correct the source, "
                "take a part of it with `Subset`, or read any other set with `Benchmark`"
            )
        return super().checked(samples, part=part)

    def _refuse_conversion(self, source: str) -> None:
        if given := [name for name in self.conversion if getattr(self, name) is not None]:
            raise ConfigurationError(
                f"{', '.join(given)} is for original rows, got records that were converted before ({source}); leave it "
                "out, or name the original rows as the source"
            )

    def _converted(self, rows: StoredRows) -> SampleSet:
        return read_rows(rows, self.converter(), self.read_checks, dataset_name=self.name, pictures=self.pictures)


def lettered(texts: Sequence[str]) -> dict[str, str]:
    """Returns texts under the letters A, B, ... in their order, ready to be asked.

    Exams hold slips: the same text twice, or none. Such a question stays in the denominator as the exam asked it, so
    the repeat is marked as one, and a missing text is written `(blank)`.

    Raises:
        RecordError: If there are more than 26.
    """
    if len(texts) > len(string.ascii_uppercase):
        raise RecordError(DropReason.BAD_OPTIONS, f"expected at most 26 options, got {len(texts)}")
    return marked(dict(zip(string.ascii_uppercase, texts, strict=False)))


def marked(options: Mapping[str, str]) -> dict[str, str]:
    """Returns options without outer blanks, every one of them with a text of its own; see `lettered`."""
    result: dict[str, str] = {}
    for label, text in options.items():
        plain = text.strip() or "(blank)"
        while twin := next((other for other, known in result.items() if known == plain), None):
            plain = f"{plain} (the same as {twin})"
        result[label] = plain
    return result


def marked_record(row: Row, number: int) -> Record:
    """Returns a row that is a record already, its options marked where two are equal or one is blank."""
    del number
    stored = row.get("options")
    options = parse_json(stored) if isinstance(stored, str) else stored
    if not isinstance(options, Mapping):
        return row
    options = {label: text for label, text in options.items() if text is not None}
    if not all(isinstance(text, str) for text in options.values()):
        return row
    plain = {label: text.strip() for label, text in options.items()}
    if all(plain.values()) and len({*plain.values()}) == len(plain):
        return row
    asked, label, answer = marked(options), row.get("answer_label"), row.get("answer")
    if isinstance(label, str) and isinstance(answer, str) and answer.strip() == plain.get(label):
        answer = asked[label]
    return {**row, "options": asked, "answer": answer}


def wanted_text(row: Row, name: str) -> str:
    """Returns a text that a row must have, outer blanks cut.

    Raises:
        RecordError: If it has none.
    """
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RecordError(DropReason.BAD_FIELD, f"`{name}` must hold text, got {value!r:.80}")
    return value.strip()


def encoded_pictures(row: Row, names: Sequence[str]) -> list[object]:
    """Returns the pictures of a row in the order of their columns, as they are stored."""
    return [row[name] for name in names if row.get(name) is not None]
