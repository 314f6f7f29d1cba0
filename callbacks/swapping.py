# SPDX-License-Identifier: Apache-2.0
"""Putting what is finished in the place of what it replaces, so that a name never stands for a half.

What is written, replaced or removed has a hidden name beside its own meanwhile, `.NAME.writing`, `.NAME.replaced` or
`.NAME.removed`: the same on every rank, and none that Lightning takes for a checkpoint.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from pathlib import Path
from typing import Literal

from medvlt.data.files import flush_names

HIDDEN = re.compile(r"\.(.+)\.(?:writing|replaced|removed)")

_WORKING_DIRECTORY = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
"""What `renameat2` says where the kernel or the file system knows no exchange."""


def hidden(path: Path, role: Literal["writing", "replaced", "removed"]) -> Path:
    """Returns the hidden name beside `path` for something on its way."""
    return path.with_name(f".{path.name}.{role}")


def put(new: Path, path: Path) -> None:
    """Gives a finished file, folder or link the name `path`; what had that name is removed.

    One step of the kernel: at every instant `path` is the old or the new. A folder cannot be replaced in one step on
    a file system that knows no exchange (NFS): between two moves both have hidden names there, and `finish_swap`
    makes the second move if this process does not.

    Args:
        new: Flushed (`flush`), on the same file system.
        path: May be there or not, and be of another kind.

    Raises:
        OSError: If it cannot be moved; `path` is as it was.
    """
    if not os.path.lexists(path) or not (_is_folder(new) or _is_folder(path)):
        new.replace(path)
    elif exchange(new, path):
        discard(new)
    else:
        old = hidden(path, "replaced")
        path.rename(old)
        try:
            new.rename(path)
        except FileNotFoundError:  # another process that looked for `path` has made this move
            if not os.path.lexists(path):
                raise
        discard(old)
    flush_names(path.parent)


def exchange(one: Path, other: Path) -> bool:
    """Lets two names change places in one step; returns False where that is not possible.

    Raises:
        OSError: If it failed for another reason, such as a name that is not there.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # no Linux, or a C library before 2018
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(_WORKING_DIRECTORY, names[0], _WORKING_DIRECTORY, names[1], _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(one))


def remove(path: Path) -> None:
    """Removes a file, folder or link; a process that is killed meanwhile leaves nothing half under its name."""
    if not os.path.lexists(path):
        return
    away = hidden(path, "removed")
    discard(away)
    path.rename(away)
    discard(away)


def finish_swap(path: Path) -> None:
    """Makes the second move of a `put` that was interrupted between its two. Several ranks may do so at once.

    A folder never replaces one that is there, so that the old one cannot take the place of the new one.
    """
    for source in (hidden(path, "writing"), hidden(path, "replaced")):
        if os.path.lexists(path) or not os.path.lexists(hidden(path, "replaced")):
            return
        try:
            source.rename(path)
        except OSError:  # it is not there, or another rank that does the same was faster
            if not os.path.lexists(path) and os.path.lexists(source):
                raise


def finish_swaps(folder: Path) -> None:
    """`finish_swap` for every name in a folder that has a hidden one beside it."""
    for path in _with_hidden(folder):
        finish_swap(path)


def sweep(folder: Path) -> None:
    """`sweep_name` for every name in a folder that has a hidden one beside it. Not while another run writes there."""
    for path in _with_hidden(folder):
        sweep_name(path)


def sweep_name(path: Path) -> None:
    """Finishes what was interrupted for a name, and removes what else is left of it under hidden names."""
    finish_swap(path)
    for left in (hidden(path, "writing"), hidden(path, "replaced"), hidden(path, "removed")):
        discard(left)


def discard(path: Path) -> None:
    """Removes a file, folder or link, or what is left of it; its name may be seen meanwhile."""
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file, or a folder with all that is in it, is on the disk."""
    if _is_folder(path):
        for inside in path.iterdir():
            flush(inside)
    if not path.is_symlink():
        flush_names(path)


def names_in(folder: Path) -> list[str]:
    """Returns the names of all that is in a folder, at every depth; of a file, none."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def size(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder; 0 if it is not there."""
    if path.is_dir():
        return sum(size(inside) for inside in path.iterdir())
    return path.stat().st_size if path.exists() else 0


def _with_hidden(folder: Path) -> set[Path]:
    if not folder.is_dir():
        return set()
    return {folder / found[1] for path in folder.iterdir() if (found := HIDDEN.fullmatch(path.name))}


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
