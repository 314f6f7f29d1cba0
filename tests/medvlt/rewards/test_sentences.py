# SPDX-License-Identifier: Apache-2.0
"""What version 2 of the robust grader reads beyond version 1, each with twins that must stay unread."""

from __future__ import annotations

import time

import pytest

from medvlt.rewards.grade import grade
from medvlt.types import Reason, Sample

MUSCLE = {
    "A": "Cardiac muscle", "B": "Smooth muscle", "C": "Muscle", "D": "Vitamin D deficiency", "E": "Hepatitis B",
    "F": "A vaulted ceiling",
}  # fmt: skip
VALUES = {
    "A": "6", "B": "12 weeks", "C": "B12 deficiency", "D": "-700,250,0", "E": "2", "F": "2/3 V",
    "G": "(1) 0.0971 (2) 0.01", "H": "2.5", "I": "8",
}  # fmt: skip
LETTERS = {letter: letter for letter in "ABCD"}
SWAPPED = {"A": "B", "B": "A", "C": "D", "D": "C"}


def read(text: str, options: dict[str, str]) -> tuple[str | None, Reason]:
    """Returns label and reason, which must not depend on which option is right."""
    verdicts = {
        grade(text, Sample("1", "Which?", options, right, options[right]), policy="robust") for right in options
    }
    found = {(verdict.label, verdict.reason) for verdict in verdicts}
    assert len(found) == 1
    assert sum(verdict.correct for verdict in verdicts) == (verdicts.copy().pop().label is not None)
    return found.pop()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Only two are true.\n\nAnswer: E2", "E"),
        ("**Answer: D-700,250,0**", "D"),
        ("Answer: F\\(2/3 \\, V\\)", "F"),
        ("Answer: G(1) 0.0971", "G"),
        ("The answer is H2.5.", "H"),
    ],
)
def test_a_label_glued_to_its_own_text(text: str, label: str) -> None:
    assert read(text, VALUES) == (label, Reason.LABEL_AND_TEXT)
    # the same characters where the label's text is another one
    moved = dict(zip("ABCDEFGHI", [*list(VALUES.values())[1:], VALUES["A"]], strict=True))
    assert read(text, moved)[0] is None


@pytest.mark.parametrize(
    "text",
    [
        "E2", "Therefore, E2", "Answer: B12", "Answer: E3", "Answer: E22", "Answer: E2.5", "Answer: E2F",
        "Answer: D700,250,0", "Answer: G(1) 0.5", "Answer: G(2) 0.01", "Answer: E2 or A6", "Answer: E2, A6",
        "Answer: E2\nNo, A6.", "Answer: E2 is wrong", "The answer is not E2", "Answer: e2", "Answer: A6 mg",
        "Answer: E2?!A", "<think>Answer: E2</think>", "<answer>E2</answer>", "Answer: F2", "Answer: Z2",
        "Answer: G(", "Answer: G(?)",
    ],
)  # fmt: skip
def test_a_glued_label_that_may_be_something_else(text: str) -> None:
    assert read(text, VALUES)[0] is None


def test_a_glued_label_that_begins_another_option() -> None:
    assert read("Answer: B12", {"A": "6", "B": "12"}) == ("B", Reason.LABEL_AND_TEXT)
    assert read("Answer: B12", {"A": "B12 deficiency", "B": "12"})[0] is None


DRUGS = {"A": "Aspirin", "B": "Heparin", "C": "A chest X-ray", "D": "Both a and c"}


@pytest.mark.parametrize(
    "text",
    [
        "Therefore, aspirin and a chest X-ray help.\n\nAnswer: D", "Thus, aspirin or heparin.\n**Final answer: D**",
        "Hence aspirin, heparin.\nThe answer is (D).",
    ],
)  # fmt: skip
def test_a_step_that_names_several_does_not_outweigh_the_last_line(text: str) -> None:
    assert read(text, DRUGS) == ("D", Reason.LABEL)


