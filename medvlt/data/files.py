# SPDX-License-Identifier: Apache-2.0
"""Writing without leaving halves behind, and naming what was read."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medvlt.errors import DataError


@contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Gives a temporary name beside `path` and moves what was written there to `path` if the block succeeds.

    Works for a file and for a folder. If the block fails, nothing of it stays and `path` is as it was. A folder is
    replaced only by a folder, and only if it is empty or a data set written by `save_to_disk`.

    Args:
        path: Where the result is to lie; missing parent folders are made.
        overwrite: Whether something that lies there may be replaced.

    Raises:
        DataError: If `path` exists and may not be replaced, or cannot be written.
    """
    check_target(path, overwrite=overwrite)
    temporary = path.with_name(f"{_prefix(path)}{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir():
            if not temporary.is_dir():
                raise DataError(f"expected the name of a file, but {path} is a folder; choose another path")
            _check_replaceable(path)  # once more: hours may have passed
            # a folder cannot be replaced in one move; between these two, both copies are there under hidden names
            old = temporary.with_suffix(".old.tmp")
            path.rename(old)
            temporary.replace(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            if temporary.is_file():
                flush_names(temporary)
            temporary.replace(path)
            flush_names(path.parent)  # the new name, too, is to outlive a power failure
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}; check that the folder may be written and has space") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):  # it may never have come to be
                temporary.unlink()


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuses what `replacing` would: a check before hours of work rather than after them.

    Args:
        path: Where a result is to lie.
        overwrite: Whether something that lies there may be replaced.

    Raises:
        DataError: If `path` has no name, or exists and may not be replaced.
    """
    if path.name in ("", ".."):
        raise DataError(
            f"expected a path that ends in a name, got {str(path)!r}; add the name of the file or folder to write"
        )
    try:
        if path.exists() and not overwrite:
            raise DataError(f"expected a new path, but {path} exists; choose another or set overwrite=true")
        _check_replaceable(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}; choose a path that can be looked at") from error


def sweep_leftovers(path: Path) -> None:
    """Removes the hidden copies that killed processes of this machine left while they wrote `path`.

    Lists the whole folder, so it is for large results, not for each of many small files.
    """
    copy = re.compile(re.escape(_prefix(path)) + r"(\d+)(\.\w+)?\.tmp")
    with suppress(OSError):  # no such folder, or not to be read
        for left in path.parent.iterdir():
            if (found := copy.fullmatch(left.name)) is None or _alive(int(found[1])):
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes in 64 hex digits; the file is read in pieces.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error


def flush_names(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prefix(path: Path) -> str:
    return f".{path.name}.{socket.gethostname()}."  # process numbers mean something on one machine only


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # of another user, or no process number at all
    return True


def _check_replaceable(path: Path) -> None:
    saved = all((path / name).is_file() for name in ("dataset_info.json", "state.json"))
    if path.is_dir() and not saved and any(path.iterdir()):
        raise DataError(
            f"expected a file, a saved data set or a new path, but {path} is a folder with other things in it, which "
            "is never replaced; choose another path"
        )
