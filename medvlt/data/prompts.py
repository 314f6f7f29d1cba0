# SPDX-License-Identifier: Apache-2.0
"""How a question is worded for the model, and how the reply it is to learn is worded."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any

from medvlt.errors import ConfigurationError, DataError
from medvlt.types import Sample

TEACHER_LABEL = "teacher_label"
"""Key in `Sample.extra` for the answer that the reasoning argues for, where a teacher may be wrong."""

_INSTRUCTION = (
    "You will solve a problem/request. You should provide your thoughts within <think> </think> tags before providing "
    "the answer.{newline}Write your final answer within <answer> </answer> tags."
)

_STEP_BY_STEP = (
    "You will solve a problem/request. First think step by step, and then answer with the option letter from the given "
    'choices directly after "Answer: "'
)


@dataclass(frozen=True)
class PromptTemplate:
    r"""Layout of prompt and target; the defaults are the reference's, byte for byte.

    Prompt: instruction, instruction_separator, question_prefix, question; then, if there are options, options_header
    and for each option option_separator and the option. Without an instruction its separator goes too.

    The reference wrote its instruction as a raw string, so that between its two sentences stand a backslash and an n,
    and every checkpoint it released was trained and measured that way (UCSC-VLAA/MedVLThinker, a3163b1,
    `eval/run_offline_inference.py`).

    Args:
        system: System message; null leaves the turn to the chat template, which has a default of its own.
        instruction: What the model is told before the question.
        instruction_separator: Between instruction and question.
        question_prefix: Before the question.
        options_header: After the question, before the first option.
        option_separator: Before each option.
        option_format: One option; holds `{label}` and `{text}`.
        target_format: The reply to learn; holds `{reasoning}` and `{label}`.
        answer_only_format: The reply for a sample without reasoning; holds `{label}`. Null refuses such samples,
            since they would train the model to answer without thinking.
    """

    system: str | None = None
    instruction: str = _INSTRUCTION.format(newline="\\n")
    instruction_separator: str = "\n\n"
    question_prefix: str = "Question: "
    options_header: str = "\n\nOptions:"
    option_separator: str = "\n\n"
    option_format: str = "{label}. {text}"
    target_format: str = "<think> {reasoning} </think>\n<answer> {label} </answer>"
    answer_only_format: str | None = None

    def __post_init__(self) -> None:
        _check_fields("option_format", self.option_format, {"label", "text"})
        _check_fields("target_format", self.target_format, {"reasoning", "label"})
        if self.answer_only_format is not None:
            _check_fields("answer_only_format", self.answer_only_format, {"label"})

    @staticmethod
    def named(name: str) -> PromptTemplate:
        """Returns a template by name.

        Only the words are a preset: turns, roles and the place of pictures are those of each model's own chat template,
        which the processor or the server applies. (The reference gave models other than Qwen a bare text, `<image>`
        and the words, without turns; for Gemma it wrote them by hand. So its numbers for these are not ours.)

        Args:
            name: One of
                "reference": The words with which the reference asked Qwen2.5-VL, all its own models, Gemma 3, MedGemma,
                    HuatuoGPT-Vision-34B and GPT-4o.
                "clean": The same with a real newline inside the instruction.
                "step_by_step": The words with which it asked LLaVA-Med and HuatuoGPT-Vision-7B, which write no tags:
                    thoughts, then the letter behind "Answer:" (`eval/eval_baselines.sh`, same commit).
                "direct": The letter alone, without thoughts, for models that do not reason; not in the reference, and
                    not meant for training on traces.
                "plain": The question and its options on lines of their own and nothing else, for models of a few
                    hundred words.

        Raises:
            ConfigurationError: If there is no such preset.
        """
        if name not in PRESETS:
            raise ConfigurationError(f"expected one of the presets {', '.join(PRESETS)}, got {name!r}")
        return PRESETS[name]

    def prompt_text(self, sample: Sample) -> str:
        """Returns the text of the user message, pictures aside."""
        text = f"{self.question_prefix}{sample.question}"
        if self.instruction:
            text = f"{self.instruction}{self.instruction_separator}{text}"
        if sample.options:
            text += self.options_header
        for label, option in sample.options.items():
            text += self.option_separator + self.option_format.format(label=label, text=option)
        return text

    def target_text(self, sample: Sample) -> str:
        """Returns the reply to learn, without the end of the turn.

        It answers with the teacher's letter where `extra["teacher_label"]` has one, since the reasoning argues for
        that; else with the right letter; in an open question with the answer's text. Outer blanks of the reasoning are
        cut.

        Raises:
            DataError: If there is no reasoning and `answer_only_format` is null.
        """
        label = str(sample.extra.get(TEACHER_LABEL) or sample.answer_label or sample.answer).strip()
        reasoning = (sample.reasoning or "").strip()
        if reasoning:
            return self.target_format.format(reasoning=reasoning, label=label)
        if self.answer_only_format is None:
            raise DataError(
                f"sample {sample.uid} has no reasoning to learn; leave such samples out (Subset with_reasoning=true) "
                "or set answer_only_format, as '<answer> {label} </answer>'"
            )
        return self.answer_only_format.format(label=label)


def chat_messages(template: PromptTemplate, sample: Sample) -> list[dict[str, Any]]:
    """Returns the turns before the reply, as chat templates take them.

    The system message comes first if there is one, then the user's: one `{"type": "image"}` per picture, then the text.
    """
    messages: list[dict[str, Any]] = []
    if template.system is not None:
        messages.append({"role": "system", "content": [{"type": "text", "text": template.system}]})
    pictures = [{"type": "image"} for _ in sample.images]
    messages.append({"role": "user", "content": [*pictures, {"type": "text", "text": template.prompt_text(sample)}]})
    return messages


def _check_fields(name: str, text: str, expected: set[str]) -> None:
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error} in {text!r}; write a brace that is meant as text twice") from error
    if fields != expected:
        wanted, found = (", ".join(f"{{{field}}}" for field in sorted(names)) for names in (expected, fields))
        raise ConfigurationError(f"{name} must hold {wanted} and no other field, got {found or 'none'} in {text!r}")


PRESETS: dict[str, PromptTemplate] = {
    "reference": PromptTemplate(),
    "clean": PromptTemplate(instruction=_INSTRUCTION.format(newline="\n")),
    "step_by_step": PromptTemplate(instruction=_STEP_BY_STEP, target_format="{reasoning}\nAnswer: {label}"),
    "direct": PromptTemplate(instruction="Answer with the letter of the right option alone."),
    "plain": PromptTemplate(
        instruction="", question_prefix="", options_header="", option_separator="\n", option_format="{label} {text}"
    ),
}