@pytest.mark.parametrize(
    "text",
    [
        "Therefore, A or C.\nAnswer: D", "Therefore, (a) or (c).\nAnswer: D", "Thus, aspirin or C.\nAnswer: D",
        "Therefore, aspirin.\nAnswer: B", "The answer is aspirin or heparin.\nAnswer: B", "Answer: A\nAnswer: B",
        "Answer: B\nTherefore, aspirin or heparin.", "Thus, aspirin or heparin.\nAnswer: A or B",
        "Thus, aspirin or heparin.\nAnswer: unclear", "Thus, aspirin or heparin.\nAnswer: B\nOr not.",
        "I think aspirin or heparin.\nI think B.",
    ],
)  # fmt: skip
def test_two_answers_stay_ambiguous(text: str) -> None:
    assert read(text, DRUGS)[0] is None


@pytest.mark.parametrize(
    ("text", "options", "label"),
    [
        ("The correct view is (D).", LETTERS, "D"),
        ("We look from above. Hence, the best notation in 2/4 time is (B).", LETTERS, "B"),
        ("The value is 1.9.\n\nThus, it is **1.9**, corresponding to option D.", LETTERS, "D"),
        ("The diameter is 5 mm, which corresponds to option **B**.", LETTERS, "B"),
        ("The building had a vaulted ceiling (option F).", MUSCLE, "F"),
        ("The cause of this finding is: (A) Cardiac muscle. This beats by itself.", MUSCLE, "A"),
        ("The image matches (B) smooth muscle, because it is plain. It is found in vessels.", MUSCLE, "B"),
        ("This represents **smooth muscle (B)**. Here's why:\n\n* **Smooth muscle** has no stripes.", MUSCLE, "B"),
        ("<answer>The image matches (B) smooth muscle. It is found in vessels.</answer>", MUSCLE, "B"),
    ],
)
def test_a_sentence_with_a_label(text: str, options: dict[str, str], label: str) -> None:
    found, reason = read(text, options)
    assert found == label
    assert reason in (Reason.LABEL, Reason.LABEL_AND_TEXT)


@pytest.mark.parametrize(
    "text",
    [
        # labels of other words
        "Vitamin D is low.", "The patient lacks vitamin D.", "She has hepatitis B (option C).",
        "It is shown in section D.", "The lesion is best seen in Figure C.", "The lesion is in panel (B).",
        "The best image is Figure (C).",
        "Type A dissection matches option B.", "A group B streptococcus (option A).", "It is blood type (A).",
        # negated, asked, hedged, excluded
        "The correct view is not (D).", "This does not correspond to option D.", "It may be equal to option D.",
        "Is the correct view (D)?", "Which value corresponds to option D?", "The incorrect view is (D).",
        "The drug is contraindicated (option A).", "It is the least likely one (option A).",
        "Perhaps smooth muscle (option B).", "It is anything but smooth muscle (option B).",
        "If it were striped, the correct view is (A).",
        "It is different from (B) Smooth muscle. It is striped.",
        "What is seen seems (B) Smooth muscle. It is striped.",
        # two options
        "The correct views are (A) and (B).", "It is a vaulted ceiling (option A) or a muscle (option B).",
        "One is equal to option A. The other is equal to option B.", "The cause is (A) Smooth muscle. It is plain.",
        "It is cardiac muscle (option B).", "The correct cardiac muscle is (B).",
        "The cause is (A) Cardiac muscle. Hence smooth muscle it is.", "The cause is (A) Cardiac muscle. (B) is too.",
        "The cause is (A) Cardiac muscle. However, it is plain.", "The cause is (A) Cardiac muscle. No, it is plain.",
        "The cause is (A) Cardiac muscle hypertrophy. It is thick.",
        "The cause is (A) Cardiac muscle, which is wrong. It is so.", "Let us begin with option A.",
        "I looked at (A) first. It beats.", "We begin with option A. It beats.",
        "Options equal to option Z.", "<think>The correct view is (D).</think>",
    ],
)  # fmt: skip
def test_a_sentence_that_names_no_option(text: str) -> None:
    assert read(text, MUSCLE)[0] is None


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("The tissue in the image is cardiac muscle.", "A"),
        ("The tissue is muscle.", "C"),  # not the end of "cardiac muscle"
        ("The tissue is the smooth muscle.", "B"),
        ('The title of the work is "A vaulted ceiling".', "F"),
        ("<think>The tissue is muscle.</think>The tissue is smooth muscle.", "B"),
        ("<answer>The tissue is smooth muscle.</answer>", "B"),
    ],
)
def test_a_reply_of_one_sentence(text: str, label: str) -> None:
    assert read(text, MUSCLE) == (label, Reason.TEXT)


