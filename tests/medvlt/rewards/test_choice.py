# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from medvlt.rewards.choice import agree, read_answer_blocks, read_statement, read_text
from medvlt.rewards.grade import grade
from medvlt.rewards.options import Options, Reading, prepare
from medvlt.types import Reason, Sample

DRUGS = {"A": "Aspirin", "B": "Switch to chlorpromazine", "C": "A chest X-ray", "D": "E. coli"}
SIGNS = {"A": "\u2191 Ca, \u2193 PO4", "B": "\u2193 Ca, \u2191 PO4", "C": "Both A and B"}
NUMBERS = {"A": "2", "B": "-2", "C": "2.5", "D": "25", "E": "2 mg"}
BLOOD = {"A": "O", "B": "A", "C": "B", "D": "AB"}
VIRUS = {"A": "Hepatitis A virus", "B": "Hepatitis B virus", "C": "Hepatitis virus"}
TWINS = {"A": "Swan neck deformity", "B": "Swan-neck deformity", "C": "pH", "D": "PH"}
MARKS = {"A": "?", "B": "+", "C": "++"}


def ready(options: dict[str, str]) -> Options:
    return prepare(tuple(options.items()))


@pytest.mark.parametrize(
    ("options", "text", "label", "reason"),
    [
        (SIGNS, "\u2193 Ca, \u2191 PO4", "B", Reason.TEXT),
        (SIGNS, "Ca, PO4", None, None),
        (SIGNS, "Both A and B", "C", Reason.TEXT),
        (SIGNS, "C. Both A and B", "C", Reason.LABEL_AND_TEXT),
        (SIGNS, "A and B", None, Reason.AMBIGUOUS),
        (NUMBERS, "-2", "B", Reason.TEXT),
        (NUMBERS, "\u22122", "B", Reason.TEXT),
        (NUMBERS, "B -2", "B", Reason.LABEL_AND_TEXT),
        (NUMBERS, "A. -2", None, Reason.AMBIGUOUS),
        (NUMBERS, "2.", "A", Reason.TEXT),
        (NUMBERS, "2 mg", "E", Reason.TEXT),
        (NUMBERS, "2 g", None, None),
        (NUMBERS, "+2", None, None),
        (NUMBERS, "2,5", None, None),
        (BLOOD, "A", "A", Reason.LABEL),  # a bare letter is a label, even where it is also a text
        (BLOOD, "AB", "D", Reason.TEXT),
        (BLOOD, "D. AB", "D", Reason.LABEL_AND_TEXT),
        (BLOOD, "C. B", "C", Reason.LABEL_AND_TEXT),
        (VIRUS, "hepatitis a virus", "A", Reason.TEXT),
        (VIRUS, "HEPATITIS B VIRUS", "B", Reason.TEXT),
        (VIRUS, "Hepatitis virus", "C", Reason.TEXT),
        (TWINS, "swan-neck deformity", "B", Reason.TEXT),
        (TWINS, "PH", "D", Reason.TEXT),
        (TWINS, "ph", None, None),
        (MARKS, "?", "A", Reason.TEXT),
        (MARKS, "++", "C", Reason.TEXT),
        (MARKS, "***", None, None),
        (DRUGS, "C. diff", "C", Reason.LABEL),
        (DRUGS, "E. coli", "D", Reason.TEXT),
        ({**DRUGS, "E": "Clostridium difficile"}, "C. difficile colitis", None, None),
        ({**DRUGS, "E": "Yes"}, "The answer is E. coli", "D", Reason.TEXT),
    ],
)
def test_read_text(options: dict[str, str], text: str, label: str | None, reason: Reason | None) -> None:
    expected = None if reason is None else Reading(label, reason)
    assert read_text(text, ready(options)) == expected


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("B because A is contraindicated", "B"),
        ("B, not A", "B"),
        ("B (A is wrong)", "B"),
        ("(B). (A) causes bleeding", "B"),
        ("B. Switch to chlorpromazine. Aspirin is no help", "B"),
        ("Switch to chlorpromazine (B)", "B"),
        ("most likely option B", "B"),
        ("not A but B", "B"),
    ],
)
def test_an_explanation_is_not_a_second_answer(text: str, label: str) -> None:
    reading = read_statement(text, ready(DRUGS))
    assert reading is not None
    assert reading.label == label


