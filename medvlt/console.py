# SPDX-License-Identifier: Apache-2.0
"""What is shown on a terminal: progress of long work, and tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")

PROGRESS_FROM = 2_000
"""Work on more items than this shows a progress bar."""


def tracked(items: Iterable[Item], description: str, total: int) -> Iterable[Item]:
    """Returns the items, with a progress bar on stderr while they are used, if there are many.

    Args:
        items: What is worked on.
        description: The work, in words.
        total: Number of items.
    """
    return track(
        items,
        description=description,
        total=total,
        transient=True,
        console=Console(stderr=True),
        disable=total <= PROGRESS_FROM,
    )


def wide_console() -> Console:
    """Returns a console for tables: where the output is a file and has no width, wide enough that nothing is cut."""
    return Console(width=None if sys.stdout.isatty() else 120)
