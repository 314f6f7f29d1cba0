# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from medvlt.data.files import replacing
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
