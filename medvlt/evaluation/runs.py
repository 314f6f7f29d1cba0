# SPDX-License-Identifier: Apache-2.0
"""An evaluation on disk: a folder with every graded completion, from which every number is computed again.

`run.json` says what was run and what must be there; `completions.jsonl` holds one completion per line, benchmark by
benchmark, question by question; `pictures/` holds thumbnails of a few questions, for reports.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvlt.curation.card import NOTICE
from medvlt.data.files import file_sha256, flush_names, replacing, sweep_leftovers
from medvlt.data.samples import shuffle_key, uids_fingerprint
from medvlt.errors import DataError, listed
from medvlt.evaluation.records import encode_record, record_problem

FORMAT = 1
RUN_FILE = "run.json"
COMPLETIONS_FILE = "completions.jsonl"
PICTURES_FOLDER = "pictures"

SHOWN = 3
"""Lines or questions that an error names; their number is always given."""

_OF_QUESTION = ("options", "picture_ids", "answer_label")
_OF_COMPLETION = ("sample", "tokens", "finish_reason", "error", "label", "correct", "format_ok", "reason")


@dataclass(frozen=True)
class BenchmarkAnswers:
    """The graded completions of one benchmark: Q questions with n completions each.

    Attributes:
        benchmark: Its name.
        uids: Of the questions, in their order.
        pictures: Ids of each question's pictures; equal contents have equal ids.
        answer_labels: Right letter of each question; None for an open one.
        options: Letter to text, of each question.
        correct: Whether a completion is right, (Q, n).
        format_ok: Whether it has the asked format, (Q, n).
        truncated: Whether it was cut at the token limit, (Q, n).
        failed: Whether it never came, (Q, n); such a completion is wrong and counts.
        tokens: Its length, (Q, n).
        labels: The letter it chose, or None.
        errors: Why a completion never came: (uid, number, message).
    """

    benchmark: str
    uids: tuple[str, ...]
    pictures: tuple[tuple[str, ...], ...]
    answer_labels: tuple[str | None, ...]
    options: tuple[Mapping[str, str], ...]
    correct: npt.NDArray[np.bool_]
    format_ok: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    failed: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.int64]
    labels: tuple[tuple[str | None, ...], ...]
    errors: tuple[tuple[str, int, str], ...]

    @property
    def questions(self) -> int:
        """Number of questions, Q."""
        return len(self.uids)

    @property
    def n(self) -> int:
        """Completions of each question."""
        return int(self.correct.shape[1])

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """Share of each question's completions that is right, (Q,)."""
        means: npt.NDArray[np.float64] = self.correct.mean(axis=1, dtype=np.float64)
        return means

    def select(self, uids: Iterable[str]) -> BenchmarkAnswers:
        """Returns the answers of these questions, in the order of `uids`.

        Raises:
            KeyError: If one of them is not there.
        """
        place = {uid: number for number, uid in enumerate(self.uids)}
        chosen = [place[uid] for uid in uids]
        kept = {self.uids[number] for number in chosen}
        rows: dict[str, Any] = {name: tuple(getattr(self, name)[i] for i in chosen) for name in _PER_QUESTION}
        arrays: dict[str, Any] = {name: getattr(self, name)[chosen] for name in _ARRAYS}
        return replace(self, **rows, **arrays, errors=tuple(error for error in self.errors if error[0] in kept))


_PER_QUESTION = ("uids", "pictures", "answer_labels", "options", "labels")
_ARRAYS = ("correct", "format_ok", "truncated", "failed", "tokens")


@dataclass(frozen=True)
class EvaluationRun:
    """An evaluation as it was stored.

    Attributes:
        folder: Where it lies.
        about: What `run.json` says: label, model, checkpoint, identity, control, sampling, seed, grader, versions, ...
        benchmarks: Name to answers, in the order in which they were asked.
    """

    folder: Path
    about: Mapping[str, Any]
    benchmarks: Mapping[str, BenchmarkAnswers]

    @property
    def label(self) -> str:
        """Name of the run in tables: its label, else its model, else its folder."""
        return str(self.about.get("label") or self.about.get("model") or self.folder.name)

    def records(self, uids: Mapping[str, Iterable[str]]) -> Iterator[dict[str, Any]]:
        """Yields the stored lines of some questions, in the order of the file.

        Args:
            uids: Benchmark to questions.
        """
        wanted = {benchmark: frozenset(chosen) for benchmark, chosen in uids.items()}
        for record in iterate_records(self.folder):
            if record["uid"] in wanted.get(record["benchmark"], ()):
                yield record


