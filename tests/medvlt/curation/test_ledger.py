# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from medvlt.curation.ledger import COLUMNS, METADATA, Ledger, Probe, check_writable, merge_ledgers, update_ledger
from medvlt.data.samples import uids_fingerprint
from medvlt.errors import DataError

PROBE = Probe("tiny", "model", "plain", {"n": 4}, 42, grader_version="1")


def row(strict: int = 1, **changes: Any) -> dict[str, Any]:
    counts = {"n": 4, "strict": strict, "robust": strict, "format": 4, "truncated": 0, "errors": 0, "mean_tokens": 7.5}
    return counts | changes


def small() -> Ledger:
    return Ledger().with_probe(PROBE, {"set:0:ab": row(0), "set:1:cd": row(3)}).with_marks({"odd": {"set:1:cd": True}})


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    ledger = small()
    ledger.write(tmp_path / "deep" / "ledger.parquet")
    again = Ledger.read(tmp_path / "deep" / "ledger.parquet")
    assert again.uids == ledger.uids == ("set:0:ab", "set:1:cd")
    assert again.probes == ledger.probes
    assert again.marks == ("odd",)
    assert again.column("tiny/strict") == {"set:0:ab": 0, "set:1:cd": 3}
    assert again.column("tiny/mean_tokens") == {"set:0:ab": 7.5, "set:1:cd": 7.5}
    assert again.column("mark/odd") == {"set:1:cd": True}
    assert again.questions() == {"set:0:ab": ("set", "0"), "set:1:cd": ("set", "1")}
    assert again.probes["tiny"].fingerprint == uids_fingerprint(ledger.uids)
    assert again.probes["tiny"].questions == 2


def test_other_tools_read_it(tmp_path: Path) -> None:
    """The columns are plain ones, with the names that the documentation gives."""
    small().write(tmp_path / "ledger.parquet")
    table = parquet.read_table(tmp_path / "ledger.parquet")
    names = ["uid", "dataset_name", "dataset_index", *(f"tiny/{name}" for name in COLUMNS), "mark/odd"]
    assert table.column_names == names
    assert table["mark/odd"].to_pylist() == [None, True]
    assert "not for clinical use" in json.loads(table.schema.metadata[METADATA])["note"]


def test_an_unknown_column_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"no column 'tiny/right'; it has: uid, .*tiny/strict"):
        small().column("tiny/right")


rows = st.dictionaries(
    st.sampled_from([f"set:{i}:x" for i in range(6)]),
    st.integers(0, 4).flatmap(
        lambda n: st.builds(
            lambda strict, robust, pictures, tokens: row(
                strict, n=n, robust=robust, format=0, errors=4 - n, pictures=pictures, mean_tokens=tokens
            ),
            st.integers(0, n), st.integers(0, n), st.just(1), st.floats(0, 1e6),
        )
    ),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(rows, rows, rows)
def test_probes_and_questions_add_up(first: Any, second: Any, other: Any) -> None:
    """Against dictionaries: later counts of the same probe take the place of earlier ones, nothing else moves."""
    ledger = Ledger().with_probe(PROBE, first).with_probe(replace(PROBE, name="b"), other).with_probe(PROBE, second)
    expected = {"tiny": {**first, **second}, "b": other}
    assert sorted(ledger.uids) == sorted({*first, *second, *other})
    for name, counts in expected.items():
        assert ledger.rows(name) == {uid: {**r, "grader": "1"} for uid, r in counts.items()}
        assert ledger.probes[name].questions == len(counts)


@settings(max_examples=30, deadline=None)
@given(rows, st.dictionaries(st.sampled_from([f"set:{i}:x" for i in range(9)]), st.booleans()))
def test_marks_are_kept_apart_from_what_was_not_examined(counts: Any, marks: dict[str, bool]) -> None:
    ledger = Ledger().with_probe(PROBE, counts).with_marks({"m": marks}, about={"at": 3})
    assert ledger.column("mark/m") == marks
    assert ledger.about_marks == {"m": {"at": 3}}
    assert ledger.column("tiny/strict") == {uid: r["strict"] for uid, r in counts.items()}


def test_newer_counts_bring_their_grader_version() -> None:
    """One question after the other can be graded anew."""
    ledger = small().with_probe(replace(PROBE, grader_version="2"), {"set:0:ab": row(2)})
    assert ledger.column("tiny/grader") == {"set:0:ab": "2", "set:1:cd": "1"}
    assert ledger.probes["tiny"].grader_version == "1,2"
    healed = ledger.with_probe(replace(PROBE, grader_version="2"), {"set:1:cd": row(2)})
    assert healed.probes["tiny"].grader_version == "2"


def test_the_same_name_for_other_weights_is_refused() -> None:
    with pytest.raises(DataError, match=r"details.weights 'f00' and None; choose another name"):
        small().with_probe(replace(PROBE, details={"weights": "f00"}), {"set:0:ab": row()})


def test_a_model_may_be_moved() -> None:
    ledger = small().with_probe(replace(PROBE, model="/elsewhere", checkpoint="a.ckpt"), {"set:2:ef": row()})
    assert ledger.probes["tiny"].questions == 3
    assert ledger.probes["tiny"].answered_by == "/elsewhere with weights of a.ckpt"


def test_a_mark_can_be_taken_back() -> None:
    """A question can come out as not examined after all, under other rules."""
    marked = small().with_marks({"odd": {"set:0:ab": True, "set:1:cd": None}, "new": {"set:0:ab": None}})
    assert marked.column("mark/odd") == {"set:0:ab": True}
    assert marked.column("mark/new") == {}
    assert marked.marks == ("odd", "new")


@pytest.mark.parametrize(
    "counts",
    [
        row(5),
        row(1, robust=-1),
        row(1, n=3),
        row(1, errors=1),
        {name: value for name, value in row().items() if name != "format"},
        row() | {"right": 1},
    ],
)
def test_impossible_counts_are_refused(counts: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="question u"):
        Ledger().with_probe(PROBE, {"u": counts})


@pytest.mark.parametrize("name", ["", "a/b", "mark one"])
def test_a_mark_must_be_able_to_name_a_column(name: str) -> None:
    with pytest.raises(DataError, match="a mark's name"):
        small().with_marks({name: {}})


def test_a_missing_ledger_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="medvlt predict"):
        Ledger.read(tmp_path / "none.parquet")


