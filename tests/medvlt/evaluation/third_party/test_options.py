# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from medvlt.data.prompts import PromptTemplate
from medvlt.evaluation.third_party.options import label_of, options_in_prompt, options_of
from medvlt.types import Sample

THREE = {"A": "one", "B": "two", "C": "three"}


@pytest.mark.parametrize(
    "record",
    [
        {"options": ["one", "two", "three"]},
        {"options": ["A. one", "B. two", "C. three"]},
        {"options": {"A": "(a) one", "B": "b) two", "C": "C: three"}},
        {"options": "['one', 'two', 'three']"},  # MMMU
        {"options": '{"A": "one", "B": "two", "C": "three"}'},  # MedVLThinker
        {"choices": THREE},
        {"choices": {"text": ["one", "two", "three"], "label": ["1", "2", "3"]}},  # ARC
        {"A": "one", "B": "two", "C": "three", "D": None},  # a row of a table
    ],
)
def test_options_of_records(record: dict[str, Any]) -> None:
    assert options_of(record) == THREE


def test_options_in_columns() -> None:
    assert options_of({"opa": "one", "opb": "two", "opc": "three", "opd": "four"}) == {**THREE, "D": "four"}
    assert options_of({f"ending{n}": text for n, text in enumerate(("one", "two", "three", "four"))})["D"] == "four"


@pytest.mark.parametrize(
    "record", [{}, {"options": "one or two"}, {"options": ["one"]}, {"options": {"x": "one"}}, {"B": "one", "C": "x"}]
)
def test_no_options(record: dict[str, Any]) -> None:
    assert options_of(record) == {}


@pytest.mark.parametrize("name", ["reference", "clean"])
def test_our_own_prompts_are_read_back(name: str) -> None:
    """What the reference stores is the rendered prompt, turns included."""
    sample = Sample("1", "Is A. fumigatus seen?", {"A": "yes, in\nboth", "B": "no"}, "A", "yes, in\nboth")
    prompt = PromptTemplate.named(name).prompt_text(sample)
    assert options_in_prompt(f"{prompt}<|im_end|>\n<|im_start|>assistant\n") == {"A": "yes, in both", "B": "no"}


def test_the_last_question_of_a_prompt_counts() -> None:
    shots = "Q: a?\nA. old\nB. older\nC. oldest\nAnswer: A\n\nQ: b?\n(A) new\n(B) newer\nAnswer with the letter."
    assert options_in_prompt(shots) == {"A": "new", "B": "newer"}
    assert options_in_prompt("Q?\nA. one\nC. three\n") == {}
    assert options_in_prompt("no options") == {}


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("B", "B"), ("(B)", "B"), (" B. ", "B"), (1, "B"), ("1", "B"), ("Two", "B"), ("D", None), (3, None),
        ("b", "B"), ("(b)", "B"), ("B. two", "B"), ("b) TWO", "B"), ("B. one", None), (" 1 ", "B"),
        (True, None), (None, None), ("four", None), (-1, None),
    ],
)  # fmt: skip
def test_stored_answers(value: object, label: str | None) -> None:
    assert label_of(value, THREE) == label


def test_a_number_that_is_an_option_is_not_a_position() -> None:
    assert label_of("1", {"A": "0", "B": "2", "C": "1"}) == "C"
    assert label_of("x", {"A": "x", "B": "X"}) is None
    assert label_of("b", {"A": "b", "B": "a"}) == "A"
    assert options_of({"options": ["A. one", "B two"]}) == {"A": "A. one", "B": "B two"}
