# SPDX-License-Identifier: Apache-2.0
"""Samples of a table on disk, built when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from medvlt.data.readers import ReadChecks, RecordReader, place_images
from medvlt.data.samples import BuiltSamples, SampleSet, View
from medvlt.data.schema import Record, parse_record
from medvlt.types import Sample

if TYPE_CHECKING:
    from datasets import Dataset


class TableSamples(BuiltSamples):
    """All rows of a `datasets.Dataset` as samples.

    The table stays memory-mapped on disk. A sample and its encoded pictures are built at each access, so that a set of
    any number of pictures needs no memory, and can be sent to the workers of a loader by the name of its files.

    Args:
        table: The rows, every one of them known to be good.
        dataset_name: Name of records that have none.
        image_root: Folder that pictures given as paths must lie in.
        open_questions: Whether questions without options are allowed.
    """

    def __init__(self, table: Dataset, *, dataset_name: str, image_root: Path | None, open_questions: bool) -> None:
        # the arrow format hands out stored values: `datasets` would decode every picture
        self._rows = table.with_format("arrow")
        self._light_rows = self._rows.remove_columns([name for name in table.column_names if name == "images"])
        self.dataset_name = dataset_name
        self.image_root = image_root
        self.open_questions = open_questions

    def __len__(self) -> int:
        return len(self._rows)

    def build(self, index: int) -> Sample:
        """Returns the sample with its encoded pictures."""
        return place_images(self._parse(self._rows[index].to_pylist()[0], index), self.image_root)

    def light(self, index: int) -> Sample:
        """Returns the sample without its pictures."""
        return self._parse(self._light_rows[index].to_pylist()[0], index, light=True)

    def records(self) -> Iterator[Record]:
        """Yields the stored rows in order."""
        for batch in self._rows.iter(batch_size=64):
            yield from batch.to_pylist()

    def _parse(self, record: Record, row: int, *, light: bool = False) -> Sample:
        return parse_record(
            record, dataset_name=self.dataset_name, row=row, open_questions=self.open_questions, light=light
        )


def read_table(
    table: Dataset, checks: ReadChecks, *, source: str, dataset_name: str, image_root: Path | None
) -> SampleSet:
    """Checks every row of a table and returns those that can be used, lazily.

    Args:
        table: The rows.
        checks: What to check.
        source: The table in words, for messages.
        dataset_name: Name of records that have none.
        image_root: Folder that pictures given as paths must lie in; None allows no paths.

    Raises:
        DataError: If the table is empty or too many rows cannot be used.
    """
    samples = TableSamples(
        table, dataset_name=dataset_name, image_root=image_root, open_questions=checks.open_questions
    )
    reader = RecordReader(checks, source=source, dataset_name=dataset_name, image_root=image_root)
    rows, uids = [], []
    for row, sample in reader.accept(samples.records(), len(samples)):
        rows.append(row)
        uids.append(sample.uid)
    report = reader.finish()
    if len(rows) == len(samples):
        return SampleSet(samples, report, uids=uids)
    return SampleSet(View(SampleSet(samples), rows), report, uids=uids)
