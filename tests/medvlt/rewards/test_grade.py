# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlt.errors import ConfigurationError, MedvltError
from medvlt.rewards.grade import GRADER_VERSION, GradePolicy, grade
from medvlt.types import Reason, Sample, Verdict

POLICIES: tuple[GradePolicy, ...] = get_args(GradePolicy)

DRUGS = {"A": "Aspirin", "B": "Switch to chlorpromazine", "C": "A chest X-ray", "D": "Expectant management"}
DRUG = Sample("1", "Which is the next step?", DRUGS, "B", DRUGS["B"])
YES_NO = Sample("2", "Is the lung abnormal?", {"A": "Yes", "B": "No"}, "B", "No")
SIDES = Sample("3", "Which side?", {"A": "left", "B": "right"}, "B", "right")
TEN = Sample(
    "4", "Which?", {letter: f"Finding number {ord(letter)}" for letter in "ABCDEFGHIJ"}, "I", "Finding number 73"
)
MANY = Sample("5", "Which?", {chr(65 + i): f"Finding number {i}" for i in range(26)}, "Z", "Finding number 25")
OPEN = Sample("6", "Which organ?", {}, None, "lung")

RIGHT = [
    # bare labels, and the ways to dress one
    "B", "b", "B.", "B)", "(B)", "(b)", "[B]", "**B**", "`B`", "$B$", '"B"', "\u201cB\u201d", "B:", " B \n",
    "Option B", "option (b).", "B\n\n", "B!", "\\(B\\)", "\\text{B}", "\uff22", "- B", "> B",
    # a label with its text, or with another remark
    "B. Switch to chlorpromazine", "B: switch to chlorpromazine.", "(B) Switch to Chlorpromazine",
    "B.Switch to chlorpromazine", "B - Switch to chlorpromazine", "B Switch to chlorpromazine",
    "Option B: Switch to chlorpromazine", "Switch to chlorpromazine (B)", "B, because aspirin harms",
    "B because A is contraindicated", "B \u2014 the drug is at fault", "B. text", "B, not A",
    "B. Switch to chlorpromazine\n\nExplanation: A is wrong. (C) is late.",
    # the text alone
    "Switch to chlorpromazine", "switch to chlorpromazine.", "SWITCH TO CHLORPROMAZINE",
    "The switch to chlorpromazine!", "switch  to\nchlorpromazine", "**Switch to chlorpromazine**",
    "Switch to chlorpromazine is the correct answer",
    # declared
    "The answer is B", "The answer is (B).", "the answer is b.", "The answer is: B", "The answer is **B**.",
    "Answer: B", "Answer: B. text", "answer: (b)", "**Answer:** B", "**Answer: B**", "### Answer\nB",
    "Answer:\n\nB. Switch to chlorpromazine", "Final answer: B", "The final answer is $\\boxed{\\text{B}}$.",
    "The correct option is B.", "The best answer is option B.", "The answer to this question is therefore B.",
    "My answer would be B", "Therefore, the answer is Switch to chlorpromazine.", "I would choose B.", "I think B.",
    "B is the correct answer.", "(B) is correct", "Therefore, option B is the best choice.", "Thus, B.",
    "The answer is most likely (B).", 'The answer is "B".', "The answer is not A but B.",
    # boxed
    "\\boxed{B}", "so \\boxed{ b }", "\\boxed{\\text{B. Switch to chlorpromazine}}", "\\boxed{\\textbf{(B)}}",
    "\\boxed{Switch to chlorpromazine}", "A seems good, C too.\n\\boxed{B}", "\\boxed{B} and again \\boxed{B}",
    # tags
    "<answer>B</answer>", "<ANSWER> b </ANSWER>", "<answer>\nB\n</answer>", "<answer>(B)</answer>",
    "<answer>**B**</answer>", "<answer>The answer is B.</answer>", "<answer>\\boxed{B}</answer>",
    "<answer>Switch to chlorpromazine</answer>", "<answer>B", "B</answer>", "<answer><answer>B</answer></answer>",
    "<answer>B</answer><answer>B. Switch to chlorpromazine</answer>",
    "I put it in <answer></answer> tags. <answer>B</answer>", "<answer>B</answer> A is wrong.",
    # the thinking part is not read
    "<think>The answer is A.</think>\n<answer>B</answer>", "<think><answer>A</answer></think><answer>B</answer>",
    "<think>A</think>B", "<think>A</think>\n\nThe answer is B.", "it is A</think><answer>B</answer>",
    "<think>a<think>b</think>c</think><answer>B</answer>", "<THINK>A</THINK><answer>B</answer>",
    "<think>A</think><answer>B</answer></think>",
    # reasoning in the open, then a conclusion
    "A. Aspirin is wrong here.\nB. Switch to chlorpromazine might do.\nC. A chest X-ray is late.\n\nThe answer is B.",
    "Option A thins blood. Option C shows the lung. The answer is (B). Option A is incorrect.",
    "First I thought the answer is A. Wait, it is tardive dyskinesia. The answer is B.",
    "The answer is A? No: the drug is the cause. However, the answer is B.", "Long reasoning here.\n\nB",
    "Long reasoning here.\n**B. Switch to chlorpromazine**", "I do not think the answer is A. The answer is B.",
    "A 60-year-old woman moves her mouth.\nAnswer: B",
    # a conclusion that does not say "answer"
    "The most likely diagnosis is B. Switch to chlorpromazine.", "The correct diagnosis is B. text",
    "Diagnosis: B. Switch to chlorpromazine", "The most appropriate treatment is B.", "The key finding is (B).",
    "The best next step is B.", "Option: B", "Choice: B", "Ans: B",
    "A. Aspirin\nB. Switch to chlorpromazine\nC. A chest X-ray\nThe best treatment is B. Switch to chlorpromazine.",
    "The findings are consistent with (B) Switch to chlorpromazine.",
    "It is late. The patient most likely needs switch to chlorpromazine (B).",
    # a tag announces an answer
    "<answer>Switch to chlorpromazine is the most likely answer.</answer>",
    "<answer>Switch to chlorpromazine - as explained</answer>", "<answer>Switch to chlorpromazine (the drug)</answer>",
    "<answer>The patient most likely needs switch to chlorpromazine (B).</answer>",
    # the end of the thinking part was forgotten
    "<think> r \n<answer> B </answer>", "<think>It could be <answer>A</answer>\n<answer>B</answer>\n",
    # taken back, but then said again
    "The answer is A. No, wait. Therefore the answer is B.", "The answer is B. Wait, A? No. The answer is B.",
    # options restated before a conclusion
    "Aspirin\nSwitch to chlorpromazine\nA chest X-ray\n\nThe answer is B", "B\nB",
    "B because it works. Aspirin actually thins blood.",
]  # fmt: skip

