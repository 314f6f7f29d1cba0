# SPDX-License-Identifier: Apache-2.0
"""The ledger of difficulty: for every question how often a model answered it right, and what else is known of it.

A Parquet file with one row per question: `uid`, `dataset_name`, `dataset_index` (as text); for each probe, which is one
model with one prompt, the columns `{probe}/{column}` of `COLUMNS`; and marks, `mark/{name}`, true, false, or null where
a question was not examined. Another probe adds columns, other questions add rows. What was run is in the schema's
metadata, as JSON under `medvlt.ledger`.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from medvlt.curation.probe import COLUMNS, COUNTS, NAME, Probe, check_row, described
from medvlt.data.files import replacing
from medvlt.data.samples import uids_fingerprint
from medvlt.errors import DataError

__all__ = ["COLUMNS", "COUNTS", "Ledger", "Probe", "check_writable", "merge_ledgers", "update_ledger"]

QUESTION = ("uid", "dataset_name", "dataset_index")
"""Columns that name a question."""

FORMAT = 1
"""Of the file; raised when older code would misread it."""

METADATA = b"medvlt.ledger"
"""Key in the schema's metadata."""


class Ledger:
    """Counts and marks by question. Changes give a new ledger.

    Args:
        columns: Those of the questions, probes and marks; lists of one length, null where nothing is known.
        probes: The probes.
        marks: Names of the marks, each with what is known of its making.

    Raises:
        DataError: If columns, probes and marks do not fit one another.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[Any]] | None = None,
        probes: Sequence[Probe] = (),
        marks: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._columns = {name: list(values) for name, values in (columns or {name: [] for name in QUESTION}).items()}
        self.probes: Mapping[str, Probe] = {probe.name: probe for probe in probes}
        self.about_marks: Mapping[str, Mapping[str, Any]] = dict(marks or {})
        self._check()
        self.uids: tuple[str, ...] = tuple(self._columns["uid"])
        self._rows = {uid: row for row, uid in enumerate(self.uids)}

    @property
    def marks(self) -> tuple[str, ...]:
        """Names of the marks."""
        return tuple(self.about_marks)

    def __len__(self) -> int:
        return len(self.uids)

    @classmethod
    def read(cls, path: str | Path) -> Ledger:
        """Reads a ledger.

        Raises:
            DataError: If there is none, or it is not whole, or of a format that this version does not know.
        """
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

        path = Path(path)
        if path.is_dir():
            raise DataError(f"expected the file of a ledger, but {path} is a folder; name the file in it")
        if not path.is_file():
            raise DataError(f"there is no ledger at {path}; make one: medvlt predict --config curate/m23k_3b.yaml")
        try:
            with ParquetFile(path) as file:
                table = file.read()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"{path} is not a whole Parquet file: {error}; restore it, or write it anew: run the `medvlt predict` "
                "that made it again, nothing that its completion store has is sampled anew"
            ) from error
        try:
            about = json.loads((table.schema.metadata or {})[METADATA])
            number, complete = about["format"], about["complete"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is a Parquet file, but no ledger; name the file that callbacks.PassCountLedger wrote"
            ) from error
        if number != FORMAT:
            raise DataError(f"{path} is a ledger of format {number}, known is {FORMAT}; use the medvlt that wrote it")
        if complete is not True:
            raise DataError(f"{path} is an unfinished ledger; run the `medvlt predict` that began it again")
        try:
            probes = [Probe(**probe) for probe in about["probes"]]
            return cls(table.to_pydict(), probes, about["marks"])
        except (DataError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is a damaged ledger: {error}; restore it, or delete it and run the `medvlt predict` that made "
                "it again, nothing that its completion store has is sampled anew"
            ) from error

    def write(self, path: str | Path) -> None:
        """Writes the file, replacing what lies there, whole or not at all."""
        import pyarrow
        from pyarrow import parquet

        about = {
            "format": FORMAT,
            "complete": True,
            "probes": [asdict(probe) for probe in self.probes.values()],
            "marks": self.about_marks,
            "note": "Research software, not for clinical use.",
        }
        fields = [(name, _arrow_type(name)) for name in self._columns]
        schema = pyarrow.schema(fields, metadata={METADATA: json.dumps(about)})
        with replacing(Path(path), overwrite=True) as temporary:
            parquet.write_table(pyarrow.table(self._columns, schema=schema), temporary)

    def column(self, name: str) -> dict[str, Any]:
        """Returns uid to value, questions without a value left out.

        Args:
            name: Such as `dataset_name`, `my_probe/strict` or `mark/my_mark`.

        Raises:
            DataError: If there is no such column.
        """
        if name not in self._columns:
            raise DataError(f"the ledger has no column {name!r}; it has: {', '.join(self._columns)}")
        return {uid: value for uid, value in zip(self.uids, self._columns[name], strict=True) if value is not None}

    def rows(self, probe: str) -> dict[str, dict[str, Any]]:
        """Returns uid to the columns of a probe, questions that it was not asked left out."""
        columns = {name: self.column(f"{probe}/{name}") for name in COLUMNS}
        return {uid: {name: columns[name][uid] for name in COLUMNS} for uid in columns["n"]}

    def questions(self) -> dict[str, tuple[str, str]]:
        """Returns uid to (name of the data set, index in it)."""
        named = zip(self._columns["dataset_name"], self._columns["dataset_index"], strict=True)
        return dict(zip(self.uids, named, strict=True))

    def with_probe(
        self,
        probe: Probe,
        rows: Mapping[str, Mapping[str, Any]],
        questions: Mapping[str, tuple[str, int | str]] | None = None,
    ) -> Ledger:
        """Returns a ledger with the counts of a probe. Counts of the same probe for other questions stay.

        Args:
            probe: The probe.
            rows: Uid to `COUNTS`; `pictures`, by default 0, and `grader`, by default the probe's version.
            questions: Uid to (name of the data set, index in it), for questions that are new. What is not given is read
                off a uid of the usual form.

        Raises:
            DataError: If the ledger has a probe of this name with other settings, or counts are impossible.
        """
        complete = {uid: {"pictures": 0, "grader": probe.grader_version, **row} for uid, row in sorted(rows.items())}
        for uid, row in complete.items():
            check_row(probe, uid, row)
        self.check_probe(probe, complete)
        before = self.column(f"{probe.name}/pictures") if probe.name in self.probes else {}
        for uid, row in complete.items():
            if before.get(uid, row["pictures"]) != row["pictures"]:
                raise DataError(
                    f"probe {probe.name!r} showed {before[uid]} pictures with question {uid}, now {row['pictures']}; "
                    "choose another name for the probe"
                )
        columns = self._grown(list(complete), questions or {})
        places = {uid: row for row, uid in enumerate(columns["uid"])}
        for name in COLUMNS:
            values = columns.setdefault(f"{probe.name}/{name}", [None] * len(places))
            for uid, row in complete.items():
                values[places[uid]] = row[name]
        probes = {**self.probes, probe.name: described(probe, columns)}
        return Ledger(columns, list(probes.values()), self.about_marks)

    def check_probe(self, probe: Probe, uids: Container[str]) -> None:
        """Raises DataError if the ledger has a probe of this name whose counts do not go together with new ones.

        Args:
            probe: The probe.
            uids: Of the questions that it is asked now.
        """
        old = self.probes.get(probe.name)
        if old is None:
            return
        advice = "choose another name for the probe"
        if differences := probe.differences(old):
            raise DataError(
                f"the ledger has a probe {probe.name!r} with other settings (now and there): {'; '.join(differences)}; "
                f"{advice}"
            )
        others = sum(uid not in uids for uid in self.column(f"{probe.name}/n"))
        if probe.n != old.n and others:
            raise DataError(
                f"probe {probe.name!r} has n={old.n} and now n={probe.n}, and {others} of its questions are not asked "
                f"now; {advice}, or ask all of them"
            )

    def with_marks(
        self,
        marks: Mapping[str, Mapping[str, bool | None]],
        about: Mapping[str, Any] | None = None,
        questions: Mapping[str, tuple[str, int | str]] | None = None,
    ) -> Ledger:
        """Returns a ledger with marks. An older mark of the same name stays on questions that are not examined now.

        Args:
            marks: Name to (uid to whether the question has the mark), of the examined questions; None takes back what
                an older mark says, for a question that counts as not examined now.
            about: How they were made, such as thresholds; anything that JSON holds.
            questions: As for `with_probe`.
        """
        if bad := [name for name in marks if not NAME.fullmatch(name)]:
            raise DataError(f"a mark's name may hold letters, digits, '_', '-', '.'; got {bad[0]!r}")
        columns = self._grown(sorted({uid for found in marks.values() for uid in found}), questions or {})
        places = {uid: row for row, uid in enumerate(columns["uid"])}
        for name, found in marks.items():
            values = columns.setdefault(f"mark/{name}", [None] * len(places))
            for uid, value in found.items():
                values[places[uid]] = None if value is None else bool(value)
        known = dict(self.about_marks) | {name: dict(about or {}) for name in marks}
        return Ledger(columns, [*self.probes.values()], known)

    def merged(self, other: Ledger) -> Ledger:
        """Returns a ledger that holds what either holds.

        Raises:
            DataError: If the two say different things of a question.
        """
        merged = self
        for probe in other.probes.values():
            rows = other.rows(probe.name)
            mine = self.rows(probe.name) if probe.name in self.probes else {}
            _check_agreement(
                f"probe {probe.name!r}", mine, rows,
                "give one of the two another name: run its `medvlt predict` again with another `probe`, nothing that "
                "its completion store has is sampled anew",
            )  # fmt: skip
            merged = merged.with_probe(probe, rows, other.questions())
        for name, about in other.about_marks.items():
            found = other.column(f"mark/{name}")
            mine = self.column(f"mark/{name}") if name in self.about_marks else {}
            _check_agreement(f"mark {name!r}", mine, found, "make the mark anew in one of them")
            merged = merged.with_marks(
                {name: found}, dict(self.about_marks.get(name, {})) | dict(about), other.questions()
            )
        return merged

    def _grown(self, uids: Sequence[str], questions: Mapping[str, tuple[str, int | str]]) -> dict[str, list[Any]]:
        """Copies the columns, with rows for questions that are new."""
        new = [uid for uid in uids if uid not in self._rows]
        named = [questions.get(uid) or _named_by(uid) for uid in new]
        added: dict[str, list[Any]] = {
            "uid": new,
            "dataset_name": [name for name, _ in named],
            "dataset_index": [str(index) for _, index in named],
        }
        return {name: [*values, *added.get(name, [None] * len(new))] for name, values in self._columns.items()}

    def _check(self) -> None:
        expected = [*QUESTION, *(f"{probe}/{name}" for probe in self.probes for name in COLUMNS)]
        expected += [f"mark/{name}" for name in self.about_marks]
        if strange := set(expected) ^ self._columns.keys():
            raise DataError(f"its columns do not fit its probes and marks: {', '.join(sorted(strange))}")
        if len({len(values) for values in self._columns.values()}) > 1:
            raise DataError("its columns have different lengths")
        uids = self._columns["uid"]
        if None in uids or len(set(uids)) != len(uids):
            raise DataError("a uid is missing or there twice")
        for probe in self.probes.values():
            asked = [value is not None for value in self._columns[f"{probe.name}/n"]]
            for name in COLUMNS:
                if [value is not None for value in self._columns[f"{probe.name}/{name}"]] != asked:
                    raise DataError(f"the columns of probe {probe.name!r} have different questions")
            found = uids_fingerprint(uid for uid, there in zip(uids, asked, strict=True) if there)
            if (sum(asked), found) != (probe.questions, probe.fingerprint):
                raise DataError(
                    f"probe {probe.name!r} was asked {probe.questions} questions ({probe.fingerprint}), the ledger has "
                    f"counts of {sum(asked)} ({found})"
                )


def update_ledger(path: str | Path, change: Callable[[Ledger], Ledger]) -> Ledger:
    """Changes a ledger file, or makes it, while no other process does; returns what was written.

    Args:
        path: The file. A hidden lock file stays beside it.
        change: From the present ledger, empty if there is none, to the new one. If it raises, the file stays as it was.
    """
    path = Path(path)
    with _locked(path):
        changed = change(Ledger.read(path) if path.exists() else Ledger())
        changed.write(path)
    return changed


def check_writable(path: str | Path) -> None:
    """Finds out before hours of work whether `update_ledger` can write a file, and whether what is there can be read.

    Makes missing folders, takes the lock and releases it, and writes a file that is removed at once.

    Raises:
        DataError: If the path is a folder, cannot be written or locked, or holds something else than a ledger.
    """
    path = Path(path)
    with _locked(path):
        if path.exists():
            Ledger.read(path)
        try:
            with TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise _cannot_write(path, error) from error


def merge_ledgers(ledgers: list[Path], output: Path, overwrite: bool = False) -> None:
    """Puts several ledgers together, such as those of two machines.

    Args:
        ledgers: The files, at least two; on a command line '[a.parquet, b.parquet]'. Probes of one name must have the
            same settings, and counts of one question must be equal.
        output: The file to write.
        overwrite: Whether it may replace another.
    """
    if len(ledgers) < 2:
        raise DataError(f"expected at least two ledgers, got {len(ledgers)}; give ledgers='[a.parquet, b.parquet]'")
    if output.exists() and not overwrite:
        raise DataError(f"{output} exists; choose another path or set overwrite=true")
    merged = Ledger()
    for path in ledgers:
        merged = merged.merged(Ledger.read(path))
    merged.write(output)
    print(f"{output}: {len(merged)} questions, probes: {', '.join(merged.probes) or 'none'}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    if path.is_dir():
        raise DataError(f"expected the file of a ledger, but {path} is a folder; add the name of the file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        raise _cannot_write(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise DataError(
                f"cannot lock {file.name}: {error}; its file system has no locks (flock), without which two jobs could "
                f"lose each other's counts; put {path.name} on another, such as a local disk"
            ) from error
        yield


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot write beside {path}: {error}; choose a folder that may be written and has space")


def _arrow_type(name: str) -> Any:
    import pyarrow

    if name.startswith("mark/"):
        return pyarrow.bool_()
    if name in QUESTION or name.endswith("/grader"):
        return pyarrow.string()
    return pyarrow.float64() if name.endswith("/mean_tokens") else pyarrow.int32()


def _check_agreement(what: str, mine: Mapping[str, Any], others: Mapping[str, Any], advice: str) -> None:
    different = [uid for uid in others if uid in mine and mine[uid] != others[uid]]
    if different:
        examples = "; ".join(f"{uid}: {mine[uid]} and {others[uid]}" for uid in different[:3])
        raise DataError(f"the ledgers disagree on {what} for {len(different)} questions, such as {examples}; {advice}")


def _named_by(uid: str) -> tuple[str, str]:
    name, _, rest = uid.rpartition(":")[0].rpartition(":")
    return name, rest
