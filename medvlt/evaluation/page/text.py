# SPDX-License-Identifier: Apache-2.0
"""Text of unknown origin, made fit to be shown: nothing invisible, nothing endless."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

TEXT_LIMIT = 6_000
"""Characters of a completion that are shown."""

LABEL_LIMIT = 40
"""Characters of a name inside a figure."""

_REORDERING = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_INVISIBLE = re.compile(
    f"[\xad\u200b\u2060\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff{_REORDERING}]"
)
_THINK, _END = "<think>", "</think>"


class Parts(NamedTuple):
    """A completion in three parts: what stands before the thought, the thought, and the rest."""

    before: str
    thought: str
    after: str


def visible(value: Any) -> str:
    """Returns a value as text that shows what it holds.

    A character that cannot stand in a page, cannot be seen, or turns the direction of its neighbours round, is shown by
    its number: `[U+202E]`. The line ends of Windows are those of everyone.
    """
    text = str(value).replace("\r\n", "\n")
    return _INVISIBLE.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def shortened(text: str, limit: int = TEXT_LIMIT) -> str:
    """Returns a text of at most about `limit` characters: its middle is left out, which the text says."""
    if len(text) <= limit:
        return text
    head, tail = text[: limit // 2], text[-(limit // 2) :]
    return f"{head}\n[... {len(text) - len(head) - len(tail):,} characters left out ...]\n{tail}"


def label(value: Any, limit: int = LABEL_LIMIT) -> str:
    """Returns a name as one short line; of a long one the middle is left out, as names often differ at their ends."""
    line = " ".join(visible(value).split())
    if len(line) <= limit:
        return line
    tail = (limit - 1) // 2
    return f"{line[: limit - 1 - tail]}\u2026{line[len(line) - tail :]}"


def parts(completion: str) -> Parts:
    """Splits a completion at its first thought; without one everything is the rest.

    >>> parts("<think>two</think> <answer>B</answer>")
    Parts(before='', thought='two', after='<answer>B</answer>')
    """
    before, start, rest = completion.partition(_THINK)
    if not start:
        thought, end, after = completion.partition(_END)  # some models open the thought in the prompt
        return Parts("", thought.strip(), after.strip()) if end else Parts("", "", completion.strip())
    thought, _, after = rest.partition(_END)
    return Parts(before.strip(), thought.strip(), after.strip())