WRONG = [
    "A", "(a)", "C. A chest X-ray", "Aspirin", "aspirin.", "an aspirin", "chest x-ray", "A chest X-ray",
    "The answer is A", "The answer is a chest x-ray.", "\\boxed{D}", "<answer>A</answer> The answer is B",
    "<think>B</think><answer>A</answer>", "<think>The answer is B</think>A",
    "The answer is B. Wait, no. The answer is A.",
]  # fmt: skip

AMBIGUOUS = [
    "A or B", "B or A", "A, B", "B/A", "B and C", "B & C", "B C", "(B)(A)", "B; A", "B + A", "B|A", "either B or C",
    "Both A and B", "B or possibly C", "B, but it could also be C", "A, B, C, D", "A B C D", "A\nB\nC\nD", "A.B.C.D",
    "A. Aspirin\nB. Switch to chlorpromazine\nC. A chest X-ray\nD. Expectant management",
    "A. Aspirin B. Switch to chlorpromazine C. A chest X-ray D. Expectant management",
    "aspirin or switch to chlorpromazine", "Switch to chlorpromazine, aspirin", "A. Switch to chlorpromazine",
    "B. Aspirin", "Aspirin (B)", "A Switch to chlorpromazine", "The answer is A or B.",
    "The answer is A. The answer is B.", "Answer: A\nAnswer: B", "\\boxed{A} \\boxed{B}", "\\boxed{A, B}",
    "<answer>A</answer><answer>B</answer>", "<answer>A</answer>\n<think>r</think>\n<answer>B</answer>",
    "<answer>A or B</answer>", "<answer>A, B, C, D</answer>", "<answer>A or B</answer><answer>B</answer>",
    "<answer>A<answer>B</answer>", "B is correct. A is correct.", "B. Because (A) is a drug, (C) a picture.",
    "(B), which stops it, or possibly C", "B, as well as A", "B; if not, A", "B, otherwise C", "B (A also acceptable)",
    "B because A, C, D are also right", "B (C is fine too)", "<answer>B\nor A\nB</answer>",
    "<answer>B\nMaybe A\n</answer>", "B\nor (A)",
    "Switch to chlorpromazine\nAspirin\nA chest X-ray\nExpectant management\nSwitch to chlorpromazine",
    "The answer is B. No, it is A.", "The answer is B? No, it is A.", "Is the answer B? No.",
    "The answer is B.\nNo, A.", "The answer is B. Hmm, actually A.", "The answer is B. It works. Wait, A works.",
    "B\nWait, A", "<answer>B, wait, A</answer>", "<answer>B? No.</answer>", "<answer>B\nNo, it is A</answer>",
    "The diagnosis is A. The treatment is B.", "A. one, B. two, C. three, D. four", "A. this B. that C. these",
]  # fmt: skip

