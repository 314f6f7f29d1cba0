# SPDX-License-Identifier: Apache-2.0
"""Columns of a table that holds samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medvlt.data.samples import LightAccess
from medvlt.data.schema import FIELDS, PACKED_COLUMN, UID_COLUMN, to_record
from medvlt.types import Sample

if TYPE_CHECKING:
    from datasets import Features

_TYPE_NAMES = {str: "string", bool: "bool", int: "int64", float: "float64"}


@dataclass(frozen=True, slots=True)
class TableLayout:
    """What a table needs besides the columns that every record has.

    Attributes:
        index_type: "int64", or "string" where some `dataset_index` is text.
        extra: Type of each extra column, by name.
        packed: Extra keys whose values have no single simple type; they share one column of JSON.
        has_uid: Whether some sample's uid is not the one its content gives.
    """

    index_type: str
    extra: dict[str, str]
    packed: frozenset[str]
    has_uid: bool

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> TableLayout:
        """Returns the layout that these samples need; looks at every sample, not at pictures."""
        index_types: set[type] = set()
        extra_types: defaultdict[str, set[type]] = defaultdict(set)
        has_uid = False
        for sample in _light(samples):
            index_types.add(type(sample.dataset_index))
            record = to_record(sample)
            has_uid |= UID_COLUMN in record
            for key in record.keys() - {*FIELDS, UID_COLUMN}:
                extra_types[key].add(type(record[key]))
        simple = {
            key: _TYPE_NAMES[next(iter(kinds))]
            for key, kinds in sorted(extra_types.items())
            if len(kinds) == 1 and kinds <= _TYPE_NAMES.keys()
        }
        return cls(
            index_type="int64" if index_types <= {int} else "string",
            extra=simple,
            packed=frozenset(extra_types.keys() - simple.keys()),
            has_uid=has_uid,
        )

    def features(self) -> Features:
        """Returns the columns in the types of `datasets`."""
        from datasets import Features, Image, List, Value

        columns: dict[str, Value | List] = {name: Value("string") for name in FIELDS}
        columns["images"] = List(Image())
        columns["dataset_index"] = Value(self.index_type)
        columns["pass_count"] = Value("int64")
        columns |= {key: Value(kind) for key, kind in self.extra.items()}
        if self.has_uid:
            columns[UID_COLUMN] = Value("string")
        if self.packed:
            columns[PACKED_COLUMN] = Value("string")
        return Features(columns)


def _light(samples: Sequence[Sample]) -> Iterator[Sample]:
    if isinstance(samples, LightAccess):
        return (samples.light(index) for index in range(len(samples)))
    return iter(samples)
