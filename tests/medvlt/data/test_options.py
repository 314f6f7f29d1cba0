# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvlt.data.options import fixed_order, shuffle_options
from medvlt.types import Sample

SAMPLE = Sample(
    uid="toy:0:0",
    question="Which?",
    options={"A": "spleen", "B": "liver", "C": "heart", "D": "lung"},
    answer_label="B",
    answer="liver",
    reasoning="It lies on the right.",
    extra={"teacher_label": "D", "text": "rendered", "family": "organs"},
)


@given(st.integers(), st.text(), st.integers(2, 8))
def test_labels_follow_their_texts(seed: int, uid: str, number: int) -> None:
    options = {"ABCDEFGH"[i]: f"text {i}" for i in range(number)}
    sample = replace(SAMPLE, uid=uid, options=options, answer="text 1", extra={"teacher_label": "A"})
    shuffled = shuffle_options(sample, seed)
    assert list(shuffled.options) == list(options)
    assert sorted(shuffled.options.values()) == sorted(options.values())
    assert shuffled.options[str(shuffled.answer_label)] == "text 1"
    assert shuffled.options[shuffled.extra["teacher_label"]] == "text 0"
    assert (shuffled.uid, shuffled.answer) == (uid, "text 1")
    assert shuffled == shuffle_options(sample, seed)


def test_no_letter_is_favoured() -> None:
    counts = Counter(shuffle_options(SAMPLE, seed).answer_label for seed in range(2000))
    expected = 500  # chi-square with 3 degrees of freedom exceeds 16.3 once in a thousand
    assert sum((counts[label] - expected) ** 2 / expected for label in "ABCD") < 16.3
    assert len({tuple(shuffle_options(SAMPLE, seed).options.values()) for seed in range(500)}) == 24


def test_stale_rendering_is_dropped() -> None:
    assert set(shuffle_options(SAMPLE, 0).extra) == {"teacher_label", "family"}


@pytest.mark.parametrize(
    "reasoning",
    ["So the answer is B.", "(C) is wrong", "heart rate 135 is fast D", "A man came.", "B", "**D**", "not A, though"],
)
def test_reasoning_that_names_letters_stays(reasoning: str) -> None:
    sample = replace(SAMPLE, reasoning=reasoning)
    assert fixed_order(sample)
    assert all(shuffle_options(sample, seed) is sample for seed in range(5))


@pytest.mark.parametrize("reasoning", [None, "Vitamin K and factor E.", "a liver, CD4, B12, DNA", "Because."])
def test_reasoning_without_letters_is_free(reasoning: str | None) -> None:
    assert not fixed_order(replace(SAMPLE, reasoning=reasoning))


@pytest.mark.parametrize(
    "text",
    [
        *("All of the above", "none of above", "Both A and C", "a & b", "A, B, and C", "B or D", "all the above"),
        *("Neither A nor B", "(A) & (C)", "a) and c)", "Both (a) and (b)", "A/B", "Only A", "A only", "A but not B"),
        *("B, but not A", "Answers A through C", "spleen (the same as A)", "Option (C)"),
    ],
)
def test_options_that_speak_of_others_stay(text: str) -> None:
    sample = replace(SAMPLE, options={**SAMPLE.options, "D": text}, reasoning=None)
    assert shuffle_options(sample, 1) is sample


@pytest.mark.parametrize(
    "text",
    [
        "caries above the contact point",
        "Vitamin A",
        "First molar",
        "V/Q ratio",
        "factors V and X",
        "98% or above",
        "only a scar",
    ],
)
def test_options_that_speak_of_medicine_are_free(text: str) -> None:
    assert not fixed_order(replace(SAMPLE, options={**SAMPLE.options, "D": text}))


def test_open_question_stays() -> None:
    sample = replace(SAMPLE, options={}, answer_label=None)
    assert shuffle_options(sample, 1) is sample
    assert not fixed_order(sample)
