# SPDX-License-Identifier: Apache-2.0
"""What goes to vLLM for one prompt, and what its answer means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from medvlt.data.encoder import PromptEncoder
from medvlt.errors import EngineError
from medvlt.rollout.refusal import RefusedPrompt
from medvlt.types import Completion, RolloutGroup, RolloutKey, Sample, SamplingParams


@dataclass(frozen=True)
class Request:
    """A prompt that can be sampled.

    Attributes:
        uid: The question's.
        token_ids: One placeholder per picture; vLLM puts in the others.
        expanded_ids: One placeholder per visual token, as the trainer has it.
        pictures: Decoded, at the size the model sees.
        seed: Of the first completion; completion i has seed + i.
        max_tokens: Longest completion in tokens.
    """

    uid: str
    token_ids: list[int]
    expanded_ids: list[int]
    pictures: list[Image.Image]
    seed: int
    max_tokens: int


def build_request(
    encoder: PromptEncoder,
    sample: Sample,
    params: SamplingParams,
    key: RolloutKey,
    *,
    max_images: int,
    max_model_len: int,
) -> Request:
    """Builds the request of a question.

    Args:
        encoder: Turns the question into a prompt.
        sample: The question.
        params: How it is to be sampled.
        key: What the seed is made from.
        max_images: Most pictures the engine takes.
        max_model_len: Most tokens of prompt and completion the engine takes.

    Raises:
        DataError: If the prompt cannot be built, or is beyond the engine's limits.
    """
    encoder.check_text(sample)
    if len(sample.images) > max_images:
        raise RefusedPrompt(
            "too_many_pictures", f"it has {len(sample.images)} pictures and the engine takes max_images={max_images}"
        )
    token_ids = encoder.engine_token_ids(sample)
    expanded_ids = encoder.expand(token_ids, encoder.image_grids(sample)).tolist()
    room = max_model_len - len(expanded_ids)
    if room < 1:
        raise RefusedPrompt(
            "too_long",
            f"its prompt has {len(expanded_ids)} tokens and the engine takes max_model_len={max_model_len}, completion "
            "included; raise that, or lower encoder.images.max_pixels",
        )
    return Request(
        sample.uid,
        token_ids,
        expanded_ids,
        encoder.pictures(sample),
        # half of the range leaves room below 2**63; vLLM adds the index of a completion to the seed of its request
        (replace(key, first=0).sample_seed(0) >> 1) + key.first,
        min(params.max_tokens, room),
    )


def vllm_inputs(
    requests: Sequence[Request], params: SamplingParams, end_token_ids: Sequence[int]
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Returns the prompts and the sampling parameters in vLLM's own types.

    Args:
        requests: In the order in which the answers are wanted.
        params: Common to all.
        end_token_ids: Tokens that end a completion.
    """
    from vllm import SamplingParams as Parameters

    prompts: list[dict[str, Any]] = [{"prompt_token_ids": request.token_ids} for request in requests]
    for prompt, request in zip(prompts, requests, strict=True):
        if request.pictures:
            prompt["multi_modal_data"] = {"image": request.pictures}
    parameters = [
        Parameters(
            n=1 if params.temperature == 0 else params.n,  # greedy completions are all the same
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop_token_ids=list(end_token_ids),
            ignore_eos=True,  # the encoder alone says what ends a completion
            logprobs=0,  # of the sampled token, and of no others
            detokenize=False,
        )
        for request in requests
    ]
    return prompts, parameters


def rollout_group(
    encoder: PromptEncoder, sample: Sample, request: Request, output: Any, *, n: int, version: int
) -> RolloutGroup:
    """Returns what vLLM sampled for a question.

    Args:
        encoder: The one that built the request.
        sample: The question.
        request: Its request.
        output: vLLM's `RequestOutput`.
        n: Completions that were asked for.
        version: Version of the weights.

    Raises:
        EngineError: If vLLM saw another prompt than the trainer will, or a completion is not complete.
    """
    if list(output.prompt_token_ids) != request.expanded_ids:
        raise EngineError(
            f"question {request.uid}: vLLM saw a prompt of {len(output.prompt_token_ids)} tokens, the trainer has one "
            f"of {len(request.expanded_ids)}. Usually the pixel limits differ, so that vLLM resizes a picture that the "
            "encoder has sized already; both must come from encoder.images"
        )
    completions = []
    for sampled in output.outputs:
        ids = tuple(sampled.token_ids)
        if sampled.finish_reason not in ("stop", "length") or len(sampled.logprobs or ()) != len(ids):
            raise EngineError(
                f"question {request.uid}: vLLM ended a completion of {len(ids)} tokens with {sampled.finish_reason!r} "
                f"and {len(sampled.logprobs or ())} log-probabilities"
            )
        completions.append(
            Completion(
                token_ids=ids,
                text=encoder.tokenizer.decode(ids, skip_special_tokens=True),
                sampler_logprobs=tuple(at[token].logprob for token, at in zip(ids, sampled.logprobs, strict=True)),
                finish_reason=sampled.finish_reason,
                version=version,
            )
        )
    return RolloutGroup(sample, tuple(request.expanded_ids), tuple(completions) * (n // len(completions)))
