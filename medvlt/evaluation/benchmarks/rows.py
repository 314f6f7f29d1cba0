# SPDX-License-Identifier: Apache-2.0
"""Rows as somebody else stored them, turned into samples when asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from medvlt.curation.stored import kind_of
from medvlt.data.drops import ReadReport, RecordError
from medvlt.data.readers import ReadChecks, RecordReader, place_images
from medvlt.data.samples import BuiltSamples, SampleSet, View
from medvlt.data.schema import Record, parse_record
from medvlt.data.sources import HubDataset, JSONLines, Parquet, SavedDataset, json_records
from medvlt.errors import ConfigurationError, DataError
from medvlt.types import Sample

if TYPE_CHECKING:
    from datasets import Dataset

Row: TypeAlias = Mapping[str, Any]
"""One row by column, as it is stored."""

Convert: TypeAlias = Callable[[Row, int], Record | None]
"""Row and its number, from 0, to its record; None for a row that is not of the benchmark. It may lack its pictures. It
raises a RecordError for a row that cannot be used."""


@dataclass(frozen=True)
class Part:
    """A configuration and a split on the Hub.

    Attributes:
        subset: The configuration, None where there is only one.
        split: The split.
    """

    subset: str | None
    split: str


@dataclass(frozen=True)
class StoredRows:
    """All rows of a place.

    Attributes:
        source: The place in words.
        rows: A table, or the rows of a file of lines with an error for each that holds none.
        columns: Names of the columns.
        folder: Folder that pictures stored as paths lie in; None if it has none.
        name: Data set of rows that name none.
        numbers: Number of each row in the place, from 0, where these are only some of its rows.
    """

    source: str
    rows: Dataset | list[Record | RecordError]
    columns: frozenset[str]
    folder: Path | None
    name: str
    numbers: Sequence[int] | None = None

    def texts(self, names: Sequence[str]) -> Iterator[tuple[Row, int]]:
        """Yields every readable row with its position; of a table, these columns only."""
        rows = self.rows if isinstance(self.rows, list) else self.rows.select_columns(list(names))
        yield from ((row, number) for number, row in enumerate(rows) if not isinstance(row, RecordError))

    def of(self, names: Collection[str], *, unnamed: str | None, source: str) -> StoredRows:
        """Returns the rows of some data sets, and those of which nobody can tell; of a table, one column is read.

        Args:
            names: Values of the column `dataset_name`.
            unnamed: Data set of rows that name none; None for a place in which every row must name one.
            source: These rows in words.

        Raises:
            DataError: If there is no row of a data set.
        """
        if isinstance(self.rows, list):
            found = [None if isinstance(row, RecordError) else row.get("dataset_name") or unnamed for row in self.rows]
        elif "dataset_name" in self.columns:
            found = [name or unnamed for name in self.rows["dataset_name"]]
        else:
            found = [unnamed] * len(self.rows)
        chosen = [number for number, name in enumerate(found) if name is None or name in names]
        if missing := [name for name in names if name not in found]:
            known = Counter(str(name) for name in found if name is not None)
            raise DataError(
                f"{self.source}: no question of {', '.join(missing)}; its data sets: "
                + ", ".join(f"{name} ({count:,})" for name, count in known.items())
            )
        rows = [self.rows[number] for number in chosen] if isinstance(self.rows, list) else self.rows.select(chosen)
        return replace(self, rows=rows, source=source, numbers=chosen)


def stored_rows(place: str | Path, parts: Sequence[Part] = (), revision: str | None = None) -> StoredRows:
    """Returns the rows of a place, unchecked.

    Args:
        place: A JSON Lines or Parquet file, a folder written by `save_to_disk` or in the Hub's layout, or a name on
            the Hub.
        parts: What to take of a set on the Hub, in order. Whatever else a place is, all of its rows are taken; of a
            saved folder with several splits, that of the first part. By default the split `train` of a set on the
            Hub, and the only split of a folder.
        revision: Commit, branch or tag of a name on the Hub.

    Raises:
        ConfigurationError: If a revision is asked of anything but a name on the Hub.
        DataError: If it cannot be read.
    """
    kind, path = kind_of(place), Path(place)
    if revision is not None and (kind is not HubDataset or path.exists()):
        raise ConfigurationError(f"revision={revision!r} belongs to a name on the Hub, got {place}; leave it out")
    if kind is JSONLines:
        try:
            records = list(json_records(path))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}; correct the path") from error
        columns = {name for record in records if not isinstance(record, RecordError) for name in record}
        return StoredRows(str(path), records, frozenset(columns), path.parent, path.stem)
    if kind is HubDataset:
        from datasets import concatenate_datasets

        tables = [
            HubDataset(str(place), split=part.split, subset=part.subset, revision=revision).table()
            for part in parts or (Part(None, "train"),)
        ]
        table = tables[0] if len(tables) == 1 else concatenate_datasets(tables)
        return StoredRows(str(place), table, frozenset(table.column_names), None, str(place))
    if kind is Parquet:
        folder = path if path.is_dir() else path.parent
        name = min(path.glob("*.parquet")).stem if path.is_dir() else path.stem
        table = Parquet(str(place)).table()
    else:
        folder, name = path, path.resolve().name
        several = (path / "dataset_dict.json").is_file()
        table = SavedDataset(path, split=parts[0].split if several and parts else None).table()
    return StoredRows(str(place), table, frozenset(table.column_names), folder, name)


class ConvertedRows(BuiltSamples):
    """Rows of a table as samples, converted at every access; the table stays memory-mapped on disk.

    Args:
        table: The rows.
        convert: How a row becomes a record; it is sent to the workers of a loader.
        dataset_name: Name of records that have none.
        pictures: Columns that hold pictures.
        image_root: Folder that pictures given as paths must lie in.
    """

    def __init__(
        self, table: Dataset, convert: Convert, *, dataset_name: str, pictures: Sequence[str], image_root: Path | None
    ) -> None:
        self._rows = table.with_format("arrow")  # stored values: `datasets` would decode every picture
        self._light_rows = self._rows.remove_columns([name for name in table.column_names if name in pictures])
        self.convert = convert
        self.dataset_name = dataset_name
        self.image_root = image_root

    def __len__(self) -> int:
        return len(self._rows)

    def build(self, index: int) -> Sample:
        """Returns the sample with its encoded pictures."""
        return place_images(self._sample(self._rows, index, light=False), self.image_root)

    def light(self, index: int) -> Sample:
        """Returns the sample without its pictures."""
        return self._sample(self._light_rows, index, light=True)

    def rows(self) -> Iterator[Row]:
        """Yields the stored rows in order."""
        for batch in self._rows.iter(batch_size=64):
            yield from batch.to_pylist()

    def _sample(self, table: Dataset, index: int, *, light: bool) -> Sample:
        record = self.convert(table[index].to_pylist()[0], index)
        if record is None:
            raise DataError(f"row {index} of {self.dataset_name} is not of the benchmark; this is a bug")
        return parse_record(record, dataset_name=self.dataset_name, row=index, open_questions=True, light=light)


def read_rows(
    stored: StoredRows, convert: Convert, checks: ReadChecks, *, dataset_name: str, pictures: Sequence[str] = ()
) -> SampleSet:
    """Converts and checks every row, and returns those of the benchmark that can be used; of a table, lazily.

    Args:
        stored: The rows.
        convert: How a row becomes a record.
        checks: What is checked.
        dataset_name: Name of records that have none.
        pictures: Columns that hold pictures.

    Raises:
        DataError: If there is no row.
    """
    reader = _Reader(checks, source=stored.source, dataset_name=dataset_name, image_root=stored.folder)
    numbers: list[int] = []
    if isinstance(stored.rows, list):
        records = _records(stored.rows, convert, numbers)
        samples = [sample for _, sample in reader.accept(records, len(stored.rows))]
        return SampleSet(samples, _report(reader, numbers, stored), uids=[sample.uid for sample in samples])
    table = ConvertedRows(stored.rows, convert, dataset_name=dataset_name, pictures=pictures, image_root=stored.folder)
    kept, uids = [], []
    for position, sample in reader.accept(_records(table.rows(), convert, numbers), len(table)):
        kept.append(numbers[position])
        uids.append(sample.uid)
    return SampleSet(View(SampleSet(table), kept), _report(reader, numbers, stored), uids=uids)


def as_stored(row: Row, number: int) -> Record:
    """Converts nothing: the row is a record."""
    del number
    return row


class _Reader(RecordReader):
    def finish(self) -> ReadReport:
        """Returns the report, also where no record can be used: the checks of a benchmark say so in their own words."""
        if self._dropped and len(self._dropped) == self._read:
            return ReadReport(self.source, self._read, 0, tuple(self._dropped))
        return super().finish()


def _records(rows: Iterable[Row | RecordError], convert: Convert, numbers: list[int]) -> Iterator[Record | RecordError]:
    """Yields the records of the rows that are of the benchmark, and notes their numbers."""
    for number, row in enumerate(rows):
        try:
            record = row if isinstance(row, RecordError) else convert(row, number)
        except RecordError as error:
            record = error
        if record is not None:
            numbers.append(number)
            yield record


def _report(reader: RecordReader, numbers: list[int], stored: StoredRows) -> ReadReport:
    """Returns the report with the numbers of the rows in their place: the reader saw only those of the benchmark."""
    report = reader.finish()
    if stored.numbers is not None:
        numbers = [stored.numbers[number] for number in numbers]
    return replace(report, dropped=tuple(replace(drop, row=numbers[drop.row]) for drop in report.dropped))
