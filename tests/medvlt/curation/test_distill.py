# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvlt.curation.distill import (
    TEACHER_REPLY,
    TracedSamples,
    TraceStatus,
    choose_trace,
    reasoning_of,
    with_trace,
)
from medvlt.data.prompts import TEACHER_LABEL
from medvlt.data.samples import SampleSet
from medvlt.data.schema import parse_record, to_record
from medvlt.rewards.grade import grade
from medvlt.types import Completion, FinishReason, RolloutGroup, Sample

QUESTION = Sample("q:1", "Which?", {"A": "yes", "B": "no"}, "B", "no", dataset_name="q", dataset_index=1)
RIGHT, WRONG = "<think> clot </think>\n<answer> B </answer>", "<think> no clot </think>\n<answer> A </answer>"


def completion(text: str, finish: FinishReason = "stop", error: str = "") -> Completion:
    return Completion((), text, (), finish, error=error)


def choose(*texts: str | Completion):  # noqa: ANN201 - the type is the point of the tests
    completions = tuple(completion(text) if isinstance(text, str) else text for text in texts)
    verdicts = [grade(c.text, QUESTION, truncated=c.finish_reason == "length") for c in completions]
    return choose_trace("set", RolloutGroup(QUESTION, (), completions), verdicts)


FAILED = completion("", "error", "429: too many requests")


def test_the_first_right_completion_is_kept() -> None:
    choice = choose(WRONG, RIGHT, "<think> other </think><answer> B </answer>")
    assert (choice.status, choice.sample, choice.reasoning) == (TraceStatus.TRACE, 1, "clot")
    assert (choice.n, choice.right, choice.failed, choice.untagged) == (3, 2, 0, False)


def test_failed_requests_stay_in_the_count() -> None:
    choice = choose(FAILED, RIGHT)
    assert (choice.status, choice.sample, choice.n, choice.failed) == (TraceStatus.TRACE, 1, 2, 1)
    assert choice.errors == ("429: too many requests",)


def test_a_failed_request_is_never_chosen_whatever_its_text() -> None:
    choice = choose(replace(FAILED, text=RIGHT))
    assert (choice.status, choice.right, choice.reasoning) == (TraceStatus.FAILED, 0, None)


@pytest.mark.parametrize(
    ("texts", "status", "skipped"),
    [
        ([WRONG, WRONG], TraceStatus.ALL_WRONG, {}),
        ([WRONG, FAILED], TraceStatus.FAILED, {}),
        (["<answer> B </answer>", FAILED], TraceStatus.FAILED, {"no_reasoning": 1}),  # another try may give a reason
        (["<answer> B </answer>", "The answer is B."], TraceStatus.NO_REASONING, {"no_reasoning": 2}),
        (["<think>  </think><answer> B </answer>"], TraceStatus.NO_REASONING, {"no_reasoning": 1}),
        (
            ["<think> a <answer> A </answer> b </think><answer> B </answer>", "<answer> B </answer>"],
            TraceStatus.UNREADABLE,
            {"reasoning_tags": 1, "no_reasoning": 1},
        ),
        (["<think> a <|im_end|> b </think><answer> B </answer>"], TraceStatus.UNREADABLE, {"special_token": 1}),
        (["<think> a \ud800 </think><answer> B </answer>"], TraceStatus.UNREADABLE, {"bad_field": 1}),
        ([completion(RIGHT, "length")], TraceStatus.ALL_WRONG, {}),
    ],
)
def test_why_there_is_no_trace(texts: list[str | Completion], status: TraceStatus, skipped: dict[str, int]) -> None:
    choice = choose(*texts)
    assert (choice.status, choice.sample, choice.reasoning) == (status, None, None)
    assert choice.skipped == skipped


def test_what_cannot_be_read_back_is_passed_over_for_the_next() -> None:
    choice = choose("<think> a <think> b </think> c </think><answer> B </answer>", RIGHT)
    assert (choice.sample, choice.reasoning, choice.right) == (1, "clot", 2)
    assert choice.skipped == {"reasoning_tags": 1}


def test_text_before_the_answer_stands_in_for_a_think_block_and_is_counted() -> None:
    choice = choose("A clot.\nSo B.\n<answer> B </answer>")
    assert (choice.reasoning, choice.untagged) == ("A clot.\nSo B.", True)


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("<think> one </think> x <think> two </think> <answer> B </answer>", "one"),  # the reference's first block
        ("one\n</think><answer> B </answer>", "one"),  # the prompt opened the block
        ("<THINK>one</Think><answer> B </answer>", "one"),
        ("<think> never closed <answer> B </answer>", ""),
        ("no tags at all: B", ""),
        ("", ""),
    ],
)
def test_where_the_reasoning_is(text: str, reasoning: str) -> None:
    assert reasoning_of(text)[0] == reasoning


@given(st.text(st.sampled_from("ab \n<>/"), max_size=40))
def test_reasoning_is_what_the_reference_cuts_out(inside: str) -> None:
    text = f"<think>{inside}</think>\n<answer> B </answer>"
    found = re.search(r"<think>(.*?)</think>", text, re.DOTALL)
    assert found is not None
    assert reasoning_of(text) == (found[1].strip(), True)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " B ", "clot", "<|im_end|>", "\n"])))
def test_whatever_is_kept_is_read_back_as_it_is(parts: list[str]) -> None:
    choice = choose("".join(parts))
    if choice.reasoning is None:
        assert choice.status is not TraceStatus.TRACE
    else:
        record = to_record(with_trace(QUESTION, choice, "teacher"))
        assert parse_record(record, dataset_name=None, row=0).reasoning == choice.reasoning


def test_columns_of_an_earlier_reasoning_go() -> None:
    old = replace(
        QUESTION,
        reasoning="old",
        extra={"text": "old chat", TEACHER_LABEL: "A", TEACHER_REPLY: "\\boxed{A}", "misc": "kept"},
    )
    new = with_trace(old, choose(WRONG, RIGHT), "R1")
    assert new.reasoning == "clot"
    assert new.extra == {"misc": "kept", "teacher": "R1", "teacher_sample": 1}
    assert new.uid == old.uid


def test_traced_samples_read_no_picture_for_light_access() -> None:
    class Counting(list[Sample]):
        reads = 0

        def __getitem__(self, index):  # type: ignore[no-untyped-def, override] # noqa: ANN001, ANN204
            Counting.reads += 1
            return super().__getitem__(index)

        def light(self, index: int) -> Sample:
            return list.__getitem__(self, index)

    traced = TracedSamples(SampleSet(Counting([QUESTION])), [choose(RIGHT)], "R1")
    assert traced.light(0).reasoning == "clot"
    assert Counting.reads == 0
    assert traced[0] == traced.light(0)
    assert Counting.reads == 1
