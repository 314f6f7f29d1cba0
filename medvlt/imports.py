# SPDX-License-Identifier: Apache-2.0
"""Optional packages: import them, or say which extra installs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from medvlt.errors import MissingExtraError


def require(name: str, *, extra: str) -> ModuleType:
    """Imports an optional package.

    Args:
        name: Module to import, such as "vllm".
        extra: Extra of this project that installs it.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If the module is not installed; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise  # the package is there, one of its own imports is not
        raise MissingExtraError(
            f"the package `{name}` is needed here and not installed; run: pip install 'medvlt[{extra}]' "
            f"(from a checkout: pip install -e '.[{extra}]')"
        ) from error
