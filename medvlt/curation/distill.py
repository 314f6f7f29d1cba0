# SPDX-License-Identifier: Apache-2.0
"""A teacher's completions to questions with reasoning: which of them is kept, and why none is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from medvlt.data.drops import RecordError
from medvlt.data.prompts import TEACHER_LABEL
from medvlt.data.samples import BuiltSamples, SampleSet
from medvlt.data.schema import parse_record, to_record
from medvlt.types import RolloutGroup, Sample, Verdict

TEACHER_COLUMN = "teacher"
"""Column of the written set that names the model the reasoning is from."""

SAMPLE_COLUMN = "teacher_sample"
"""Column of the written set that holds which of the n completions was kept, from 0."""

TEACHER_REPLY = "teacher_reply"
"""Column of m23k with what the teacher of its reasoning wrote behind it."""

_STALE_COLUMNS = ("text", TEACHER_LABEL, TEACHER_REPLY)
"""Columns that speak of an earlier reasoning: the whole chat as text, the letter argued for, and what followed."""

_THINK = re.compile(r"<(/?)think>", re.IGNORECASE)
_ANSWER = re.compile(r"<answer>", re.IGNORECASE)


class TraceStatus(StrEnum):
    """What became of a question."""

    TRACE = "trace"  # a completion was kept
    ALL_WRONG = "all_wrong"  # every completion was graded wrong
    NO_REASONING = "no_reasoning"  # some are right, and none of these gives a reason
    UNREADABLE = "unreadable"  # some are right, and their reasoning holds what a record may not hold
    FAILED = "failed"  # no trace, and some requests were never answered: asking again may find one


@dataclass(frozen=True)
class TraceChoice:
    """What became of one question.

    Attributes:
        benchmark: Name under which the question was asked.
        uid: The question's.
        status: Whether a completion was kept, or why none was.
        n: Completions asked for, failed requests included.
        right: Completions graded right.
        failed: Requests that were never answered.
        sample: Number of the completion that was kept, from 0.
        reasoning: Its reasoning.
        untagged: Whether the reasoning is what stands before the answer, for want of a think block.
        skipped: Right completions passed over before it, by reason.
        errors: Different messages of the failed requests.
    """

    benchmark: str
    uid: str
    status: TraceStatus
    n: int
    right: int
    failed: int
    sample: int | None = None
    reasoning: str | None = None
    untagged: bool = False
    skipped: Mapping[str, int] = field(default_factory=dict)
    errors: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the line of the status table, which leaves the reasoning itself to the data set."""
        return {
            "benchmark": self.benchmark,
            "uid": self.uid,
            "status": self.status.value,
            "n": self.n,
            "right": self.right,
            "failed": self.failed,
            "sample": self.sample,
            "untagged": self.untagged,
            "skipped": dict(self.skipped),
            "errors": list(self.errors),
        }


def choose_trace(benchmark: str, group: RolloutGroup, verdicts: Sequence[Verdict]) -> TraceChoice:
    """Returns the first of a question's completions that is right and gives a reason that a record can hold.

    The reference keeps the first of three that grades right, and the text of its first think block (UCSC-VLAA/
    MedVLThinker, a3163b1, `merge_pmc_vqa_cot.py`). A right completion without reasoning, or whose reasoning could not
    be read back (tags inside it, control tokens of the tokenizer, half a character), is passed over for the next.

    Args:
        benchmark: Name under which the question was asked.
        group: The question and its completions. A completion that ended with "error" is never chosen.
        verdicts: One per completion.
    """
    completions = group.completions
    skipped: Counter[str] = Counter()
    errors = tuple(dict.fromkeys(c.error or "no reason given" for c in completions if c.finish_reason == "error"))
    failed = sum(completion.finish_reason == "error" for completion in completions)
    right = [
        number
        for number, (completion, verdict) in enumerate(zip(completions, verdicts, strict=True))
        if verdict.correct and completion.finish_reason != "error"
    ]
    known: dict[str, Any] = {"n": len(completions), "right": len(right), "failed": failed, "errors": errors}
    uid = group.sample.uid
    for number in right:
        reasoning, tagged = reasoning_of(completions[number].text)
        if not reasoning:
            skipped[TraceStatus.NO_REASONING.value] += 1
        elif reason := _unreadable(group.sample, reasoning):
            skipped[reason] += 1
        else:
            return TraceChoice(
                benchmark, uid, TraceStatus.TRACE, sample=number, reasoning=reasoning, untagged=not tagged,
                skipped=skipped, **known,
            )  # fmt: skip
    if failed:
        status = TraceStatus.FAILED
    elif not right:
        status = TraceStatus.ALL_WRONG
    elif set(skipped) == {TraceStatus.NO_REASONING.value}:
        status = TraceStatus.NO_REASONING
    else:
        status = TraceStatus.UNREADABLE
    return TraceChoice(benchmark, uid, status, skipped=skipped, **known)