def test_a_folder_is_called_a_folder(tmp_path: Path) -> None:
    for use in (Ledger.read, check_writable, lambda path: update_ledger(path, lambda ledger: ledger)):
        with pytest.raises(DataError, match="is a folder"):
            use(tmp_path)
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.lock"))


def test_what_can_be_written_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.parquet"
    check_writable(path)
    assert [file.name for file in path.parent.iterdir()] == [".ledger.parquet.lock"]
    small().write(path)
    before = path.read_bytes()
    check_writable(path)
    update_ledger(path, lambda ledger: ledger)  # the lock is free again
    assert Ledger.read(path).uids == small().uids
    assert len(before) == path.stat().st_size


def test_a_folder_that_cannot_be_written_is_found_out_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot write beside"):
        check_writable(tmp_path / "file" / "ledger.parquet")

    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("medvlt.curation.ledger.TemporaryFile", full)
    with pytest.raises(DataError, match=r"No space left on device.*choose a folder"):
        check_writable(tmp_path / "ledger.parquet")


def test_what_is_no_ledger_is_found_out_beforehand(tmp_path: Path) -> None:
    (tmp_path / "ledger.parquet").write_text("my notes")
    with pytest.raises(DataError, match="not a whole Parquet file"):
        check_writable(tmp_path / "ledger.parquet")


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("medvlt.curation.ledger.fcntl.flock", flock)
    for use in (check_writable, lambda path: update_ledger(path, lambda ledger: ledger)):
        with pytest.raises(DataError, match=r"No locks available.*file system has no locks.*put l on another"):
            use(tmp_path / "l")
    assert not (tmp_path / "l").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_part_of_a_file_is_no_ledger(share: float, tmp_path: Path) -> None:
    path = tmp_path / "ledger.parquet"
    small().write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        Ledger.read(path)


def write_with(path: Path, change: Any, keep: Any = lambda table: table) -> None:
    """Writes the small ledger with changed metadata, or with rows or columns taken away."""
    small().write(path)
    table = parquet.read_table(path)
    about = json.loads(table.schema.metadata[METADATA])
    change(about)
    parquet.write_table(keep(table).replace_schema_metadata({METADATA: json.dumps(about)}), path)


