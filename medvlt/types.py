# SPDX-License-Identifier: Apache-2.0
"""The values that travel between the rooms of the house. Plain data, no behaviour, no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = "Path | bytes | Image"
"""A picture that is decoded only when it is needed: a file, an encoded file in memory, or a decoded picture."""

FinishReason: TypeAlias = Literal["stop", "length", "error"]
"""Why a completion ended: at an end token or a stop string, at its token limit, or the engine refused the prompt.

A refused prompt has completions without tokens and text, so that it stays in every denominator: it is never right, and
nothing is learned from it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One question.

    Attributes:
        uid: Stable name, the same whatever file format the question came from, unique over sources.
        question: The stem alone, without options.
        options: Letter to option text, in display order. Empty for an open question.
        answer_label: Letter of the right option; None for an open question.
        answer: Text of the right option.
        images: Pictures in the order in which the question refers to them.
        reasoning: A teacher's chain of thought, if there is one.
        dataset_name: Where the question comes from; groups metrics.
        dataset_index: Key inside `dataset_name`.
        pass_count: Right answers of a probe model, -1 if not measured.
        extra: Further columns of the stored record (`hash`, `misc`, `text`, ...), kept so that nothing is lost.
    """

    uid: str
    question: str
    options: Mapping[str, str]
    answer_label: str | None
    answer: str
    images: tuple[ImageSource, ...] = ()
    reasoning: str | None = None
    dataset_name: str = ""
    dataset_index: int | str = -1
    pass_count: int = -1
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn.

    Attributes:
        n: Completions per prompt, at least 1.
        temperature: 0 means greedy.
        top_p: Probability mass kept, in (0, 1]; 1 keeps all.
        top_k: Tokens kept; 0 keeps all.
        max_tokens: Longest completion in tokens, end token included.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        for name, valid, rule in (
            ("n", self.n >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 (greedy) or above"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "0 (keep all) or above"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
        ):
            if not valid:
                raise ValueError(f"sampling parameter {name} must be {rule}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class RolloutKey:
    """What the randomness of a group is a function of, besides the index of the completion inside it.

    Attributes:
        seed: Of the run.
        iteration: Of the rollout.
        uid: The question's.
        first: Number of the group's first completion: a call for n completions from `first` on gives completions
            `first` to `first + n - 1` of the whole group, so that some can be sampled later, or again.
    """

    seed: int
    iteration: int
    uid: str
    first: int = 0

    def sample_seed(self, index: int) -> int:
        """Returns the seed of completion `first + index`, in [0, 2**63): the same on every machine and rank."""
        text = f"{self.seed}\x1f{self.iteration}\x1f{self.uid}\x1f{self.first + index}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled continuation.

    Attributes:
        token_ids: Sampled tokens, end token included.
        text: Their text, special tokens left out.
        sampler_logprobs: The engine's log-probability of each token under the distribution it sampled from.
        finish_reason: "length" marks a truncated completion, "error" one that was never sampled.
        version: Version of the weights it was sampled from.
        error: Why it was never sampled; empty unless `finish_reason` is "error".
        reported_tokens: Its tokens as an endpoint counted them, where it does not hand out their ids.
    """

    token_ids: tuple[int, ...]
    text: str
    sampler_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    version: int = 0
    error: str = ""
    reported_tokens: int | None = None

    @property
    def length(self) -> int:
        """Tokens, end token included."""
        return len(self.token_ids) if self.reported_tokens is None else self.reported_tokens


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The completions of one prompt.

    Attributes:
        sample: The question.
        prompt_token_ids: Prompt tokens with image placeholders expanded, as the engine saw them.
        completions: G completions.
    """

    sample: Sample
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]


class Reason(StrEnum):
    """Why a verdict is what it is."""

    LABEL = "label"  # the answer names a letter
    LABEL_AND_TEXT = "label_and_text"  # a letter with the text of that option
    TEXT = "text"  # the text of exactly one option
    SYNONYM = "synonym"  # a yes/no synonym of exactly one option
    EMPTY = "empty"
    TRUNCATED = "truncated"
    NO_ANSWER = "no_answer"  # text, and nothing in it that can be read as an answer
    AMBIGUOUS = "ambiguous"  # two or more different answers
    UNKNOWN_OPTION = "unknown_option"  # an answer that is none of the options
    BAD_FORMAT = "bad_format"  # refused by a policy that demands the format
    OPEN_QUESTION = "open_question"  # the sample has no options, so there is nothing to grade against


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the grader says of one completion.

    Attributes:
        correct: Whether it counts as right under the policy that graded it.
        label: The option it chose, or None if no single option can be named.
        format_ok: Whether the text is `<think>...</think>` followed by `<answer>...</answer>` and nothing else.
        reason: Why.
        grader_version: Version of the rules, stored so that old completions can be graded again.
    """

    correct: bool
    label: str | None
    format_ok: bool
    reason: Reason
    grader_version: str
