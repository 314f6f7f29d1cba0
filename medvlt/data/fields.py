# SPDX-License-Identifier: Apache-2.0
"""Single columns of a stored record, checked."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping

from medvlt.data.drops import DropReason, RecordError


def parse_json(text: str) -> object:
    """Returns the value of a JSON text, or None if it is not one.

    A key that occurs twice counts as not JSON: the usual parser keeps the last value and hides the other.
    """
    try:
        value: object = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError):
        return None
    return value


def text_field(record: Mapping[str, object], name: str) -> str | None:
    """Returns a text column as it is, or None if it is absent or blank.

    Raises:
        RecordError: If it holds something else.
    """
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise RecordError(DropReason.BAD_FIELD, f"`{name}` must be text, got {type(value).__name__} {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no file can hold
        message = f"`{name}` holds half a character at position {error.start}; save the text as UTF-8"
        raise RecordError(DropReason.BAD_FIELD, message) from error
    return value if value.strip() else None


def int_field(record: Mapping[str, object], name: str, *, default: int) -> int:
    """Returns a whole-number column; a float that is whole counts, since tables store integers with nulls that way.

    Raises:
        RecordError: If it holds something else.
    """
    value = record.get(name)
    if value is None:
        return default
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1 and abs(value) < 2**63:
        return int(value)
    raise RecordError(
        DropReason.BAD_FIELD, f"`{name}` must be a whole number of 64 bits, got {type(value).__name__} {value!r:.80}"
    )


def options_field(value: object) -> dict[str, str]:
    """Returns the options in order, {} if there are none.

    Labels are single letters A to Z. There are at least two options, each with text, and no two are equal when outer
    blanks are ignored; case counts, as in AA, Aa and aa. A null text means that the label is not there: a table gives
    every row the same labels.

    Args:
        value: A JSON object as text, a mapping, or None.

    Raises:
        RecordError: If the options break one of these rules.
    """
    if isinstance(value, str) and value.strip():
        parsed = parse_json(value)
        if not isinstance(parsed, dict):
            raise RecordError(
                DropReason.BAD_OPTIONS,
                f"`options` must hold a JSON object of different labels to texts, got {value!r:.80}",
            )
        value = parsed
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    if not isinstance(value, Mapping):
        raise RecordError(
            DropReason.BAD_OPTIONS, f"`options` must map labels to texts, got {type(value).__name__} {value!r:.80}"
        )
    options = {label: text for label, text in value.items() if text is not None}
    for label, text in options.items():
        if not isinstance(label, str) or len(label) != 1 or label not in string.ascii_uppercase:
            raise RecordError(DropReason.BAD_OPTIONS, f"a label must be one letter A to Z, got {label!r:.40}")
        if text_field({"options": text}, "options") is None:
            raise RecordError(DropReason.BAD_OPTIONS, f"option {label} has no text")
    if len(options) == 1:
        raise RecordError(DropReason.TOO_FEW_OPTIONS, "at least two options are needed, got one")
    seen: dict[str, str] = {}
    for label, text in options.items():
        twin = seen.setdefault(text.strip(), label)
        if twin != label:
            raise RecordError(DropReason.EQUAL_OPTIONS, f"options {twin} and {label} are equal: {text!r:.80}")
    return options


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result