UNREAD = [
    "not B", "The answer is not B", "The answer cannot be B.", "I do not choose B.", "The wrong answer is B",
    "neither A nor B", "B is wrong", "B: incorrect", "ABCD", "BB", "B-cell lymphoma", "B cells", "vitamin B is good",
    "Vitamin B is the best vitamin", "A 45-year-old man", "a beta blocker", "chlorpromazine", "Switch",
    "Switch to chlorpromazine therapy for life", "all of the above", "none", "I do not know", "Hello.", "E", "(E)",
    "Answer: F", "<answer>Z</answer>", "<answer>clopidogrel</answer>", "<answer>I cannot say</answer>",
    "<answer>B</answer><answer>none</answer>", "\\boxed{}", "\\boxed{5}", "\u0412", "<think>B</think>",
    "<think>The answer is B.</think>", "<think><answer>B</answer></think>",
    "<think>x<think>y</think>The answer is B</think>", "The answer is unclear. B might fit.", "If A, then B.",
    "Options A and B are wrong.", "Therefore, both A and B are correct.", "...", "?", "{", "\x00",
    "Therefore, aspirin (an old drug) would not help.", "The most likely diagnosis is not B.",
    "It is not consistent with (B) Switch to chlorpromazine.", "Could it be (B) Switch to chlorpromazine?",
    "It was aspirin, then (B) Switch to chlorpromazine.", "I saw A then (B) Switch to chlorpromazine.",
    "<answer>No need for switch to chlorpromazine (B).</answer>", "<answer>Aspirin - wrong</answer>",
    "It is late. " + "Not so " * 100 + "consistent with (B) Switch to chlorpromazine.",
    "Differential diagnosis:\naspirin and more", "A (3 cm) nodule is visible.",
    "A so-called silhouette sign is visible.",
    "A for-profit hospital", "<answer>A (large) effusion</answer>", "<answer>a (large) effusion</answer>",
    "(B)ut this is a word", "B's",
]  # fmt: skip


@pytest.mark.parametrize("text", RIGHT)
def test_right(text: str) -> None:
    verdict = grade(text, DRUG)
    assert verdict.correct, verdict
    assert verdict.label == "B"
    assert verdict.reason in (Reason.LABEL, Reason.LABEL_AND_TEXT, Reason.TEXT)
    assert verdict.grader_version == GRADER_VERSION


@pytest.mark.parametrize("text", RIGHT)
def test_the_same_text_is_wrong_where_another_option_is_right(text: str) -> None:
    other = Sample("1", DRUG.question, DRUGS, "C", DRUGS["C"])
    assert grade(text, other) == Verdict(
        False, "B", grade(text, DRUG).format_ok, grade(text, DRUG).reason, GRADER_VERSION
    )


@pytest.mark.parametrize("text", WRONG)
def test_wrong(text: str) -> None:
    verdict = grade(text, DRUG)
    assert not verdict.correct
    assert verdict.label in ("A", "C", "D")


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_two_answers(text: str) -> None:
    verdict = grade(text, DRUG)
    assert (verdict.correct, verdict.label, verdict.reason) == (False, None, Reason.AMBIGUOUS)


