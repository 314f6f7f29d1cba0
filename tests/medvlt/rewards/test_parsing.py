# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from medvlt.rewards import parsing
from medvlt.rewards.reference import has_reference_format


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("plain", "plain"),
        ("<think>a</think>b", "\nb"),
        ("a</think>b", "b"),  # the prompt opened the block
        ("x<think>a</think>b", "x\nb"),
        ("<THINK>a</Think>b", "\nb"),
        ("<think>a<think>b</think>c</think>d", "\nd"),
        ("<think>a<think>b</think>d", "\nd"),
        ("<think>a</think>b</think>c", "\nb\nc"),
        ("<think>a</think>b<think>c</think>d", "\nb\nd"),
        ("<think>a", None),
        ("<think>a</think>b<think>c", None),
        ("b<think>", None),
        ("<think>a\n<answer> B </answer>\n", "<answer> B </answer>\n"),
        ("<think>a<answer>A</answer><answer>B</answer>", "<answer>B</answer>"),
        ("<think>a<answer>B</answer>.", None),
        ("<think>a</answer>", None),
        ("<answer>B<think>a</answer>", None),
        ("<think>a</think>b<think><answer>B</answer>", None),
    ],
)
def test_visible_text(text: str, visible: str | None) -> None:
    assert parsing.visible_text(text) == visible


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("none", []),
        ("<answer>A</answer>", ["A"]),
        ("<Answer>\nA\n</ANSWER> x <answer>B</answer>", ["\nA\n", "B"]),
        ("<answer>A", ["A"]),
        ("<answer><answer>A</answer></answer>", ["", "A"]),
        ("A</answer>", []),
    ],
)
def test_answer_blocks(text: str, blocks: list[str]) -> None:
    assert parsing.answer_blocks(text) == blocks


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        (r"\boxed{A}", ["A"]),
        (r"\boxed {A}", ["A"]),
        (r"\boxed{\text{A}} and \boxed{B}", [r"\text{A}", "B"]),
        (r"\boxed{\boxed{A}}", ["A", r"\boxed{A}"]),
        (r"\boxed{A \} }", [r"A \} "]),
        (r"\boxed{A", []),
        ("}}{", []),
    ],
)
def test_boxes(text: str, contents: list[str]) -> None:
    assert parsing.boxes(text, 9) == contents


def test_boxes_keeps_the_last() -> None:
    assert parsing.boxes(r"\boxed{A}\boxed{B}\boxed{C}", 2) == ["B", "C"]


@pytest.mark.parametrize(
    ("text", "robust", "reference"),
    [
        ("<think>a</think><answer>A</answer>", True, True),
        ("<think>a\nb</think>\n<answer>\nA\n</answer>", True, True),
        ("<think></think><answer></answer>", False, True),  # nothing was thought and nothing answered
        ("<think> </think><answer>A</answer>", False, True),
        ("<think>a</think><answer>\n</answer>", False, True),
        ("<think>a\n<answer>A</answer>", False, False),
        (" <think>a</think><answer>A</answer>", True, False),
        ("<think>a</think><answer>A</answer>\n", True, False),
        ("<think>a</think> so <answer>A</answer>", False, False),
        ("<think>a</think><answer>A</answer> done", False, False),
        ("<answer>A</answer><think>a</think>", False, False),
        ("<think>a</think><answer>A</answer><answer>B</answer>", False, True),
        ("<think>a<answer>A</answer></think><answer>B</answer>", False, True),
        ("<think><think>a</think><answer>A</answer>", False, True),
        ("<THINK>a</THINK><ANSWER>A</ANSWER>", False, False),
        ("<think>a</think><answer>A", False, False),
        ("<think>a</answer>", False, False),
        ("<think></think><answer>", False, False),
        ("", False, False),
    ],
)
def test_formats(text: str, robust: bool, reference: bool) -> None:
    assert parsing.has_format(text) is robust
    assert has_reference_format(text) is reference


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("The chest X-ray.", "chest x ray", False),  # articles stay in the text, as droppable tokens
        ("Crohn\u2019s  disease", "crohn's disease", True),
        ("**5** mg", "5mg", True),
        ("\u22122", "-2", True),
        ("-2", "2", False),
        ("2.5", "25", False),
        (".5", "5", False),
        ("2-5", "2 5", True),
        ("\u2191 Ca", "\u2193 Ca", False),
        ("> 5", "< 5", False),
        ("Na+", "Na", False),
        ("HBsAg-", "HBsAg", False),
        ("salt & water", "salt and water", True),
        (r"\(\text{B}\)", "B", True),
    ],
)
def test_tokens(a: str, b: str, equal: bool) -> None:
    first, second = ([token.text for token in parsing.tokenise(parsing.tidy(text))] for text in (a, b))
    assert (first == second) is equal


@pytest.mark.parametrize(
    ("text", "droppable"),
    [
        ("a chest film", ["a"]),
        ("A chest film", ["a"]),
        ("The use of an old drug", ["the", "an"]),
        ("Hepatitis A virus", []),
        ("A. chest film", []),
        ("vitamin a", []),
    ],
)
def test_articles(text: str, droppable: list[str]) -> None:
    assert [token.text for token in parsing.tokenise(text) if token.droppable] == droppable


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("The answer is B", ["B"]),
        ("**Answer:** B", ["B"]),
        ("Answer\n\nB", ["B"]),
        ("the best answer to this question is B", ["B"]),
        ("I would choose B", ["B"]),
        ("The answer is not B", ["not B"]),
        ("The answer cannot be B", []),
        ("I do not think it is B", []),
        ("It is not easy, but the answer is B", ["B"]),
        ("The wrong answer is B", []),
        ("Answer choices: A", []),
        ("The answers are below", []),
    ],
)
def test_declarations(text: str, ends: list[str]) -> None:
    assert [text[declaration.end :] for declaration in parsing.declarations(text, 9)] == ends


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("The most likely diagnosis in her is B", ["B"]),
        ("**Diagnosis:** B", ["B"]),
        ("Diagnosis: B", ["B"]),
        ("Next step: B", ["B"]),
        ("Option B is C", []),
        ("The differential diagnosis is B", []),
        ("Diagnosis:\nB", ["\nB"]),
        ("It is not the diagnosis: B", []),
        ("The answer is B", []),
    ],
)
def test_declarations_of_a_topic(text: str, ends: list[str]) -> None:
    found = parsing.declarations(text, 9, topic=True)
    assert [text[declaration.end :] for declaration in found] == ends
    assert all(declaration.weak and not declaration.named for declaration in found)


def test_declarations_know_what_revises() -> None:
    text = "The answer is A. The answer is B. Wait, the answer is C."
    assert [declaration.revises for declaration in parsing.declarations(text, 9)] == [False, False, True]
