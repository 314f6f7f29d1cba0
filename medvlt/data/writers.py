# SPDX-License-Identifier: Apache-2.0
"""Sets of samples to files that the sources read back: the same uids, texts and pictures.

A picture that is a file or encoded bytes is stored byte by byte; a decoded one becomes a PNG, without loss.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from medvlt.data.files import replacing, sweep_leftovers
from medvlt.data.layout import TableLayout
from medvlt.data.schema import PACKED_COLUMN, to_record
from medvlt.errors import DataError
from medvlt.types import ImageSource, Sample

ROWS_PER_GROUP = 100
"""Rows that are in memory together, and of one Parquet row group: few, since pictures are large."""


def write_jsonl(samples: Sequence[Sample], path: str | Path, *, overwrite: bool = False) -> None:
    """Writes one JSON object per line.

    Pictures that lie in the file's folder are referred to; others go to the folder `{stem}_images` beside the file,
    named by their content.

    Raises:
        DataError: If the file exists and may not be replaced, or cannot be written.
    """
    path = Path(path)
    sweep_leftovers(path)
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("w", encoding="utf-8") as file:
        for sample in samples:
            record = to_record(sample)
            if sample.images:
                record["images"] = [_beside(image, path) for image in sample.images]
            file.write(_json(record, sample.uid) + "\n")


def write_parquet(samples: Sequence[Sample], path: str | Path, *, overwrite: bool = False) -> None:
    """Writes one Parquet file with the pictures inside, as `datasets.Image`; the Hub shows it as it is.

    Raises:
        DataError: If the file exists and may not be replaced, or cannot be written.
    """
    from pyarrow.parquet import ParquetWriter  # type: ignore[import-untyped]

    layout = TableLayout.of(samples)
    schema = layout.features().arrow_schema
    sweep_leftovers(Path(path))
    with replacing(Path(path), overwrite=overwrite) as temporary, ParquetWriter(temporary, schema) as writer:
        for table in _tables(samples, layout, schema, path):
            writer.write_table(table)


def write_saved(
    samples: Sequence[Sample],
    path: str | Path,
    *,
    files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a folder that `datasets.load_from_disk` reads.

    Args:
        samples: What to write.
        path: The folder.
        files: Further files of the folder by name, such as a data card; they appear together with the rows.
        overwrite: Whether a folder written by `save_to_disk` that lies there may be replaced.

    Raises:
        DataError: If the folder exists and may not be replaced, or cannot be written.
    """
    import datasets
    import pyarrow  # type: ignore[import-untyped]

    path = Path(path)
    layout = TableLayout.of(samples)
    schema = layout.features().arrow_schema
    sweep_leftovers(path)
    with replacing(path, overwrite=overwrite) as temporary, _scratch(temporary) as rows:
        with pyarrow.OSFile(str(rows), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
            for table in _tables(samples, layout, schema, path):
                writer.write_table(table)
        datasets.Dataset.from_file(str(rows)).save_to_disk(str(temporary))
        for name, content in (files or {}).items():
            target = temporary / name
            if Path(name).name != name or target.exists():
                raise DataError(f"expected the plain name of a new file in {path}, got {name!r}; choose another")
            target.write_bytes(content)


@contextmanager
def _scratch(temporary: Path) -> Iterator[Path]:
    """Gives the name of a file beside a temporary one, gone at the end."""
    rows = temporary.with_name(f"{temporary.stem}.rows.tmp")
    try:
        yield rows
    finally:
        rows.unlink(missing_ok=True)


def encoded(image: ImageSource) -> bytes:
    """Returns the encoded file of a picture: its own bytes where it has any, else a PNG.

    Raises:
        DataError: If it is a file that cannot be read.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        try:
            return image.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the picture {image}: {error}; put it back or leave the sample out") from error
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _beside(image: ImageSource, path: Path) -> str:
    folder = path.parent.resolve()
    if isinstance(image, Path) and (real := image.resolve()).is_relative_to(folder) and real.is_file():
        return real.relative_to(folder).as_posix()
    content = encoded(image)
    suffix = image.suffix if isinstance(image, Path) else _suffix(content)
    target = folder / f"{path.stem}_images" / f"{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
    if not target.exists():
        with replacing(target, overwrite=True) as temporary:
            temporary.write_bytes(content)
    return target.relative_to(folder).as_posix()


def _suffix(content: bytes) -> str:
    with Image.open(io.BytesIO(content)) as image:
        return f".{(image.format or 'img').lower()}"


def _tables(samples: Sequence[Sample], layout: TableLayout, schema: Any, path: str | Path) -> Iterator[Any]:
    """Yields the rows as Arrow tables of a few rows each."""
    import pyarrow

    rows = (_row(sample, layout) for sample in samples)
    while group := list(islice(rows, ROWS_PER_GROUP)):
        try:
            yield pyarrow.Table.from_pylist(group, schema=schema)
        except (pyarrow.ArrowException, OverflowError) as error:
            raise DataError(f"cannot store the samples in {path} as a table: {error}") from error


def _row(sample: Sample, layout: TableLayout) -> dict[str, Any]:
    record = to_record(sample)
    if together := {key: record.pop(key) for key in list(record) if key in layout.packed}:
        record[PACKED_COLUMN] = _json(together, sample.uid)
    if sample.images:
        record["images"] = [{"bytes": encoded(image), "path": None} for image in sample.images]
    if layout.index_type == "string":
        record["dataset_index"] = str(sample.dataset_index)
    return record


def _json(value: dict[str, Any], uid: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise DataError(f"sample {uid} has an extra value that JSON cannot hold: {error}; make it text") from error