def read_run(folder: str | Path) -> EvaluationRun:
    """Reads a run and checks that it is whole: every question of every benchmark with all its completions, unchanged.

    Texts are read and not kept: `EvaluationRun.records` gives those of single questions.

    Raises:
        DataError: If it is missing, unreadable, not whole, or not what was written; with the number of bad lines and
            the first of them.
    """
    path = Path(folder)
    about = read_about(path)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for record in iterate_records(path):
        lines = found.setdefault(record["benchmark"], {}).setdefault(record["uid"], [])
        kept = _OF_COMPLETION if lines else (*_OF_QUESTION, *_OF_COMPLETION)
        lines.append({name: record[name] for name in kept})
    try:
        expected = {name: (int(kept["questions"]), str(kept["uids"])) for name, kept in about["benchmarks"].items()}
        n, digest = int(about["sampling"]["n"]), str(about["completions"]["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_a_run(path, error) from error
    answers: dict[str, BenchmarkAnswers] = {}
    for name, (questions, fingerprint) in expected.items():
        groups = found.pop(name, {})
        _check_whole(path, name, groups, questions, fingerprint, n)
        answers[name] = _answers(name, groups, n)
    if found:
        names = listed(list(found))
        raise DataError(f"{path / COMPLETIONS_FILE} has benchmarks that {RUN_FILE} does not name: {names}")
    if file_sha256(path / COMPLETIONS_FILE) != digest:
        raise DataError(
            f"{path / COMPLETIONS_FILE} was changed after the evaluation: its SHA-256 is not that of {RUN_FILE}; "
            "restore it, or run the evaluation again. `medvlt regrade` grades completions anew without touching them"
        )
    return EvaluationRun(path, about, answers)


def read_about(folder: Path) -> dict[str, Any]:
    """Reads what a run says of itself.

    Raises:
        DataError: If there is no such file, it is not of this format, or has values of another kind.
    """
    try:
        about = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        version = about["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_a_run(folder, error) from error
    if version != FORMAT:
        raise DataError(f"{folder / RUN_FILE} has format {version}, this release reads {FORMAT}; evaluate again")
    if wrong := _wrong_fields(about):
        raise DataError(
            f"{folder / RUN_FILE} expects other kinds of values, got {', '.join(wrong)}; restore it, or evaluate again"
        )
    return dict(about)


def _wrong_fields(about: Mapping[str, Any]) -> list[str]:
    """Returns which values of run.json reports could not read; each may be null or missing."""
    names = ("control", "grader", "versions", "sampling", "regraded_from")
    wrong = [name for name in names if not isinstance(about.get(name), dict | None)]
    found = {name: about[name] for name in wrong}
    inner = (("control", "name", str), ("regraded_from", "grader", dict | None))
    for outer, name, kind in inner:
        value = about.get(outer)
        if isinstance(value, dict) and value and not isinstance(value.get(name), kind):
            found[f"{outer}.{name}"] = value.get(name)
    return [f"{name}: {value!r:.40}" for name, value in found.items()]


def iterate_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a run, read one at a time.

    Raises:
        DataError: At the end, if some lines could not be read: how many, and the first of them.
    """
    path = folder / COMPLETIONS_FILE
    bad: list[str] = []
    count = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    record = json.loads(line)
                    problem = record_problem(record)
                except (ValueError, RecursionError) as error:
                    problem = f"{type(error).__name__}: {error}"
                if not problem:
                    yield record
                    continue
                count += 1
                if len(bad) < SHOWN:
                    bad.append(f"line {number} ({problem})")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; give the folder of an evaluation") from error
    if count:
        raise DataError(
            f"{path}: {count} lines are no stored completions, such as {'; '.join(bad)}; run the evaluation again "
            "(what its store has is not sampled anew)"
        )


def write_run(
    folder: Path,
    about: Mapping[str, Any],
    records: Iterable[Mapping[str, Any]],
    *,
    overwrite: bool = False,
    pictures: Path | None = None,
) -> None:
    """Writes a run; `run.json` comes last, so that a folder with one is whole.

    Args:
        folder: Where to; may hold other files.
        about: What `run.json` is to say; "format", "completions" and "note" are added.
        records: Lines, in order: benchmark, question, number of the completion.
        overwrite: Whether a run that lies there may be replaced; it is, as soon as all lines of the new one are
            written.
        pictures: A folder beside or inside `folder` whose thumbnails become those of the run; it is moved. None leaves
            what is there.

    Raises:
        DataError: If there is a run that may not be replaced, or files that are none of a run's; or it cannot be
            written.
    """
    write_lines(folder, about, map(encode_record, records), overwrite=overwrite, pictures=pictures)


def write_lines(
    folder: Path,
    about: Mapping[str, Any],
    lines: Iterable[bytes],
    *,
    overwrite: bool = False,
    pictures: Path | None = None,
) -> None:
    """Writes a run as `write_run` does, from lines made by `encode_record`, one or several at a time."""
    check_free(folder, overwrite=overwrite)
    check_replaceable(folder)
    digest, count = hashlib.sha256(), 0
    for name in (COMPLETIONS_FILE, RUN_FILE):
        sweep_leftovers(folder / name)
    with replacing(folder / RUN_FILE, overwrite=True) as said:
        with replacing(folder / COMPLETIONS_FILE, overwrite=True) as temporary:
            with temporary.open("wb") as file:
                for chunk in lines:
                    file.write(chunk)
                    digest.update(chunk)
                    count += chunk.count(b"\n")
            stored = {"lines": count, "sha256": digest.hexdigest()}
            content = {"format": FORMAT, **about, "completions": stored, "note": NOTICE}
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            said.write_text(text, encoding="utf-8", errors="replace")
            for path in (temporary, said):
                flush_names(path)  # a full disk may show only here, and the run before is whole still
            (folder / RUN_FILE).unlink(missing_ok=True)  # what it says holds no longer
        if pictures is not None:
            shutil.rmtree(folder / PICTURES_FOLDER, ignore_errors=True)
            pictures.rename(folder / PICTURES_FOLDER)


def check_replaceable(folder: Path) -> None:
    """Makes sure that a run would replace nothing in its folder but what a run wrote.

    Raises:
        DataError: If `completions.jsonl` or `pictures` are something else, or cannot be looked at.
    """
    first, names = b"", []
    try:
        if (folder / COMPLETIONS_FILE).exists():
            with (folder / COMPLETIONS_FILE).open("rb") as file:
                first = file.readline()
        if (folder / PICTURES_FOLDER).exists():
            names = [path.name for path in (folder / PICTURES_FOLDER).iterdir()]
        problem = record_problem(json.loads(first)) if first else ""
    except (ValueError, RecursionError):
        problem = "no JSON"
    except OSError as error:
        problem = str(error)
    if foreign := [name for name in names if not re.fullmatch(r"[0-9a-f]{16}\.jpg", name)]:
        problem = f"{PICTURES_FOLDER}/{foreign[0]}"
    if problem:
        raise DataError(
            f"{folder} has a {COMPLETIONS_FILE} or {PICTURES_FOLDER}/ that no evaluation wrote ({problem}), and one "
            "would replace it; move it away or choose another folder (default_root_dir)"
        )


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuses a folder that has an evaluation which may not be replaced; also before hours of work.

    Raises:
        DataError: If it has.
    """
    if not overwrite and (folder / RUN_FILE).exists():
        raise DataError(f"{folder} has an evaluation already; choose another folder or set overwrite=true")


def utc_now() -> str:
    """Returns the time in UTC, to the second, in ISO 8601: the dates of `run.json`."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def shown_questions(uids: Iterable[str], count: int) -> list[str]:
    """Returns the questions of a benchmark that reports show, at most `count`: drawn by their uids alone."""
    return sorted(uids, key=lambda uid: shuffle_key(0, uid))[:count]


def _check_whole(
    path: Path, name: str, groups: Mapping[str, Sequence[Mapping[str, Any]]], questions: int, fingerprint: str, n: int
) -> None:
    wrong = [uid for uid, lines in groups.items() if [line["sample"] for line in lines] != list(range(n))]
    if wrong:
        raise DataError(
            f"{path}: {len(wrong)} questions of {name} have not completions 0 to {n - 1} in order, such as "
            f"{', '.join(wrong[:SHOWN])}; run the evaluation again"
        )
    if len(groups) != questions or uids_fingerprint(list(groups)) != fingerprint:
        raise DataError(
            f"{path}: {name} was asked {questions} questions, and completions of {len(groups)} are stored"
            f"{'' if len(groups) != questions else ', of others'}; run the evaluation again"
        )


def _answers(name: str, groups: Mapping[str, Sequence[Mapping[str, Any]]], n: int) -> BenchmarkAnswers:
    first = [lines[0] for lines in groups.values()]

    def table(column: str) -> tuple[tuple[Any, ...], ...]:
        return tuple(tuple(line[column] for line in lines) for lines in groups.values())

    def array(values: Any, dtype: type) -> npt.NDArray[Any]:
        return np.array(values, dtype=dtype).reshape(len(groups), n)

    ends = table("finish_reason")
    return BenchmarkAnswers(
        benchmark=name,
        uids=tuple(groups),
        pictures=tuple(tuple(line["picture_ids"]) for line in first),
        answer_labels=tuple(line["answer_label"] for line in first),
        options=tuple(line["options"] for line in first),
        correct=array(table("correct"), np.bool_),
        format_ok=array(table("format_ok"), np.bool_),
        truncated=array([[end == "length" for end in row] for row in ends], np.bool_),
        failed=array([[end == "error" for end in row] for row in ends], np.bool_),
        tokens=array(table("tokens"), np.int64),
        labels=table("label"),
        errors=tuple(
            (uid, line["sample"], line["error"])
            for uid, lines in groups.items()
            for line in lines
            if line["finish_reason"] == "error"
        ),
    )


def _not_a_run(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is not the folder of an evaluation ({type(error).__name__}: {error}); give a folder that "
        "callbacks.EvaluationRecorder, `medvlt regrade` or `medvlt import` wrote"
    )