@pytest.mark.parametrize("text", UNREAD)
def test_no_option_is_chosen(text: str) -> None:
    for right in DRUGS:
        verdict = grade(text, Sample("1", DRUG.question, DRUGS, right, DRUGS[right]))
        assert (verdict.correct, verdict.label) == (False, None)
        assert verdict.reason in (Reason.NO_ANSWER, Reason.UNKNOWN_OPTION)


@pytest.mark.parametrize(
    ("text", "sample", "label", "reason"),
    [
        ("No", YES_NO, "B", Reason.TEXT),
        ("no, it is clear", YES_NO, "B", Reason.TEXT),
        ("Yes. The lesion is visible.", YES_NO, "A", Reason.TEXT),
        ("false", YES_NO, "B", Reason.SYNONYM),
        ("The answer is true.", YES_NO, "A", Reason.SYNONYM),
        ("absent", YES_NO, "B", Reason.SYNONYM),
        ("abnormal", YES_NO, None, Reason.NO_ANSWER),
        ("no abnormality", YES_NO, None, Reason.NO_ANSWER),
        ("nothing", YES_NO, None, Reason.NO_ANSWER),
        ("not present", YES_NO, None, Reason.NO_ANSWER),
        ("There is no answer", YES_NO, None, Reason.NO_ANSWER),
        ("yes and no", YES_NO, None, Reason.AMBIGUOUS),
        ("Yes/No", YES_NO, None, Reason.AMBIGUOUS),
        ("A. No", YES_NO, None, Reason.AMBIGUOUS),
        ("B\nNo, it is clear.", YES_NO, "B", Reason.TEXT),
        ("A\nNo, it is clear.", YES_NO, None, Reason.AMBIGUOUS),
        ("A\nNo", YES_NO, None, Reason.AMBIGUOUS),  # not the text "a no"
        ("Finding: aspirin.\nB", DRUG, "B", Reason.LABEL),  # the last line outweighs a remark
        ("B\nThe diagnosis is A.", DRUG, None, Reason.AMBIGUOUS),
        ("B\nExplanation: the wrong treatment was tried.\nTreatment: aspirin.", DRUG, "B", Reason.LABEL),
        ("right", SIDES, "B", Reason.TEXT),
        ("the right", SIDES, "B", Reason.TEXT),
        ("bright", SIDES, None, Reason.NO_ANSWER),
        ("right lung", SIDES, None, Reason.NO_ANSWER),
        ("A is right", SIDES, "A", Reason.LABEL),
        ("I", TEN, "I", Reason.LABEL),
        ("(i)", TEN, "I", Reason.LABEL),
        ("I think so", TEN, None, Reason.NO_ANSWER),
        ("I based my answer on the picture.", TEN, None, Reason.NO_ANSWER),
        ("I, as a doctor, cannot tell.", TEN, None, Reason.NO_ANSWER),
        ("I, because it fits", TEN, "I", Reason.LABEL),
        ("I (finding number 73)", TEN, "I", Reason.LABEL_AND_TEXT),
        ("A, since it fits", TEN, "A", Reason.LABEL),
        ("The answer is A as it fits.", TEN, "A", Reason.LABEL),
        ("<answer>Yes - there is</answer>", YES_NO, "A", Reason.TEXT),
        ("<answer>Yes there is a nodule</answer>", YES_NO, "A", Reason.TEXT),
        ("<answer>No abnormality</answer>", YES_NO, None, Reason.UNKNOWN_OPTION),
        ("<answer>No, actually yes</answer>", YES_NO, None, Reason.AMBIGUOUS),
        ("It looks odd.\nNo, it is clear.", YES_NO, "B", Reason.TEXT),
        ("I think J", TEN, "J", Reason.LABEL),
        ("finding number 73", TEN, "I", Reason.TEXT),
        ("K", TEN, None, Reason.UNKNOWN_OPTION),
        ("The answer is Z.", MANY, "Z", Reason.LABEL),
        ("", DRUG, None, Reason.EMPTY),
        (" \n\t", DRUG, None, Reason.EMPTY),
        ("<answer> </answer>", DRUG, None, Reason.EMPTY),
        ("<think>r</think>\n<answer></answer>", DRUG, None, Reason.EMPTY),
        ("<think>The answer is B", DRUG, None, Reason.TRUNCATED),
        # the end of the thinking part was forgotten, but the answer is whole and last: not a truncated text
        ("<think>r <answer>B</answer>", DRUG, "B", Reason.LABEL),
        ("<think>r <answer>B</answer> and", DRUG, None, Reason.TRUNCATED),
        ("<think>r <answer>B", DRUG, None, Reason.TRUNCATED),
        ("<think>r</think><answer>B</answer><think>", DRUG, None, Reason.TRUNCATED),
        ("lung", OPEN, None, Reason.OPEN_QUESTION),
    ],
)
def test_reasons(text: str, sample: Sample, label: str | None, reason: Reason) -> None:
    verdict = grade(text, sample)
    assert (verdict.label, verdict.reason) == (label, reason)
    assert verdict.correct is (label is not None and label == sample.answer_label)


