# SPDX-License-Identifier: Apache-2.0
"""Writing without leaving halves behind."""

from __future__ import annotations

import os
import shutil
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
    if path.exists() and not overwrite:
        raise DataError(f"expected a new path, but {path} exists; choose another or set overwrite=true")
    if path.name in ("", ".."):
        raise DataError(f"expected a path that ends in a name, got {path}; add the name of the file or folder to write")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir():
            if not temporary.is_dir():
                raise DataError(f"expected the name of a file, but {path} is a folder; choose another path")
            _check_replaceable(path)  # once more: hours may have passed
            shutil.rmtree(path)  # a folder cannot be replaced in one move
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}; check that the folder may be written and has space") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):  # it may never have come to be
                temporary.unlink()


def _check_replaceable(path: Path) -> None:
    saved = all((path / name).is_file() for name in ("dataset_info.json", "state.json"))
    if path.is_dir() and not saved and any(path.iterdir()):
        raise DataError(
            f"expected a file, a saved data set or a new path, but {path} is a folder with other things in it, which "
            "is never replaced; choose another path"
        )