def reasoning_of(text: str) -> tuple[str, bool]:
    r"""Returns the reasoning in a completion and whether think tags mark it; "" if there is none.

    It is the text of the first think block, over line breaks; where the prompt has opened the block, as templates of
    R1-style models do, everything before the closing tag. Without any think tag it is what stands before the first
    answer tag. Without answer tags too there is no telling where the reasoning ends, so there is none. Blocks inside a
    block are not undone: their tags stay in the text.

    Args:
        text: The completion, special tokens left out.

    Example:
        >>> reasoning_of("<think> A clot.\nSo B. </think>\n<answer> B </answer>")
        ('A clot.\nSo B.', True)
        >>> reasoning_of("A clot. <answer> B </answer>")
        ('A clot.', False)
        >>> reasoning_of("It is B.")
        ('', False)
    """
    marks = list(_THINK.finditer(text))
    closing = next((mark for mark in marks if mark[1]), None)
    if marks:
        if closing is None:  # never closed: where it ends is a guess
            return "", True
        start = 0 if marks[0] is closing else marks[0].end()
        return text[start : closing.start()].strip(), True
    answer = _ANSWER.search(text)
    return (text[: answer.start()].strip() if answer else ""), False


def with_trace(sample: Sample, choice: TraceChoice, teacher: str) -> Sample:
    """Returns the question with the reasoning that was kept for it, and whose it is.

    Columns that spoke of an earlier reasoning go: the rendered chat, an earlier teacher's reply, and its own letter,
    since the new reasoning argues for the right one.

    Args:
        sample: The question.
        choice: What was kept for it.
        teacher: Name of the model.
    """
    extra = {key: value for key, value in sample.extra.items() if key not in _STALE_COLUMNS}
    extra |= {TEACHER_COLUMN: teacher, SAMPLE_COLUMN: choice.sample}
    return replace(sample, reasoning=choice.reasoning, extra=extra)


@dataclass(frozen=True)
class TracedSamples(BuiltSamples):
    """The questions of a set that have a trace, with it, built when asked for.

    Attributes:
        base: The questions.
        choices: What was kept for each.
        teacher: Name of the model.
    """

    base: SampleSet
    choices: Sequence[TraceChoice]
    teacher: str

    def __len__(self) -> int:
        return len(self.choices)

    def build(self, index: int) -> Sample:
        """Returns the question with its pictures and its trace."""
        return with_trace(self.base[index], self.choices[index], self.teacher)

    def light(self, index: int) -> Sample:
        """Returns the question, which may lack its pictures, with its trace."""
        return with_trace(self.base.light(index), self.choices[index], self.teacher)


def _unreadable(sample: Sample, reasoning: str) -> str:
    """Returns why a stored record with this reasoning would be refused; "" if it would be read back."""
    try:
        stored = to_record(replace(sample, images=(), extra={}, reasoning=reasoning))
        parse_record(stored, dataset_name=None, row=0, open_questions=True, light=True)
    except RecordError as error:
        return error.reason.value
    return ""