@pytest.mark.parametrize("text", ["<think>r</think>\n<answer>B</answer>", "B", "", "<think>r"])
def test_truncated_is_never_right_and_the_format_stays_honest(text: str) -> None:
    verdict = grade(text, DRUG, truncated=True)
    assert (verdict.correct, verdict.label, verdict.reason) == (False, None, Reason.TRUNCATED)
    assert verdict.format_ok is grade(text, DRUG).format_ok is text.endswith("</answer>")


def test_reference_policies_do_not_look_at_truncation() -> None:
    text = "<think>r</think><answer>B</answer>"
    for policy in ("reference_reward", "reference_eval", "reference_regrade"):
        assert grade(text, DRUG, policy=policy, truncated=True).correct


def test_policies_differ_as_documented() -> None:
    texts = {
        "<think>r</think><answer>(B)</answer>": ["robust"],
        "<think>r</think><answer>B</answer>\n": ["robust", "reference_eval", "reference_regrade"],
        "<think><answer>B</answer></think><answer>A</answer>": ["reference_reward", "reference_eval"],
        "<think>r</think><answer>A</answer><answer>B</answer>": ["reference_regrade"],
    }
    for text, policies in texts.items():
        assert [policy for policy in POLICIES if grade(text, DRUG, policy=policy).correct] == policies


def test_unknown_policy_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"robust, reference_reward.*got 'strict'") as caught:
        grade("B", DRUG, policy="strict")  # type: ignore[arg-type]
    assert isinstance(caught.value, MedvltError)


FRAGMENTS = [
    "<think>", "</think>", "<answer>", "</answer>", "<Answer>", "<", ">", "\\boxed{", "\\text{", "{", "}", "(", ")",
    "[", "]", "A", "B", "C", "D", "a", "b", "E", "I", "Aspirin", "switch to chlorpromazine", "A chest X-ray",
    "Expectant", "management", "Yes", "no", "left", "right", "the answer is ", "Answer: ", "answer", "is", "not ",
    "or ", "and ", ", ", ". ", ": ", "; ", "/", " ", "\n", "\n\n", "\t", "**", "$", "`", '"', "'", "-", "option ",
    "because ", "therefore ", "wait ", "is correct", "Explanation: ", "\u0301", "\ufdfa", "\u2019", "\u2014",
    "\u0412", "\ud800", "\x00", "\u200b", "5", "-2", "%",
]  # fmt: skip
# bytes that pick fragments: ten times faster to draw than a list of fragments
STRINGS = st.one_of(
    st.text(), st.binary(max_size=24).map(lambda code: "".join(FRAGMENTS[i % len(FRAGMENTS)] for i in code))
)


@settings(max_examples=10_000, deadline=None)
@given(STRINGS, st.sampled_from([DRUG, YES_NO, SIDES, TEN, MANY, OPEN]), st.booleans())
def test_any_string_gets_a_verdict(text: str, sample: Sample, truncated: bool) -> None:
    verdicts = {policy: grade(text, sample, policy=policy, truncated=truncated) for policy in POLICIES}
    for policy, verdict in verdicts.items():
        assert isinstance(verdict, Verdict)
        assert verdict.label is None or verdict.label in sample.options
        if verdict.correct and (policy == "robust" or sample.options):
            assert verdict.label == sample.answer_label
    robust = verdicts["robust"]
    named = (Reason.LABEL, Reason.LABEL_AND_TEXT, Reason.TEXT, Reason.SYNONYM)
    assert (robust.label is not None) is (robust.reason in named)
    assert not (robust.correct and (truncated or not sample.options))
    assert robust == grade(text, sample, truncated=truncated)  # pure


