# SPDX-License-Identifier: Apache-2.0
"""The behaviours of the reference's graders that were seen by running the reference itself."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlt.rewards import reference
from medvlt.rewards.reference import grade_eval, grade_regrade, grade_reward
from medvlt.types import Reason, Sample

TAG_SOUP = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "A", " ", "\n", "\r", "\x1c", "answer: ", "is: "]),
    max_size=14,
).map("".join)

SAMPLE = Sample("1", "Which drug?", {"A": "Aspirin", "B": "Heparin"}, "B", "Heparin")


@pytest.mark.parametrize(
    ("text", "reward", "evaluation", "regrade"),
    [
        ("<think>r</think><answer>B</answer>", True, True, True),
        ("<think>r</think>\n<answer>B</answer>", True, True, True),
        ("<think> r </think>\n<answer> B </answer>", True, True, True),
        ("<think></think><answer>B</answer>", True, True, True),
        ("<think>r</think><answer>b</answer>", True, True, True),
        ("<think>r</think><answer>heparin</answer>", True, True, True),
        ("<think>r</think><answer>B. Heparin</answer>", True, True, True),
        ("<think>r</think><answer>A</answer>", False, False, False),
        ("<think>r</think><answer>(B)</answer>", False, False, False),
        ("<think>r</think><answer>B.</answer>", False, False, False),
        ("<think>r</think><answer>\nB\n</answer>", False, True, True),
        ("<think>r</think><answer>B</answer>\n", False, True, True),
        (" <think>r</think><answer>B</answer>", False, True, True),
        ("<think><answer>B</answer></think><answer>A</answer>", True, True, False),
        ("<think>r</think><answer>B</answer><answer>A</answer>", True, True, False),
        ("<think>r</think><answer>A</answer><answer>B</answer>", False, False, True),
        ("<think>r</think><answer>\nA</answer><answer>B</answer>", True, False, True),
        ("<think>r</think><answer>B", False, False, False),
        ("<think>r</think>B", False, False, False),
        ("B", False, True, True),
        ("heparin", False, True, True),
        ("The answer is B", False, False, True),
        ("The answer is B.", False, False, False),
        ("<answer>B\nbecause</answer>", False, False, True),
        ("", False, False, False),
    ],
)
def test_verified_behaviours(text: str, reward: bool, evaluation: bool, regrade: bool) -> None:
    assert grade_reward(text, SAMPLE)[0] is reward
    assert grade_eval(text, SAMPLE)[0] is evaluation
    assert grade_regrade(text, SAMPLE)[0] is regrade


@pytest.mark.parametrize(
    ("text", "label", "reason"),
    [
        ("<think>r</think><answer>A</answer>", "A", Reason.LABEL),
        ("<think>r</think><answer>aspirin</answer>", "A", Reason.TEXT),
        ("<think>r</think><answer>A. Aspirin</answer>", "A", Reason.LABEL_AND_TEXT),
        ("<think>r</think><answer>C</answer>", None, Reason.UNKNOWN_OPTION),
        ("<think>r</think><answer> </answer>", None, Reason.EMPTY),
        ("A", None, Reason.BAD_FORMAT),
    ],
)
def test_label_and_reason(text: str, label: str | None, reason: Reason) -> None:
    assert grade_reward(text, SAMPLE) == (False, label, reason)


def test_open_question_is_compared_by_text() -> None:
    sample = Sample("1", "Which organ?", {}, None, "Left lung")
    assert grade_eval(" left lung ", sample) == (True, None, Reason.TEXT)


@settings(max_examples=500, deadline=None)
@given(TAG_SOUP, st.booleans())
def test_reference_format_equals_the_pattern(soup: str, dress: bool) -> None:
    text = f"<think>{soup}</answer>" if dress else soup
    pattern = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
    assert reference.has_reference_format(text) is (pattern.fullmatch(text) is not None)


@settings(max_examples=500, deadline=None)
@given(TAG_SOUP)
def test_first_blocks_equal_the_patterns(text: str) -> None:
    spanning = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    assert reference.first_block(text) == (spanning[1] if spanning else None)
    within = re.search(r"<answer>(.*?)</answer>", text)
    assert reference.first_block_in_a_line(text) == (within[1] if within else None)


@pytest.mark.parametrize(
    ("text", "extracted"),
    [
        ("<answer>A</answer> <answer>\n B \nC</answer>", "B"),
        ("<answer>B\rC</answer>", "B"),
        ("<answer></answer>", ""),
        ("Answer: A\nANSWER:\n B\nmore", "B"),
        ("answer: x answer: y", "x answer: y"),
        ("is: C and the answer is B", "B"),
        ("the answer is: B", "B"),
        ("the drug is: B", "B"),
        ("<think>x</think> B", "x B"),
        ("  nothing here ", "nothing here"),
    ],
)
def test_regrade_extract(text: str, extracted: str) -> None:
    assert reference.regrade_extract(text) == extracted