@pytest.mark.parametrize(
    ("change", "keep", "message"),
    [
        (lambda about: about.update(complete=False), lambda t: t, "unfinished ledger"),
        (lambda about: about.pop("complete"), lambda t: t, "no ledger"),
        (lambda about: about.update(format=2), lambda t: t, "format 2, known is 1"),
        (lambda about: None, lambda t: t.slice(0, 1), "was asked 2 questions .* has counts of 1"),
        (lambda about: about["probes"].clear(), lambda t: t, "do not fit its probes and marks: tiny/"),
        (lambda about: None, lambda t: t.drop_columns(["tiny/robust"]), "do not fit .*: tiny/robust"),
        (lambda about: None, lambda t: t.drop_columns(["uid"]), "do not fit .*: uid"),
        (lambda about: None, lambda t: pyarrow.concat_tables([t, t]), "there twice"),
        (lambda about: about["probes"][0].update(colour="red"), lambda t: t, "damaged ledger"),
    ],
)
def test_what_is_not_whole_is_refused(change: Any, keep: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.parquet"
    write_with(path, change, keep)
    with pytest.raises(DataError, match=message):
        Ledger.read(path)


def test_a_gap_in_one_column_is_refused(tmp_path: Path) -> None:
    def blank(table: Any) -> Any:
        place = table.column_names.index("tiny/robust")
        return table.set_column(place, "tiny/robust", pyarrow.array([None, 1], pyarrow.int32()))

    write_with(tmp_path / "ledger.parquet", lambda about: None, blank)
    with pytest.raises(DataError, match="'tiny' have different questions"):
        Ledger.read(tmp_path / "ledger.parquet")


def test_any_other_parquet_file_is_no_ledger(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"question": ["why?"]}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match="no ledger"):
        Ledger.read(tmp_path / "data.parquet")


def test_a_change_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ledger.parquet"
    update_ledger(path, lambda ledger: ledger.with_probe(PROBE, {"u": row()}))
    before = path.read_bytes()
    with pytest.raises(DataError):
        update_ledger(path, lambda ledger: ledger.with_probe(replace(PROBE, seed=1), {"u": row()}))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if file.name != path.name] == [".ledger.parquet.lock"]


ADD = """
import sys, time
from medvlt.curation.ledger import Probe, update_ledger

def add(path, name):
    for number in range(5):
        update_ledger(path, lambda ledger: slowly(ledger, f"{name}{number}"))

def slowly(ledger, name):
    time.sleep(0.05)
    row = dict(n=4, strict=1, robust=1, format=1, truncated=0, errors=0, mean_tokens=1.0)
    return ledger.with_probe(Probe(name, "m", "p", {"n": 4}, 0), {f"{name}:0:x": row})
"""


def test_processes_that_add_probes_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.parquet"
    job = subprocess.Popen([sys.executable, "-c", f"{ADD}\nadd(sys.argv[1], 'a')", str(path)])
    while not path.exists() and job.poll() is None:
        time.sleep(0.01)
    here: dict[str, Any] = {}
    exec(ADD, here)
    here["add"](path, "b")
    assert job.wait(60) == 0
    ledger = Ledger.read(path)
    assert set(ledger.probes) == {f"{name}{number}" for name in "ab" for number in range(5)}
    assert len(ledger) == 10


def test_ledgers_of_two_machines_are_merged(tmp_path: Path) -> None:
    left = small().with_probe(replace(PROBE, name="other"), {"set:0:ab": row(4)})
    right = (
        Ledger().with_probe(PROBE, {"set:1:cd": row(3), "set:2:ef": row(2)}).with_marks({"odd": {"set:2:ef": False}})
    )
    left.write(tmp_path / "left")
    right.write(tmp_path / "right")
    merge_ledgers([tmp_path / "left", tmp_path / "right"], tmp_path / "both")
    both = Ledger.read(tmp_path / "both")
    assert both.column("tiny/strict") == {"set:0:ab": 0, "set:1:cd": 3, "set:2:ef": 2}
    assert both.column("other/strict") == {"set:0:ab": 4}
    assert both.column("mark/odd") == {"set:1:cd": True, "set:2:ef": False}
    with pytest.raises(DataError, match="exists"):
        merge_ledgers([tmp_path / "left", tmp_path / "right"], tmp_path / "both")


@pytest.mark.parametrize("names", [[], ["one"]])
def test_fewer_than_two_ledgers_are_nothing_to_merge(names: list[str], tmp_path: Path) -> None:
    small().write(tmp_path / "one")
    with pytest.raises(DataError, match="at least two ledgers"):
        merge_ledgers([tmp_path / name for name in names], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            Ledger().with_probe(PROBE, {"set:1:cd": row(2)}),
            "disagree on probe 'tiny' for 1 questions, such as set:1:cd",
        ),
        (Ledger().with_marks({"odd": {"set:1:cd": False}}), "disagree on mark 'odd'"),
        (Ledger().with_probe(replace(PROBE, seed=3), {"set:8:cd": row(2)}), "seed 3 and 42"),
    ],
)
def test_ledgers_that_disagree_are_not_merged(other: Ledger, message: str) -> None:
    with pytest.raises(DataError, match=message):
        small().merged(other)
