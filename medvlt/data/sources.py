# SPDX-License-Identifier: Apache-2.0
"""Where questions are stored: small classes to be named in YAML, each giving a checked `SampleSet`."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medvlt.data.drops import DropReason, ReadReport, RecordError
from medvlt.data.fields import parse_json
from medvlt.data.mixture import Mixture, Subset
from medvlt.data.readers import ReadChecks, RecordReader
from medvlt.data.samples import SampleSet, Source
from medvlt.data.schema import Record
from medvlt.data.tables import read_table
from medvlt.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "HubDataset",
    "JSONLines",
    "Mixture",
    "Parquet",
    "ReadReport",
    "SampleSet",
    "SavedDataset",
    "Source",
    "Subset",
]


@dataclass(frozen=True)
class JSONLines(ReadChecks, Source):
    """Questions in a file with one JSON object per line.

    Args:
        path: The file, UTF-8. Blank lines are skipped.
        image_root: Folder that the pictures' paths are relative to and must lie in; by default the file's own.
        dataset_name: Name of records that have none; by default the file's name without its suffix.
    """

    path: str | Path
    image_root: str | Path | None = None
    dataset_name: str | None = None

    def load(self) -> SampleSet:
        """Reads the whole file; pictures stay on disk."""
        path = Path(self.path)
        if not path.is_file():
            raise _missing("a JSON Lines file", path)
        reader = RecordReader(
            self,
            source=str(path),
            dataset_name=self.dataset_name or path.stem,
            image_root=Path(self.image_root) if self.image_root is not None else path.parent,
        )
        try:
            total = sum(1 for _ in _lines(path))
            samples = [sample for _, sample in reader.accept(json_records(path), total)]
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
        report = reader.finish()
        return SampleSet(samples, report, uids=[sample.uid for sample in samples])


@dataclass(frozen=True)
class Parquet(ReadChecks, Source):
    """Questions in Parquet files.

    The first read copies the files into the cache of `datasets` (HF_HOME), from where they are memory-mapped.

    Args:
        path: A file, a folder of `*.parquet` files, a pattern such as `train-*.parquet`, or a list of these.
        image_root: Folder that pictures stored as paths must lie in; by default that of the files, if they share one.
        dataset_name: Name of records that have none; by default the first file's name without its suffix.
    """

    path: str | Path | list[str]
    image_root: str | Path | None = None
    dataset_name: str | None = None

    def load(self) -> SampleSet:
        """Checks every row; samples are built when asked for."""
        files, table = self._files(), self.table()
        folders = sorted({str(file.parent.resolve()) for file in files})
        if self.image_root is None and len(folders) > 1 and "images" in table.column_names:
            raise DataError(
                f"expected Parquet files of one folder, got {', '.join(folders)}, and cannot tell in which of them "
                "pictures stored as paths lie; give image_root"
            )
        return read_table(
            table,
            self,
            source=str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more",
            dataset_name=self.dataset_name or files[0].stem,
            image_root=Path(self.image_root) if self.image_root is not None else files[0].parent,
        )

    def table(self) -> Dataset:
        """Returns the rows as they are stored, unchecked."""
        import datasets

        files = [str(file) for file in self._files()]
        try:
            return datasets.Dataset.from_parquet(files)
        except Exception as error:  # pyarrow and datasets share no base
            raise DataError(
                f"cannot read {', '.join(files)} as Parquet files with the same columns: {_cause(error)}"
            ) from error

    def _files(self) -> list[Path]:
        return [
            file
            for path in (self.path if isinstance(self.path, list) else [self.path])
            for file in _parquet_files(path)
        ]


@dataclass(frozen=True)
class SavedDataset(ReadChecks, Source):
    """Questions in a folder written by `datasets`' `save_to_disk`.

    Args:
        path: The folder.
        split: Which split to take, if the folder holds several.
        image_root: Folder that pictures stored as paths must lie in; by default `path`.
        dataset_name: Name of records that have none; by default the folder's name.
    """

    path: str | Path
    split: str | None = None
    image_root: str | Path | None = None
    dataset_name: str | None = None

    def load(self) -> SampleSet:
        """Checks every row; samples are built when asked for."""
        path = Path(self.path)
        return read_table(
            self.table(),
            self,
            source=str(path),
            dataset_name=self.dataset_name or path.resolve().name,
            image_root=Path(self.image_root) if self.image_root is not None else path,
        )

    def table(self) -> Dataset:
        """Returns the rows as they are stored, unchecked."""
        import datasets

        path = Path(self.path)
        if not path.is_dir():
            raise _missing("a folder written by save_to_disk", path)
        try:
            loaded = datasets.load_from_disk(str(path))
        except Exception as error:  # pyarrow and datasets share no base
            raise DataError(
                f"expected a folder written by save_to_disk, and cannot read {path} as one: {_cause(error)}"
            ) from error
        return _one_split(loaded, self.split, str(path))


@dataclass(frozen=True)
class HubDataset(ReadChecks, Source):
    """Questions in a data set on the Hugging Face Hub, such as `UCSC-VLAA/MedVLThinker-Eval`. No code of it is run.

    Args:
        name: Owner and name on the Hub, or a local folder in the Hub's layout.
        split: Which split to take.
        subset: Which configuration to take, if there are several.
        revision: Commit, branch or tag; name a commit to get the same questions for ever.
        dataset_name: Name of records that have none; by default `name`.
    """

    name: str
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    dataset_name: str | None = None

    def load(self) -> SampleSet:
        """Downloads if it must, and checks every row; samples are built when asked for."""
        name = self.dataset_name or self.name
        return read_table(self.table(), self, source=self.name, dataset_name=name, image_root=None)

    def table(self) -> Dataset:
        """Returns the rows as they are stored, unchecked; downloads them if it must."""
        import datasets

        try:
            return datasets.load_dataset(self.name, name=self.subset, split=self.split, revision=self.revision)
        except Exception as error:  # the Hub, the network and datasets share no base
            asked = f"split {self.split!r}, subset {self.subset!r}, revision {self.revision!r}"
            if Path(self.name).exists():
                message = f"cannot load the folder {self.name!r} ({asked}): {_cause(error)}. Check what lies in it"
            else:
                message = (
                    f"there is no file or folder {self.name!r} here (working folder {Path.cwd()}), and it cannot be "
                    f"loaded as a data set on the Hub ({asked}): {_cause(error)}. Correct the path or the names. "
                    "Without a network, name a folder with SavedDataset or Parquet, or run once with a network. If "
                    "the set is gated, accept its terms on its page and run `hf auth login`"
                )
            raise DataError(message) from error


def json_records(path: Path) -> Iterator[Record | RecordError]:
    """Yields the object of every line of a JSON Lines file, blank lines skipped; an error for a line that holds none.

    Raises:
        OSError: If the file cannot be read.
    """
    return map(_record, _lines(path))


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line  # a byte order mark, from Windows
            if line.strip():
                yield line


def _record(line: bytes) -> Record | RecordError:
    try:
        record = parse_json(line.decode())
    except UnicodeDecodeError as error:
        return RecordError(DropReason.BAD_JSON, f"not UTF-8: {error}")
    if not isinstance(record, dict):
        return RecordError(DropReason.BAD_JSON, f"expected one JSON object with different keys, got {line[:80]!r}")
    return record


def _parquet_files(path: str | Path) -> list[Path]:
    folder = Path(path)
    if folder.is_dir():
        files = sorted(folder.glob("*.parquet"))
    elif folder.is_file():
        files = [folder]
    else:
        files = sorted(Path(name) for name in glob.glob(str(path)))
    if not files:
        raise _missing("a Parquet file, a folder of them or a pattern", folder)
    return files


def _one_split(loaded: Dataset | dict[str, Dataset], split: str | None, path: str) -> Dataset:
    splits = loaded if isinstance(loaded, dict) else {}
    if not splits and split is None:
        return loaded
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is None or split not in splits:
        names = ", ".join(splits) or "none: leave `split` out"
        raise DataError(f"{path}: expected `split` to name one of its splits, got {split!r}; its splits: {names}")
    return splits[split]


def _missing(kind: str, path: Path) -> DataError:
    found = "a folder" if path.is_dir() else "a file" if path.is_file() else "nothing"
    return DataError(f"expected {kind} at {path}, found {found} there (working folder {Path.cwd()}); correct the path")


def _cause(error: Exception) -> str:
    """Returns the first line of an error, or of its cause where `datasets` only says that something failed."""
    told = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
    return f"{type(told).__name__}: {told}".splitlines()[0][:300]
