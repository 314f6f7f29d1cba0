# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from medvlt.data.files import check_target, file_sha256, replacing, sweep_leftovers
from medvlt.errors import DataError


def test_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    with replacing(target, overwrite=False) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_failure_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "b.txt"
    target.write_text("old")

    def fail_halfway() -> None:
        with replacing(target, overwrite=True) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for name in ("one", "two"):
        with replacing(target, overwrite=True) as temporary:
            temporary.mkdir()
            for file in (name, "dataset_info.json", "state.json"):
                (temporary / file).touch()
    assert sorted(path.name for path in target.iterdir()) == ["dataset_info.json", "state.json", "two"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_folder_of_other_things_is_never_replaced(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "runs"
    target.mkdir()
    (target / "checkpoint").touch()
    with pytest.raises(DataError, match="runs is a folder with other things"), replacing(target, overwrite=True) as new:
        new.touch() if kind == "file" else new.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "checkpoint"]


def test_a_folder_that_filled_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "set"

    def write_while_another_writes() -> None:
        with replacing(target, overwrite=False) as temporary:
            temporary.mkdir()
            target.mkdir()
            (target / "theirs").touch()

    with pytest.raises(DataError, match="other things"):
        write_while_another_writes()
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "theirs"]


@pytest.mark.parametrize("files", [(), ("dataset_info.json", "state.json")])
def test_a_file_replaces_no_folder(files: tuple[str, ...], tmp_path: Path) -> None:
    target = tmp_path / "set"
    target.mkdir()
    for name in files:
        (target / name).touch()
    with pytest.raises(DataError, match="is a folder"), replacing(target, overwrite=True) as temporary:
        temporary.touch()
    assert sorted(path.name for path in target.iterdir()) == list(files)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("path", [".", "/", ".."])
def test_a_path_needs_a_name(path: str) -> None:
    with pytest.raises(DataError, match="ends in a name"), replacing(Path(path), overwrite=True):
        pytest.fail("not reached")


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="overwrite=true"), replacing(tmp_path, overwrite=False):
        pytest.fail("not reached")


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"), replacing(tmp_path / "file" / "x", overwrite=False):
        pytest.fail("not reached")


def test_the_check_at_the_start_refuses_what_the_end_would(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "checkpoint").touch()
    (tmp_path / "file").touch()
    check_target(tmp_path / "new", overwrite=False)
    check_target(tmp_path / "file", overwrite=True)
    for path, overwrite, message in (
        (tmp_path / "file", False, "overwrite=true"),
        (tmp_path / "runs", True, "other things"),
        (Path(), False, "ends in a name"),
        (Path(".."), True, "ends in a name"),
        (tmp_path / ("x" * 300), False, "cannot write"),
    ):
        with pytest.raises(DataError, match=message):
            check_target(path, overwrite=overwrite)


def test_copies_of_killed_processes_are_swept_and_no_others(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for process in (gone.pid, os.getpid()):
        with replacing(tmp_path / "a.b", overwrite=True) as temporary:
            temporary.touch()
            name = temporary.name.replace(f".{os.getpid()}.", f".{process}.")
        (tmp_path / name).mkdir()
        (tmp_path / name / "row").touch()
        (tmp_path / name.replace(".tmp", ".rows.tmp")).touch()
        (tmp_path / name.replace("a.b", "axb")).touch()
        (tmp_path / name.replace(socket.gethostname(), "other")).touch()
    before = {path.name for path in tmp_path.iterdir()}
    sweep_leftovers(tmp_path / "a.b")
    swept = {f".a.b.{socket.gethostname()}.{gone.pid}{end}" for end in (".tmp", ".rows.tmp")}
    assert before - {path.name for path in tmp_path.iterdir()} == swept
    sweep_leftovers(tmp_path / "nowhere" / "a.b")


def test_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(DataError, match="cannot read"):
        file_sha256(tmp_path / "y")
