# SPDX-License-Identifier: Apache-2.0
"""The one grader: reward, difficulty probing, validation and evaluation all call `grade`."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from medvlt.errors import ConfigurationError
from medvlt.rewards import parsing, reference
from medvlt.rewards.choice import read_answer_blocks, read_text
from medvlt.rewards.options import prepare
from medvlt.types import Reason, Sample, Verdict

GradePolicy: TypeAlias = Literal["robust", "reference_reward", "reference_eval", "reference_regrade"]
"""Which rules decide; see `grade`."""

GRADER_VERSION = "2"
"""Raised by one whenever a rule changes, so that stored verdicts can be told apart.

Version 2 reads more of what version 1 left unread. It drops a label of version 1 only if a later phrase that version 1
could not read names another one ("The answer is B. ... Answer: E2"). New are:
    a. behind "Answer:", a label glued to its own text, "E2" where E is "2", "B(1) 0.5" where B begins with "(1) 0.5";
    b. a last line "Answer: E" after a step such as "Therefore, <text of A> and <text of D>", which made it ambiguous;
    c. a first or last sentence with a label that cannot be another word's and its own text, or a cue: "The cause is (C)
       Malaria, ...", "The correct view is (D).", "..., corresponding to option D.", "... (option A)."; a first one
       only if nothing after it turns ("however", "therefore") and no other label follows;
    d. a reply of one sentence, with its full stop, that is "<subject> is <text>.", without another option, negation,
       hedge or comparison: "The tissue is cardiac muscle.";
    e. behind "Answer:", the labels A and I with a remark in brackets that ends the line, as other labels before.
"""

_REFERENCE = {
    "reference_reward": reference.grade_reward,
    "reference_eval": reference.grade_eval,
    "reference_regrade": reference.grade_regrade,
}


def grade(text: str, sample: Sample, *, policy: GradePolicy = "robust", truncated: bool = False) -> Verdict:
    r"""Grades one completion against its multiple-choice question.

    The robust policy reads the last answer outside the thinking part: answer tags if there are any, else `\boxed{}`,
    else the last phrase such as "the answer is (B)", else a first or last line that is an option, else a free sentence
    that names one beyond doubt (`medvlt.rewards.sentences`). It accepts labels in
    the usual dress, option texts apart from case, punctuation and articles, and yes/no synonyms. It never credits part
    of a word, an answer inside the thinking part, a truncated completion, or two different answers.

    The three `reference_*` policies reproduce the graders of the MedVLThinker reference, defects included
    (`medvlt.rewards.reference`); they do not look at `truncated`.

    Args:
        text: The completion, special tokens left out. Any string; the work is linear in its length.
        sample: The question. Without options, the robust policy gives OPEN_QUESTION.
        policy: The rules. `format_ok` follows them too: exactly one thinking and one answer block, in this order,
            neither blank, with white space around them at most (robust), or the looser gate of the reference.
        truncated: Whether the completion ended at its token limit.

    Returns:
        The verdict. `format_ok` does not depend on the answer, nor on `truncated`.

    Raises:
        ConfigurationError: If `policy` is none of the known ones.

    Example:
        >>> sample = Sample("1", "Which drug?", {"A": "Aspirin", "B": "Heparin"}, "B", "Heparin")
        >>> grade("<think> clot </think>\n<answer> (b) heparin. </answer>", sample).correct
        True
        >>> grade("The answer is A or B.", sample).reason
        <Reason.AMBIGUOUS: 'ambiguous'>
    """
    if policy == "robust":
        label, reason = _robust(text, sample, truncated=truncated)
        correct = label is not None and label == sample.answer_label
        return Verdict(correct, label, parsing.has_format(text), reason, GRADER_VERSION)
    if policy not in _REFERENCE:
        known = ", ".join(get_args(GradePolicy))
        raise ConfigurationError(f"expected one of the grading policies {known}; got {policy!r}; use one of these")
    correct, label, reason = _REFERENCE[policy](text, sample)
    return Verdict(correct, label, reference.has_reference_format(text), reason, GRADER_VERSION)


def _robust(text: str, sample: Sample, *, truncated: bool) -> tuple[str | None, Reason]:
    if not sample.options:
        return None, Reason.OPEN_QUESTION
    if truncated:
        return None, Reason.TRUNCATED
    if not text.strip():
        return None, Reason.EMPTY
    visible = parsing.visible_text(text)
    if visible is None:
        return None, Reason.TRUNCATED
    options = prepare(tuple(sample.options.items()))
    blocks = parsing.answer_blocks(visible)
    filled = [block for block in blocks if block.strip()]
    if filled:
        reading = read_answer_blocks(filled, options)
        return reading.label, reading.reason
    prose = parsing.without_answer_tags(visible)
    if blocks and not prose.strip():
        return None, Reason.EMPTY
    found = read_text(prose, options)
    return (found.label, found.reason) if found else (None, Reason.NO_ANSWER)
