# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvlt.data.drops import DropReason, RecordError
from medvlt.data.fields import int_field, options_field, parse_json, text_field


def reason_of(value: Any) -> DropReason:
    with pytest.raises(RecordError) as caught:
        options_field(value)
    return caught.value.reason


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    parse_json(text)
    with suppress(RecordError):
        options_field(text)


def test_deep_nesting_is_not_json() -> None:
    assert parse_json("[" * 100_000) is None


def test_hidden_repeats_are_not_json() -> None:
    assert parse_json('{"A": 1, "B": 2}') == {"A": 1, "B": 2}
    assert parse_json('{"A": 1, "A": 2}') is None
    assert reason_of('{"A": "x", "B": "y", "A": "z"}') == DropReason.BAD_OPTIONS


@pytest.mark.parametrize(
    "value", ['["x", "y"]', ["x", "y"], {"1": "x", "2": "y"}, {"AA": "x", "B": "y"}, {"a": "x", "b": "y"}, 3, {1: "x"}]
)
def test_labels_are_letters(value: Any) -> None:
    assert reason_of(value) == DropReason.BAD_OPTIONS


@pytest.mark.parametrize("text", ["", "  "])
def test_options_have_text(text: str) -> None:
    assert reason_of({"A": "x", "B": text}) == DropReason.BAD_OPTIONS


def test_options_may_differ_in_case_alone() -> None:
    assert options_field({"A": "AA", "B": "Aa", "C": "aa"}) == {"A": "AA", "B": "Aa", "C": "aa"}
    assert reason_of({"A": "pH", "B": "pH "}) == DropReason.EQUAL_OPTIONS


def test_options_are_text() -> None:
    assert reason_of({"A": "5", "B": 6}) == DropReason.BAD_FIELD


def test_labels_that_a_table_adds_are_left_out() -> None:
    assert options_field({"A": "x", "B": "y", "C": None}) == {"A": "x", "B": "y"}
    assert options_field({"A": None, "B": None}) == {}


@pytest.mark.parametrize("value", [None, "", " ", "{}", {}])
def test_no_options(value: Any) -> None:
    assert options_field(value) == {}


def test_text_is_kept_as_it_is() -> None:
    assert text_field({"question": " a\n"}, "question") == " a\n"
    assert text_field({"question": " \n"}, "question") is None
    assert text_field({}, "question") is None


@pytest.mark.parametrize("value", [3, True, ["x"], b"x", "half \ud83d"])
def test_what_is_not_text(value: Any) -> None:
    with pytest.raises(RecordError):
        text_field({"question": value}, "question")


@pytest.mark.parametrize(("value", "expected"), [(3, 3), (3.0, 3), (-1, -1), (None, 9)])
def test_whole_numbers(value: Any, expected: int) -> None:
    assert int_field({"n": value}, "n", default=9) == expected


@pytest.mark.parametrize("value", [3.5, True, "3", float("inf"), float("nan"), 2**70])
def test_what_is_not_a_whole_number(value: Any) -> None:
    with pytest.raises(RecordError) as caught:
        int_field({"n": value}, "n", default=9)
    assert caught.value.reason == DropReason.BAD_FIELD
