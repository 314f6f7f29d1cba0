# SPDX-License-Identifier: Apache-2.0
"""The six benchmarks as the authors of MedVLThinker published them, in one set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from medvlt.curation.stored import stored
from medvlt.data.drops import DropReason, RecordError
from medvlt.data.mixture import Subset
from medvlt.data.samples import SampleSet, Source
from medvlt.data.schema import Record
from medvlt.errors import ConfigurationError, DataError
from medvlt.evaluation.benchmarks.checks import BenchmarkChecks
from medvlt.evaluation.benchmarks.originals import marked_record
from medvlt.evaluation.benchmarks.rows import Part, Row, StoredRows, read_rows, stored_rows
from medvlt.evaluation.published import QUESTIONS

PUBLISHED = "UCSC-VLAA/MedVLThinker-Eval"
"""The set on the Hub."""


@dataclass(frozen=True)
class MedVLThinkerEval(BenchmarkChecks, Source):
    """One of the six benchmarks out of the published set, split `test`.

    The set on the Hub is opened once per process, whichever benchmarks are taken of it, and its rows stay on disk.

    Args:
        benchmark: pmc_vqa, MMMU-medical, MedXpertQA-MM, pathvqa_closed, slake_closed or vqa_rad_closed.
        source: The set: a name on the Hub, a folder, a file, or a source.
        revision: Commit, branch or tag of a name on the Hub.
        expected: How many questions there must be; null stands for the published number.
    """

    benchmark: str
    source: str | Path | Source = PUBLISHED
    revision: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.benchmark not in QUESTIONS:
            raise ConfigurationError(
                f"benchmark must be one of {', '.join(QUESTIONS)}, got {self.benchmark!r}; any other set is a "
                "`Benchmark`"
            )

    @property
    def expected_rows(self) -> int:
        """How many questions there must be."""
        return QUESTIONS[self.benchmark] if self.expected is None else self.expected

    def load(self) -> SampleSet:
        """Reads the rows of the benchmark and counts them.

        Raises:
            DataError: If they cannot be read, or are not all there.
        """
        if isinstance(self.source, Source):
            source = stored(self.source, revision=self.revision)
            return self.checked(Subset(source, self.benchmark).load(), part=True)
        rows = self._rows(self.source)
        if "dataset_name" not in rows.columns:
            raise DataError(
                f"{rows.source}: expected the column dataset_name, which tells the benchmarks apart, got "
                f"{', '.join(sorted(rows.columns))}; read a set of one benchmark with `Benchmark`"
            )
        own = rows.of([self.benchmark], unnamed=None, source=f"{rows.source} ({self.benchmark})")
        return self.checked(
            read_rows(own, named_record, self.read_checks, dataset_name=self.benchmark, pictures=("images",))
        )

    def _rows(self, place: str | Path) -> StoredRows:
        if Path(place).exists():
            return stored_rows(place, (Part(None, "test"),), self.revision)
        return _hub_rows(str(place), self.revision)


@lru_cache(maxsize=4)
def _hub_rows(name: str, revision: str | None) -> StoredRows:
    return stored_rows(name, (Part(None, "test"),), revision)


def named_record(row: Row, number: int) -> Record:
    """Returns the record of a row that says which benchmark it is of.

    Raises:
        RecordError: If it does not.
    """
    if not row.get("dataset_name"):
        raise RecordError(DropReason.BAD_FIELD, "`dataset_name` is missing: the row may be of any benchmark of the set")
    return marked_record(row, number)
