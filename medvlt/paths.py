# SPDX-License-Identifier: Apache-2.0
"""Where the shipped configurations lie, and whether the sibling packages are ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from medvlt.errors import ConfigurationError, MedvltError

PACKAGE = Path(__file__).resolve().parent
SIBLINGS = ("lightning_modules", "datamodules", "callbacks")
"""Packages that are installed beside `medvlt`. Their names are generic, so another package may hide them."""


class ShadowedPackageError(MedvltError, ImportError):
    """A package of another project was imported in place of ours."""


def config_dir(package: Path = PACKAGE) -> Path:
    """Finds the folder with the shipped configurations.

    Args:
        package: Folder of the `medvlt` package.

    Returns:
        `medvlt/configs` of an installed wheel, or `configs` beside the package in a checkout.

    Raises:
        ConfigurationError: If neither exists.
    """
    # A wheel never has `configs` beside the package, and a checkout never has it inside: the order only matters where
    # another project put a `configs` folder into site-packages, and there it must be this one.
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigurationError(
        f"the shipped configurations are missing: neither {package / 'configs'} nor {package.parent / 'configs'} is a "
        "folder; install medvlt again"
    )


def resolve_config(name: str | Path) -> Path:
    """Finds a configuration by path, or by its name among the shipped ones.

    Args:
        name: A file, seen from the current folder, or a path inside the shipped configurations such as
            "sft/m23k_3b.yaml"; the ending may be left out. An existing file wins over a shipped one.

    Returns:
        The file.

    Raises:
        ConfigurationError: If there is no such file; the message names the most similar shipped ones.
    """
    given = Path(name)
    if given.is_file():
        return given
    shipped = config_dir()
    for candidate in (shipped / given, shipped / f"{given}.yaml"):
        if candidate.is_file():
            return candidate
    known = sorted(path.relative_to(shipped).as_posix() for path in shipped.rglob("*.yaml"))
    similar = difflib.get_close_matches(given.as_posix(), known, n=3, cutoff=0.4) or known[:3]
    hint = f"; shipped ones that come close: {', '.join(similar)}" if similar else ""
    raise ConfigurationError(f"no configuration {str(name)!r}, neither as a file nor in {shipped}{hint}")


def foreign_location(name: str, locations: Iterable[str | Path], package: Path = PACKAGE) -> Path | None:
    """Says where a sibling package comes from if it is not ours.

    Args:
        name: Name of the sibling, such as "callbacks".
        locations: Folders the package consists of (its `__path__`).
        package: Folder of the `medvlt` package.

    Returns:
        The first folder that is not the one beside `medvlt`, or None if all is well.
    """
    ours = package.parent / name
    return next((Path(folder) for folder in locations if Path(folder).resolve() != ours.resolve()), None)


def check_sibling(module: ModuleType) -> None:
    """Makes sure that an imported sibling package is the one that belongs to this `medvlt`.

    Args:
        module: The imported package, such as `callbacks`.

    Raises:
        ShadowedPackageError: If it lies elsewhere; the message names both folders.
    """
    locations: list[str | Path] = list(getattr(module, "__path__", ()))
    if not locations and module.__file__ is not None:  # a single file `callbacks.py` instead of a package
        locations = [module.__file__]
    foreign = foreign_location(module.__name__, locations)
    if foreign is not None:
        raise ShadowedPackageError(
            f"`import {module.__name__}` found {foreign} instead of {PACKAGE.parent / module.__name__}; rename that "
            "folder, take it off PYTHONPATH, or start the command `medvlt` from another folder"
        )
