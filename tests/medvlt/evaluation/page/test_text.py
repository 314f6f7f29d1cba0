# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvlt.evaluation.page.text import label, parts, shortened, visible


@given(st.text(st.characters(codec=None), max_size=60))
def test_what_is_shown_can_be_written_and_seen(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")  # no half of a character is left
    hidden = {"Cc", "Cs", "Zl", "Zp"}  # as Unicode classes them, independent of our list
    assert not [c for c in shown if unicodedata.category(c) in hidden and c not in "\n\t"]
    assert not [c for c in shown if unicodedata.bidirectional(c) in {"LRE", "RLE", "LRO", "RLO", "PDF"}]
    assert not [c for c in shown if unicodedata.bidirectional(c) in {"LRI", "RLI", "FSI", "PDI"}]


def test_what_turns_text_round_is_named() -> None:
    assert visible("abc\u202edcba") == "abc[U+202E]dcba"
    assert visible("a\x00b\ud800c\x85") == "a[U+0000]b[U+D800]c[U+0085]"
    assert visible("one\r\ntwo\tthree\n") == "one\ntwo\tthree\n"
    assert visible("\u05e9\u05dc\u05d5\u05dd \u0633\u0644\u0627\u0645 \U0001f600") == (
        "\u05e9\u05dc\u05d5\u05dd \u0633\u0644\u0627\u0645 \U0001f600"
    )


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>a</think> <answer>B</answer>", ("", "a", "<answer>B</answer>")),
        ("So. <think> a\n</think>B", ("So.", "a", "B")),
        ("<think>never ends", ("", "never ends", "")),
        ("opened in the prompt</think>B", ("", "opened in the prompt", "B")),
        ("B", ("", "", "B")),
        ("", ("", "", "")),
        ("<think>a</think>b<think>c</think>", ("", "a", "b<think>c</think>")),
    ],
)
def test_parts_of_a_completion(completion: str, expected: tuple[str, str, str]) -> None:
    assert parts(completion) == expected


def test_long_texts_lose_their_middle_and_say_so() -> None:
    text = "a" * 60 + "b" * 1_000 + "c" * 60
    shown = shortened(text, 100)
    assert shown.startswith("a" * 50 + "\n")
    assert shown.endswith("\n" + "c" * 50)
    assert "[... 1,020 characters left out ...]" in shown
    assert shortened(text, len(text)) == text


def test_labels_are_short_lines() -> None:
    assert label("a\nb  $x_1$\x00") == "a b $x_1$[U+0000]"
    assert label("x" * 10, 10) == "x" * 10
    assert label("model " + "x" * 50 + " step 9", 12) == "model \u2026tep 9", "what tells runs apart is often the end"
