# SPDX-License-Identifier: Apache-2.0
"""The graders of the MedVLThinker reference, rule by rule (UCSC-VLAA/MedVLThinker at a3163b1), kept for reproduction.

`reference_reward` is train/my_reward.py, `reference_eval` the grader inside eval/run_offline_inference.py, and
`reference_regrade` analysis/regrade_eval_results.py without its LLaVA-Med rule. All three accept the label, the text of
the option, or "label. text", after stripping and lower-casing, and nothing else. Their known defects are kept: a line
break inside the answer tag earns no reward, and the first answer counts even inside the thinking part.
"""

from __future__ import annotations

import re

from medvlt.types import Reason, Sample

_REGRADE_PHRASES = tuple(
    re.compile(phrase + r"\s*(.*)\s*", re.IGNORECASE) for phrase in ("answer:", "answer is:", "answer is", "is:")
)
_REFERENCE_BOUNDARY = re.compile(r"</think>\s*+<answer>")


def grade_reward(text: str, sample: Sample) -> tuple[bool, str | None, Reason]:
    """Returns correctness, chosen label and reason under the reference's reward: format gate, first block in a line."""
    if not has_reference_format(text):
        return False, None, Reason.BAD_FORMAT
    block = first_block_in_a_line(text)
    return _judge(text if block is None else block, sample)


def grade_eval(text: str, sample: Sample) -> tuple[bool, str | None, Reason]:
    """Returns correctness, chosen label and reason under the reference's inference grader: first block, no gate."""
    block = first_block(text)
    return _judge(text if block is None else block, sample)


def grade_regrade(text: str, sample: Sample) -> tuple[bool, str | None, Reason]:
    """Returns correctness, chosen label and reason under the reference's re-grader, which made the published tables."""
    return _judge(regrade_extract(text), sample)


def _match(prediction: str, label: str | None, answer: str) -> Reason | None:
    """Returns which of the reference's three forms the prediction has, or None."""
    prediction = prediction.strip().lower()
    if label is not None:
        if prediction == f"{label}. {answer}".strip().lower():
            return Reason.LABEL_AND_TEXT
        if prediction == label.strip().lower():
            return Reason.LABEL
    return Reason.TEXT if prediction == answer.strip().lower() else None


def _judge(prediction: str, sample: Sample) -> tuple[bool, str | None, Reason]:
    reason = _match(prediction, sample.answer_label, sample.answer)
    if reason is not None:
        return True, sample.answer_label, reason
    for label, answer in sample.options.items():
        reason = _match(prediction, label, answer)
        if reason is not None:
            return False, label, reason
    return False, None, Reason.UNKNOWN_OPTION if prediction.strip() else Reason.EMPTY


def has_reference_format(text: str) -> bool:
    """Returns what the reference's gate says; equal to a full match of its pattern, in linear time.

    The gate is a thinking block, white space, an answer block, with a dot that spans lines and tags. Such a match
    exists exactly if a close-think/open-answer pair stands somewhere between the tags at the very start and end.
    """
    dressed = text.startswith("<think>") and text.endswith("</answer>")
    return dressed and _REFERENCE_BOUNDARY.search(text, len("<think>")) is not None


def first_block(text: str) -> str | None:
    """Returns the first closed answer block, case-sensitive, line breaks allowed."""
    start = text.find("<answer>")
    end = text.find("</answer>", start + 8) if start >= 0 else -1
    return text[start + 8 : end] if end >= 0 else None


def first_block_in_a_line(text: str) -> str | None:
    """Returns the first answer block that opens and closes in one line."""
    for line in text.split("\n"):
        block = first_block(line)
        if block is not None:
            return block
    return None


def regrade_extract(text: str) -> str:
    """Returns what the reference's re-grader reads: first line of the last block, or last answer phrase, or all."""
    block: str | None = None
    start = text.find("<answer>")
    while start >= 0 and (end := text.find("</answer>", start + 8)) >= 0:
        block = text[start + 8 : end]
        start = text.find("<answer>", end + 9)
    if block is not None:
        stripped = block.strip()
        # line feeds and carriage returns only, as in the reference: other separators stay inside the line
        extracted = stripped.replace("\r", "\n").split("\n", 1)[0]
    else:
        extracted = text
        for phrase in _REGRADE_PHRASES:
            found = phrase.findall(text)
            if found:
                extracted = found[-1]
                break
    extracted = extracted.strip()
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        extracted = extracted.replace(tag, "")
    return extracted.strip()