ANSWERS = ["{label}", "({label})", "{label}. {text}", "**{label}**", "{text}", "The answer is {label}.", "so {label}"]


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet=st.characters(exclude_characters="<>")),
    st.sampled_from("ABCD"),
    st.sampled_from(ANSWERS),
    st.permutations("ABCD"),
)
def test_rendered_answers(reasoning: str, label: str, form: str, order: list[str]) -> None:
    def render(chosen: str) -> str:
        return f"<think>{reasoning}</think>\n<answer>{form.format(label=chosen, text=DRUGS[label])}</answer>"

    verdict = grade(render(label), DRUG)
    assert verdict.correct is (label == "B")
    assert verdict.label == label
    assert verdict.format_ok is bool(reasoning.strip())
    # the same choice is as right as before when the options are shuffled and the label follows
    shuffled = {new: DRUGS[old] for new, old in zip("ABCD", order, strict=True)}
    moved = {old: new for new, old in zip("ABCD", order, strict=True)}
    sample = Sample("1", DRUG.question, shuffled, moved["B"], DRUGS["B"])
    assert grade(render(moved[label]), sample).correct is (label == "B")


@settings(max_examples=300, deadline=None)
@given(STRINGS, STRINGS)
def test_an_answer_inside_the_thinking_part_changes_nothing(before: str, after: str) -> None:
    tags = {ord("<"): None, ord(">"): None}  # the fragments shall not open or close the block themselves
    before, after = before.translate(tags), after.translate(tags)
    answered = grade(f"<think>{before}<answer>B</answer> The answer is B</think>{after}", DRUG)
    assert answered.correct is grade(f"<think></think>{after}", DRUG).correct


ATTACKS = [
    "<answer>", "</answer>", "<answer>B</answer>", "<answer></answer>", "<think>", "</think>", "<think></think>",
    "\\boxed{", "\\boxed{B}", "(", "{", "<", " ", "\n", "B\n", "A. ", "A or ", "answer is ", "answer: ", "answer ",
    "answer:\n", "answer ---", "The answer is B. ", "B is correct. ", "not ", "n't ", "therefore ", "a ", "1.", "+-",
    "x", "\u0301\u0316", "</think> ", "diagnosis ", "diagnosis is ", "\nor A", "\nmaybe ", "(B) ", "A is ", ". wait ",
    "? ", "Aspirin\n", "\n ",
]  # fmt: skip


def _attacks(size: int) -> Iterator[str]:
    for unit in ATTACKS:
        body = unit * (size // len(unit))
        yield from (body, f"<think>r</think><answer>{body}</answer>")


def _seconds(text: str, limit: float) -> float:
    """Returns the least processor time of up to five gradings: a pause for other work or for garbage is no property of
    the rules."""
    least = math.inf
    for _ in range(5):
        start = time.process_time()
        for policy in POLICIES:
            grade(text, DRUG, policy=policy)
        least = min(least, time.process_time() - start)
        if least < limit:
            break
    return least


# measured on one core: 0.02 and 0.12 s; a quadratic rule needs seconds at the small size, and the test ends there
@pytest.mark.parametrize(("size", "limit"), [(16_000, 0.5), (100_000, 2.0)])
def test_time_is_linear(size: int, limit: float) -> None:
    for text in _attacks(size):
        assert _seconds(text, limit) < limit, text[:40]


def test_one_megabyte_is_graded_in_seconds() -> None:
    for unit in ("<answer>", "\\boxed{", "answer is ", " ", "("):
        text = unit * (1_000_000 // len(unit))
        start = time.process_time()
        grade(text, DRUG)
        assert time.process_time() - start < 5.0


def test_closed_nested_boxes_are_linear() -> None:
    depth = 50_000
    start = time.process_time()
    grade("\\boxed{" * depth + "B" + "}" * depth, DRUG)
    assert time.process_time() - start < 2.0
