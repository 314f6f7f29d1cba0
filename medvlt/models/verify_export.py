# SPDX-License-Identifier: Apache-2.0
"""Does a written model answer as the policy it was made from? Asked of transformers and vLLM, with their own code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig

from medvlt.data.encoder import PromptEncoder
from medvlt.data.packing import EncodedPrompt, Group, pack
from medvlt.data.phantom import Phantom
from medvlt.errors import MedvltError
from medvlt.models import head
from medvlt.models.loading import Backbone
from medvlt.models.policy import Policy
from medvlt.models.quantization import keep_layout, quantization_config
from medvlt.rollout.transformers import TransformersEngine
from medvlt.types import RolloutKey, Sample, SamplingParams

ExportCheck: TypeAlias = Literal["transformers", "vllm", "both", "none"]
"""Which library has to load a written model and answer as the policy does."""

ANSWER_TOKENS = 24
"""Longest answer that is compared."""

TOLERANCES = {torch.float32: 1e-4}
"""Largest mean of |written - policy| over the log-probabilities of an answer, in nats, by the type of the weights."""

HALF_TOLERANCE = 0.05
"""The same where a number has 3 digits (bfloat16, float16)."""

NEAR_TIE = 4.0
"""Two tokens whose log-probabilities are closer than this many tolerances may change places."""


class VerificationError(MedvltError, RuntimeError):
    """A written model does not answer as the policy it was made from."""


@dataclass(frozen=True)
class Answer:
    """What the policy answers to one prompt, greedily.

    Attributes:
        sample: The question.
        prompt: As the trainer encodes it.
        token_ids: The answer, (T,).
        logprobs: Of its tokens, by the forward that training uses, (T,).
        behind: By how much every other token was less likely than that of the answer, in nats, (T, vocabulary).
    """

    sample: Sample
    prompt: EncodedPrompt
    token_ids: Tensor
    logprobs: Tensor
    behind: Tensor

    @property
    def called(self) -> str:
        """How a message names the prompt."""
        kind = "with a picture" if self.sample.images else "of text"
        return f"the prompt {kind} ({self.sample.uid}, {len(self.prompt.token_ids)} tokens)"


@dataclass(frozen=True)
class Comparison:
    """How another answer compares with the policy's.

    Attributes:
        mean: Mean difference of the log-probabilities, in nats.
        shared: How many first tokens both have.
        same: Whether all tokens are the same.
    """

    mean: float
    shared: int
    same: bool


def questions() -> list[Sample]:
    """Returns the fixed questions of the check: one of text, one with a drawn picture."""
    return [sample for kind in ("text", "picture") for sample in Phantom("test", 1, modality=kind).load()]


@torch.no_grad()
def answers(policy: Policy, encoder: PromptEncoder) -> list[Answer]:
    """Asks the policy itself: adapters in place, packed forward."""
    engine = TransformersEngine()
    engine.start(encoder, policy)
    samples = questions()
    keys = [RolloutKey(0, 0, sample.uid) for sample in samples]
    groups = engine.generate(samples, SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS), keys=keys)
    weight = policy.base.lm_head.weight
    banned = encoder.unsampled_token_ids(len(weight))
    policy.eval()
    found = []
    for group in groups:
        prompt, ids = encoder.encode(group.sample), torch.tensor(group.completions[0].token_ids)
        batch = pack([Group(prompt, [ids], [1.0])])
        logits = head.token_logits(policy.hidden_states(batch), weight)
        found.append(Answer(group.sample, prompt, ids, *_chosen(logits, ids, banned)))
    return found


def tolerance(*dtypes: torch.dtype) -> float:
    """Returns the largest mean difference that is rounding, for weights of these types on either side."""
    return max(TOLERANCES.get(dtype, HALF_TOLERANCE) for dtype in dtypes)


def check_prompts(expected: Sequence[Answer], trained: PromptEncoder, written: PromptEncoder) -> None:
    """Compares what a written folder makes of the questions with what the trainer makes of them.

    Raises:
        VerificationError: If a file cannot be read, or tokens, pixels or picture settings differ.
    """
    try:
        found = [written.encode(answer.sample) for answer in expected]
        settings = [encoder.image_processor.to_dict() for encoder in (trained, written)]
    except (MedvltError, RuntimeError, ValueError, TypeError) as error:
        raise VerificationError(f"the written folder makes no prompts: {error}") from error
    for answer, prompt in zip(expected, found, strict=True):
        if not torch.equal(prompt.token_ids, answer.prompt.token_ids):
            raise VerificationError(
                f"{answer.called} has other tokens ({len(prompt.token_ids)}) with the tokenizer and the chat template "
                "of the written folder"
            )
        if not _equal(prompt.pixel_values, answer.prompt.pixel_values):
            raise VerificationError(f"{answer.called} has other pixels with the picture settings of the written folder")
    before, after = settings
    differing = [
        f"{key} {after.get(key)!r} in place of {before.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if differing:
        raise VerificationError(
            f"the picture settings of the written folder differ from the base's: {', '.join(differing)}"
        )


def load_written(folder: Path) -> Any:
    """Loads a written model with transformers' own code.

    Raises:
        VerificationError: If it does not load.
    """
    with _explained("transformers"):
        return AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", trust_remote_code=False).eval()


def load_adapter(folder: Path, base: Backbone, computed: torch.dtype) -> Any:
    """Loads written adapters with peft's own code.

    Args:
        folder: With the adapters.
        base: The model that was trained, with the type and the quantisation it was trained in.
        computed: What the policy answered in; four-bit layers compute in the type of `base`.

    Raises:
        VerificationError: If they do not load.
    """
    from peft import PeftModel  # slow to import

    with _explained("peft"):
        dtype: Any = base.dtype if base.dtype == "auto" else getattr(torch, base.dtype)
        quantized = None if base.quantization is None else quantization_config(base.quantization, dtype)
        model = AutoModelForImageTextToText.from_pretrained(
            base.name, revision=base.revision, dtype=dtype, quantization_config=quantized, trust_remote_code=False
        )
        if quantized is not None:
            keep_layout(model)
        return PeftModel.from_pretrained(model, folder).to(computed).eval()


@torch.no_grad()
def check_transformers(model: Any, expected: Sequence[Answer], encoder: PromptEncoder, *, bound: float) -> str:
    """Compares answers with those of the library's plain forward and `generate`.

    Args:
        model: The written one; see `load_written`.
        expected: The policy's.
        encoder: Of the written folder.
        bound: See `tolerance`.

    Returns:
        How far the two are apart, in words.

    Raises:
        VerificationError: If it is too far.
    """
    rows = model.get_output_embeddings().weight.shape[0]
    banned = encoder.unsampled_token_ids(rows)
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=ANSWER_TOKENS,
        eos_token_id=list(encoder.end_token_ids),
        pad_token_id=encoder.end_token_ids[-1],
        suppress_tokens=banned,
    )
    found: list[Comparison] = []
    for answer in expected:
        prompt = encoder.encode(answer.sample)
        begin = len(prompt.token_ids)
        inputs = _inputs(prompt, prompt.token_ids, encoder.image_token_id)
        text = model.generate(**inputs, generation_config=greedy)[0, begin:]
        whole = _inputs(prompt, torch.cat([prompt.token_ids, answer.token_ids]), encoder.image_token_id)
        logits = model(**whole).logits[0, begin - 1 : -1].float()
        logprobs, _ = _chosen(logits, answer.token_ids, banned)
        found.append(_compare("transformers", answer, text, logprobs, encoder, bound))
    return _said("transformers", found, bound)


def check_vllm(expected: Sequence[Answer], encoder: PromptEncoder, *, bound: float, dtype: torch.dtype) -> str:
    """Compares answers with those of vLLM, started on the written folder.

    Args:
        expected: The policy's.
        encoder: Of the written folder.
        bound: See `tolerance`.
        dtype: Of the written weights; vLLM computes in it.

    Raises:
        MissingExtraError: If vLLM is not installed.
        VerificationError: If vLLM does not start, or its answers are too far.
    """
    from medvlt.rollout.vllm import VLLMEngine

    longest = max(len(answer.prompt.token_ids) for answer in expected) + ANSWER_TOKENS
    name: Any = str(dtype).removeprefix("torch.")
    engine = VLLMEngine(dtype=name, max_model_len=longest, max_images=1, max_num_seqs=4, enforce_eager=True)
    samples = [answer.sample for answer in expected]
    keys = [RolloutKey(0, 0, sample.uid) for sample in samples]
    try:
        engine.start(encoder, None)
        groups = engine.generate(samples, SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS), keys=keys)
    except MedvltError as error:
        raise VerificationError(f"vLLM does not answer with the written folder: {error}") from error
    finally:
        engine.close()
    found: list[Comparison] = []
    for answer, group in zip(expected, groups, strict=True):
        (completion,) = group.completions
        if completion.finish_reason == "error":
            raise VerificationError(f"vLLM does not answer {answer.called}: {completion.error}")
        if group.prompt_token_ids != tuple(answer.prompt.token_ids.tolist()):
            raise VerificationError(f"vLLM: {answer.called} has other tokens there")
        ids, logprobs = torch.tensor(completion.token_ids), torch.tensor(completion.sampler_logprobs)
        shared = common_length(answer.token_ids, ids)
        found.append(_compare("vLLM", answer, ids, logprobs[:shared], encoder, bound))
    return _said("vLLM", found, bound)


def _compare(
    library: str, answer: Answer, ids: Tensor, logprobs: Tensor, encoder: PromptEncoder, bound: float
) -> Comparison:
    """Compares an answer with the policy's.

    Args:
        library: Who answered.
        answer: The policy's.
        ids: The other answer.
        logprobs: Of the policy's answer there, or of as many of its first tokens as both answers share.
        encoder: Of the written folder.
        bound: See `tolerance`.

    Raises:
        VerificationError: If the log-probabilities differ by more than the bound, or the first other token is none
            that the policy finds nearly as likely.
    """
    ours = answer.token_ids
    shared = common_length(ours, ids)
    differences = (logprobs - answer.logprobs[: len(logprobs)]).abs()
    mean, most = (float(differences.mean()), float(differences.max())) if len(differences) else (0.0, 0.0)
    if not mean <= bound:  # also NaN
        raise VerificationError(
            f"{library}: log-probabilities of the answer to {answer.called} differ from the policy's by {mean:.2g} on "
            f"average, {most:.2g} at most; at most {bound:g} on average is rounding"
        )
    same = torch.equal(ours, ids)
    near_tie = shared < min(len(ours), len(ids)) and answer.behind[shared, ids[shared]] <= NEAR_TIE * bound
    if not same and not near_tie:
        theirs, expected = (encoder.tokenizer.decode(tokens) for tokens in (ids, ours))
        raise VerificationError(
            f"{library}: the greedy answer to {answer.called} is {theirs!r} in place of {expected!r}, other from token "
            f"{shared + 1} on"
        )
    return Comparison(mean, shared, same)


def common_length(one: Tensor, other: Tensor) -> int:
    """Returns how many first tokens two answers share."""
    length = min(len(one), len(other))
    return int((one[:length] == other[:length]).long().cumprod(0).sum())


def _said(library: str, found: Sequence[Comparison], bound: float) -> str:
    """Returns what was found, in words.

    Raises:
        VerificationError: If no answer shares a single token with the policy's, so that nothing was compared.
    """
    if not any(comparison.shared for comparison in found):
        raise VerificationError(f"{library}: no greedy answer begins as the policy's does, so none can be compared")
    tied = sum(not comparison.same for comparison in found)
    text = "same greedy text" if tied == 0 else f"same greedy text but in {tied}, from a near tie on"
    worst = max(comparison.mean for comparison in found)
    return (
        f"{library} answers {len(found)} prompts as the policy does: {text}, log-probabilities within {worst:.1g} on "
        f"average (at most {bound:g})"
    )


@contextmanager
def _explained(library: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a library says, the folder is no good
        raise VerificationError(f"{library} cannot load the written folder: {error}") from error


def _inputs(prompt: EncodedPrompt, token_ids: Tensor, image_token_id: int) -> dict[str, Tensor]:
    """Returns what the library's processor would return; positions are left to the library."""
    inputs = {"input_ids": token_ids[None], "attention_mask": torch.ones(1, len(token_ids), dtype=torch.long)}
    if prompt.pixel_values is not None and prompt.image_grid_thw is not None:
        inputs |= {
            "pixel_values": prompt.pixel_values,
            "image_grid_thw": prompt.image_grid_thw,
            "mm_token_type_ids": (token_ids == image_token_id).long()[None],
        }
    return inputs


def _chosen(logits: Tensor, token_ids: Tensor, banned: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Returns the log-probability of each token and its lead over every other one, without banned tokens."""
    logits[:, list(banned)] = -torch.inf
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, token_ids[:, None])
    return chosen[:, 0], chosen - logprobs


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
