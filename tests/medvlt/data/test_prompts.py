# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment

from medvlt.data.prompts import PRESETS, PromptTemplate, chat_messages
from medvlt.errors import ConfigurationError, DataError
from medvlt.rewards.grade import grade
from medvlt.types import Sample

SAMPLE = Sample(
    uid="toy:0:0",
    question="Is the heart enlarged?",
    options={"A": "yes", "B": "no"},
    answer_label="B",
    answer="no",
    reasoning=" The ratio is {0.4}. \n",
)


def test_reference_bytes() -> None:
    expected = (
        b"You will solve a problem/request. You should provide your thoughts within <think> </think> tags before "
        b"providing the answer.\x5cnWrite your final answer within <answer> </answer> tags.\x0a\x0a"
        b"Question: Is the heart enlarged?\x0a\x0aOptions:\x0a\x0aA. yes\x0a\x0aB. no"
    )
    assert PromptTemplate().prompt_text(SAMPLE).encode() == expected
    # of INSTRUCTION_PROMPT in eval/run_offline_inference.py of UCSC-VLAA/MedVLThinker at a3163b1
    digest = hashlib.sha256(PromptTemplate().instruction.encode()).hexdigest()
    assert digest == "948ae0f69a0391e1028ecfffa15fd35a792e81757631d9bc88833a7b50411b52"


def test_presets() -> None:
    reference, clean = PRESETS["reference"].prompt_text(SAMPLE), PRESETS["clean"].prompt_text(SAMPLE)
    assert clean == reference.replace("\\n", "\n")
    assert clean != reference
    assert PRESETS["plain"].prompt_text(SAMPLE) == "Is the heart enlarged?\nA yes\nB no"
    assert PromptTemplate.named("clean") is PRESETS["clean"]
    with pytest.raises(ConfigurationError, match="reference, clean, step_by_step, direct, plain"):
        PromptTemplate.named("klean")


def test_presets_of_other_families() -> None:
    text = PRESETS["step_by_step"].prompt_text(SAMPLE)
    # of --instruction_prompt in eval/eval_baselines.sh of UCSC-VLAA/MedVLThinker at a3163b1
    digest = hashlib.sha256(PRESETS["step_by_step"].instruction.encode()).hexdigest()
    assert digest == "b23b0b3b85e92506897c80d6432d094cbaa07d8aa47eb50cd34052869c47cd3e"
    assert text.endswith('"Answer: "\n\nQuestion: Is the heart enlarged?\n\nOptions:\n\nA. yes\n\nB. no')
    assert PRESETS["step_by_step"].target_text(SAMPLE) == "The ratio is {0.4}.\nAnswer: B"
    assert "think" not in PRESETS["direct"].prompt_text(SAMPLE)


@pytest.mark.parametrize(
    ("preset", "reply"),
    [
        *((name, PRESETS[name].target_text(SAMPLE)) for name in PRESETS),
        ("step_by_step", "The heart takes less than half of the width. So A is wrong.\n\nAnswer: B"),
        ("step_by_step", "1. The ratio is 0.4.\n2. That is not enlarged.\n**Answer:** B. no"),
        ("step_by_step", "Answer: (B) no, because the ratio is below 0.5"),
        ("direct", "B"),
        ("direct", " B."),
        ("direct", "B. no"),
        ("direct", "(B)"),
        ("direct", "No"),
    ],
)
def test_the_grader_reads_what_each_preset_asks_for(preset: str, reply: str) -> None:
    assert preset in PRESETS
    verdict = grade(reply, SAMPLE)
    assert (verdict.correct, verdict.label) == (True, "B")
    other = grade(reply, replace(SAMPLE, answer_label="A", answer="yes"))
    assert (other.correct, other.label) == (False, "B")


def test_target() -> None:
    target = PromptTemplate().target_text(SAMPLE)
    assert target == "<think> The ratio is {0.4}. </think>\n<answer> B </answer>"


def test_target_follows_the_teacher() -> None:
    taught = Sample(**{**fields(SAMPLE), "extra": {"teacher_label": "A"}})
    assert PromptTemplate().target_text(taught).endswith("<answer> A </answer>")


def test_target_without_reasoning() -> None:
    bare = Sample(**{**fields(SAMPLE), "reasoning": None})
    for template in (PromptTemplate(), *PRESETS.values()):
        with pytest.raises(DataError, match=r"toy:0:0.*answer_only_format"):
            template.target_text(bare)
    assert PromptTemplate(answer_only_format="<answer> {label} </answer>").target_text(bare) == "<answer> B </answer>"


def test_open_question() -> None:
    question = Sample(**{**fields(SAMPLE), "options": {}, "answer_label": None})
    assert PromptTemplate().prompt_text(question).endswith("\n\nQuestion: Is the heart enlarged?")
    assert PromptTemplate().target_text(question).endswith("<answer> no </answer>")


def fields(sample: Sample) -> dict[str, object]:
    return {name: getattr(sample, name) for name in Sample.__dataclass_fields__}


@given(st.text(), st.text())
def test_texts_come_through_unchanged(question: str, option: str) -> None:
    sample = Sample(**{**fields(SAMPLE), "question": question, "options": {"A": option, "B": "no"}})
    assert PRESETS["plain"].prompt_text(sample) == f"{question}\nA {option}\nB no"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("option_format", "{label}"),
        ("option_format", "{label} {text} {more}"),
        ("option_format", "{label} {text"),
        ("target_format", "<answer> {label} </answer>"),
        ("answer_only_format", "yes"),
        ("answer_only_format", "{}"),
    ],
)
def test_layout_is_checked_at_once(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        PromptTemplate(**{name: value})


def test_messages_render_as_the_reference_did(shared_data: Path) -> None:
    source = json.loads((shared_data / "qwen2_5_vl_tokenizer" / "chat_template.json").read_text())["chat_template"]
    template = Environment().from_string(source)
    two = Sample(**{**fields(SAMPLE), "images": (b"1", b"2")})
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert template.render(messages=chat_messages(PromptTemplate(), two), add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"{picture}{picture}{PromptTemplate().prompt_text(two)}<|im_end|>\n<|im_start|>assistant\n"
    )
    own = PromptTemplate(system="Be brief.")
    assert template.render(messages=chat_messages(own, SAMPLE)) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{own.prompt_text(SAMPLE)}<|im_end|>\n"
    )
