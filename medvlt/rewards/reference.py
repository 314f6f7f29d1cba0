# SPDX-License-Identifier: Apache-2.0
"""The graders of the MedVLThinker reference, rule by rule (UCSC-VLAA/MedVLThinker at a3163b1), kept for reproduction.

`reference_reward` is train/my_reward.py, `reference_eval` the grader inside eval/run_offline_inference.py, and
`reference_regrade` analysis/regrade_eval_results.py without its LLaVA-Med rule. All three accept the label, the text of
the option, or "label. text", after stripping and lower-casing, and nothing else. Their known defects are kept: a line
break inside the answer tag earns no reward, and the first answer counts even inside the thinking part.
"""

from __future__ import annotations

from medvlt.rewards import parsing
from medvlt.types import Reason, Sample


def grade_reward(text: str, sample: Sample) -> tuple[bool, str | None, Reason]:
    """Returns correctness, chosen label and reason under the reference's reward: format gate, first block in a line."""
    if not parsing.has_reference_format(text):
        return False, None, Reason.BAD_FORMAT
    block = parsing.first_block_in_a_line(text)
    return _judge(text if block is None else block, sample)


def grade_eval(text: str, sample: Sample) -> tuple[bool, str | None, Reason]:
    """Returns correctness, chosen label and reason under the reference's inference grader: first block, no gate."""
    block = parsing.first_block(text)
    return _judge(text if block is None else block, sample)


def grade_regrade(text: str, sample: Sample) -> tuple[bool, str | None, Reason]:
    """Returns correctness, chosen label and reason under the reference's re-grader, which made the published tables."""
    return _judge(parsing.regrade_extract(text), sample)


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
