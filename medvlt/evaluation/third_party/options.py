# SPDX-License-Identifier: Apache-2.0
"""Options and right letters in the many shapes in which harnesses store them."""

from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

_LINE = re.compile(r"^[ \t]*[(\[]?([A-Z])[)\].:][ \t]+(?=\S)", re.MULTILINE)
_DRESSED = re.compile(r"[(\[]?([A-Z])[)\].:]?")
_LOWER = re.compile(r"[(\[]?([a-z])[)\].:]?")
_MARKED = re.compile(r"[(\[]?([A-Za-z])[)\].:]\s*(\S.*)", re.DOTALL)
_END = re.compile(r"\n|<\|")  # the last option ends with its line, or at a control token of a chat template

NAMED_COLUMNS = (
    ("opa", "opb", "opc", "opd"),  # MedMCQA
    ("ending0", "ending1", "ending2", "ending3"),  # MedQA with four options
    ("choice1", "choice2", "choice3", "choice4"),  # GPQA
)
"""Columns that hold one option each, in order."""


def options_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Returns the options of a question's record, {} if it has none in a known shape.

    Known are `options` or `choices` as a mapping of letters, a list, the text of either, or lists of labels and texts
    side by side; one column for each (`NAMED_COLUMNS`); and columns named A, B, ...
    """
    for name in ("options", "choices"):
        options = _from_value(record.get(name))
        if options:
            return options
    for columns in NAMED_COLUMNS:
        if all(isinstance(record.get(column), str) for column in columns):
            return _lettered([record[column] for column in columns])
    letters = [letter for letter in string.ascii_uppercase if isinstance(record.get(letter), str)]
    from_a = letters == [*string.ascii_uppercase[: len(letters)]]
    return undressed({letter: record[letter] for letter in letters}) if from_a and len(letters) > 1 else {}


def options_in_prompt(prompt: str) -> dict[str, str]:
    r"""Returns the options of the last question of a prompt, {} if there are none.

    An option is a line such as "A. text" or "(A) text" and what follows up to the next one; the last ends with its
    line. The lines must be A, B, C, ... in this order.

    Example:
        >>> options_in_prompt("Which?\nA. one\nB. two\nAnswer with the letter.")
        {'A': 'one', 'B': 'two'}
    """
    marks = list(_LINE.finditer(prompt))
    starts = [place for place, mark in enumerate(marks) if mark[1] == "A"]
    if not starts:
        return {}
    run = marks[starts[-1] :]
    length = next((i for i, mark in enumerate(run) if mark[1] != string.ascii_uppercase[i]), len(run))
    if length < 2:
        return {}
    options = {}
    for place in range(length):
        text = prompt[run[place].end() : run[place + 1].start() if place + 1 < length else None]
        if place + 1 == length and (end := _END.search(text)) is not None:
            text = text[: end.start()]
        options[run[place][1]] = " ".join(text.split())
    return options


def label_of(value: object, options: Mapping[str, str]) -> str | None:
    """Returns the letter that a stored answer names: a letter, dressed or not, a text, both, or a position from 0.

    Args:
        value: The answer.
        options: Letter to text.
    """
    if isinstance(value, str):
        value = value.strip()
        mark = _DRESSED.fullmatch(value)
        if mark is not None and mark[1] in options:
            return mark[1]
        same = [letter for letter, text in options.items() if text.strip().casefold() == value.casefold()]
        if same:
            return same[0] if len(same) == 1 else None
        mark = _LOWER.fullmatch(value)
        if mark is not None and mark[1].upper() in options:
            return mark[1].upper()
        mark = _MARKED.fullmatch(value)
        letter = mark[1].upper() if mark is not None else ""
        if mark is not None and options.get(letter, "").strip().casefold() == mark[2].casefold():
            return letter
    position = position_of(value)
    return list(options)[position] if position is not None and position < len(options) else None


def position_of(value: object) -> int | None:
    """Returns the position that a stored answer may be, None if it is no such number."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 3:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def undressed(options: Mapping[str, object]) -> dict[str, str]:
    """Returns the options' texts, without their own letter in front ("A. lung") where every text has it."""
    texts = {letter: str(text).strip() for letter, text in options.items()}
    marks = {letter: _MARKED.fullmatch(text) for letter, text in texts.items()}
    bare = {letter: mark[2] for letter, mark in marks.items() if mark is not None and mark[1].upper() == letter}
    return bare if len(bare) == len(texts) else texts


def _from_value(value: object) -> dict[str, str]:
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, Mapping):
        if isinstance(value.get("text"), Sequence) and not isinstance(value.get("text"), str):
            return _lettered(list(value["text"]))
        lettered = len(value) > 1 and all(letter in [*string.ascii_uppercase] for letter in value)
        return undressed(value) if lettered else {}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _lettered(list(value))
    return {}


def _lettered(texts: Sequence[object]) -> dict[str, str]:
    if not 2 <= len(texts) <= len(string.ascii_uppercase):
        return {}
    return undressed(dict(zip(string.ascii_uppercase, texts, strict=False)))


def _parsed(text: str) -> object:
    """A list or mapping written as text, in JSON or as Python writes it; None if it is neither."""
    parsers: tuple[Callable[[str], object], ...] = (json.loads, ast.literal_eval)
    for parse in parsers:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return parse(text)
    return None