@pytest.mark.parametrize(
    "text",
    [
        "The tissue is not cardiac muscle.", "The tissue isn't cardiac muscle.", "No tissue is cardiac muscle.",
        "Is the tissue cardiac muscle?", "The tissue is cardiac muscle?", "The tissue might be what is cardiac muscle.",
        "If striped, the tissue is cardiac muscle.", "The tissue is cardiac muscle or smooth muscle.",
        "The tissue is cardiac muscle, smooth muscle.", "The tissue is cardiac muscle rather than smooth muscle.",
        "Unlike smooth muscle, the tissue is cardiac muscle.", "Beside smooth muscle is cardiac muscle.",
        "The tissue is cardiac muscle tissue.", "The tissue is metastatic cardiac muscle.",
        "The tissue is near cardiac muscle.", "The tissue is a mimic of cardiac muscle.",
        "The least likely tissue is cardiac muscle.",
        "The differential diagnosis of this is muscle.", "Perhaps the tissue is muscle.",
        "The tissue is cardiac muscle", "The previous name is muscle.", "The tissue was muscle.",
        "The tissue is cardiac muscle. It beats.",
        "It is striped. The tissue is cardiac muscle.", "It is striped.\nThe tissue is cardiac muscle.",
        "The tissue is cardiac muscle.\nIt beats.",
        'The title is "A vaulted ceiling."\nIt is old.',
        "The lacking vitamin is D.", "The virus is hepatitis B.", "Answer: the tissue is cardiac.",
        "In group B the tissue is cardiac muscle.", "The tissue is cardiac.", "The Answer: \\boxed{} is muscle.",
    ],
)  # fmt: skip
def test_a_reply_that_may_say_something_else(text: str) -> None:
    assert read(text, MUSCLE)[0] is None


@pytest.mark.parametrize("letter", ["A", "I"])
def test_a_remark_behind_the_labels_that_may_be_words(letter: str) -> None:
    assert read(f"So it is.\n\nAnswer: {letter} (roughly).", VALUES) == (letter, Reason.LABEL)
    assert read(f"**Answer: {letter}** (from the table)", VALUES) == (letter, Reason.LABEL)
    for text in (
        "Answer: {} (large) effusion", "Answer: {} (or B)", "Answer: {} (B is also correct)", "Answer: {} (is wrong)",
        "Answer: {} (or any of the other options)", "Answer: {} (just an example)", "{} (roughly).",
        "Therefore, {} (roughly).", "The answer is not {} (roughly).", "Answer: {} (roughly)\nNo, B.",
        "Answer: {} (x) (y) z", "<answer>{} (large) effusion</answer>",
    ):  # fmt: skip
        assert read(text.format(letter), VALUES)[0] is None, text
    assert read(f"The answer is {letter.lower()} (roughly).", VALUES)[0] is None


def test_labels_are_told_from_texts_that_are_letters() -> None:
    assert read("The correct view is (D).", SWAPPED) == ("D", Reason.LABEL)
    assert read("The view is D.", SWAPPED)[0] is None


@pytest.mark.parametrize(
    "unit",
    [
        "The correct ", "correct is (A) ", "is muscle ", "is a ", "(option A) ", "equal to option A. ", "(A) Muscle. ",
        "Answer: E2\n", "Answer: A (", "Therefore, aspirin and heparin.\n", "The cause is (A) Cardiac muscle. ", "A (x",
    ],
)  # fmt: skip
def test_time_is_linear(unit: str) -> None:
    sample = Sample("1", "Which?", MUSCLE, "A", MUSCLE["A"])
    for text in (unit * (100_000 // len(unit)), f"The cause is (A) Cardiac muscle. {unit * (100_000 // len(unit))}"):
        start = time.process_time()
        grade(text, sample)
        assert time.process_time() - start < 2.0  # a quadratic rule needs minutes