@pytest.mark.parametrize(
    "text",
    [
        "A or B", "A/B", "A, B", "A & B", "A B C D", "(A)(B)", "A+B", "either A or B", "A or possibly B",
        "A, but it could also be B", "A. Aspirin B. Switch to chlorpromazine", "A or switch to chlorpromazine",
        "Aspirin (B)", "A. Switch to chlorpromazine", "A Switch to chlorpromazine",
    ],
)  # fmt: skip
def test_two_answers_are_ambiguous(text: str) -> None:
    reading = read_statement(text, ready(DRUGS))
    assert reading is None or reading.label is None


def test_strict_statements_end_with_the_answer() -> None:
    options = ready(DRUGS)
    assert read_statement("aspirin (which thins blood) would help", options) == Reading("A", Reason.TEXT)
    assert read_statement("aspirin (which thins blood) would help", options, strict=True) is None
    assert read_statement("aspirin.", options, strict=True) == Reading("A", Reason.TEXT)


def test_the_longest_option_wins() -> None:
    options = ready({"A": "Aspirin", "B": "Aspirin and heparin", "C": "Heparin"})
    assert read_statement("aspirin and heparin", options) == Reading("B", Reason.TEXT)
    assert read_statement("A. aspirin and heparin", options) == Reading(None, Reason.AMBIGUOUS)
    assert read_statement("heparin and aspirin", options) == Reading(None, Reason.AMBIGUOUS)
    assert read_statement("aspirin and warfarin", options) is None


def test_synonyms_need_one_option_each() -> None:
    assert ready({"A": "Yes", "B": "No", "C": "Maybe"}).polarity == {True: "A", False: "B"}
    assert ready({"A": "True", "B": "Present", "C": "No"}).polarity == {False: "C"}
    assert ready({"A": "Yes, always", "B": "Never"}).polarity == {}


def test_agree() -> None:
    a, b = Reading("A", Reason.LABEL), Reading("B", Reason.TEXT)
    ambiguous = Reading(None, Reason.AMBIGUOUS)
    assert agree([]) is None
    assert agree([None, a, None]) == a
    assert agree([a, b]) == ambiguous
    assert agree([ambiguous, a]) == ambiguous
    assert agree([Reading("B", Reason.LABEL), b]) == b


@pytest.mark.parametrize(
    ("blocks", "label", "reason"),
    [
        (["B", "b."], "B", Reason.LABEL),
        (["A", "B"], None, Reason.AMBIGUOUS),
        (["A or C", "B"], None, Reason.AMBIGUOUS),
        (["your answer here", "B"], "B", Reason.LABEL),
        (["B", "none of these"], None, Reason.UNKNOWN_OPTION),
        (["A"] * 100 + ["B"], None, Reason.AMBIGUOUS),
    ],
)
def test_read_answer_blocks(blocks: list[str], label: str | None, reason: Reason) -> None:
    assert read_answer_blocks(blocks, ready(DRUGS)) == Reading(label, reason)


CONCLUSIONS = [
    "The most likely diagnosis is {label}. {text}.", "Diagnosis: {label}. {text}", "Ans: {label}",
    "It fits.\nThe findings are consistent with ({label}) {text}.", "<answer>It is {text} ({label}).</answer>",
]  # fmt: skip


def _questions(path: Path) -> Iterator[Sample]:
    for index, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        yield Sample(str(index), row["question"], row["options"], row["answer_label"], row["answer"])


@pytest.mark.parametrize("name", ["text_mcq_medqa_train.jsonl", "vqa_rad_closed_yesno.jsonl"])
def test_real_questions(shared_data: Path, name: str) -> None:
    samples = list(_questions(shared_data / name))
    assert len(samples) > 600
    unread: list[bool] = []
    for sample in samples:
        for label, text in sample.options.items():
            for answer in (
                label,
                text,
                text.lower(),
                text.upper(),
                f"{label}. {text}",
                f"({label.lower()}) {text}",
                f"{text}.",
            ):
                right = label == sample.answer_label
                for completion in (
                    answer,
                    f"<think> r </think>\n<answer> {answer} </answer>",
                    f"The answer is {label}. {text}",
                ):
                    verdict = grade(completion, sample)
                    assert (verdict.correct, verdict.label) == (right, label), (completion, sample)
            for conclusion in CONCLUSIONS:
                completion = conclusion.format(label=label, text=text)
                found = grade(completion, sample).label
                assert found in (label, None), (completion, sample)
                unread.append(found is None)
    # an option of several sentences, or one such as "Both A and B", may stay unread
    assert sum(unread) < 0.01 * len(unread)
