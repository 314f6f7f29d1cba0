# SPDX-License-Identifier: Apache-2.0
"""Rollouts on the live policy: batched decoding with a KV cache, no copy of the weights, no extra package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from medvlt.data.encoder import PromptEncoder
from medvlt.data.packing import EncodedPrompt
from medvlt.errors import ConfigurationError, DataError, EngineError
from medvlt.models import head
from medvlt.models.policy import Policy
from medvlt.models.sharding import sharded_by
from medvlt.rollout.base import RolloutEngine
from medvlt.rollout.refusal import refuse
from medvlt.rollout.sampling import processed_logprobs, sample_tokens, uniforms
from medvlt.rollout.store_identity import weights_fingerprint
from medvlt.rollout.weights import hub_weights
from medvlt.types import Completion, RolloutGroup, RolloutKey, Sample, SamplingParams


class TransformersEngine(RolloutEngine):
    """Samples from the live policy.

    Each prompt is computed once and its KV cache repeated for its completions; prompts are padded on the left, rows
    that have ended are taken out of the batch when they are half of it. A completion's randomness is a list of uniforms
    drawn from its own seed, so it does not depend on the batch it is decoded in, apart from rounding.

    Args:
        batch_size: Completions decoded at a time. More is faster and takes more memory for the KV cache.

    Attributes:
        refused: How many prompts of each kind were refused; see `medvlt.rollout.refusal`.
    """

    def __init__(self, batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size must be at least 1 completion, got {batch_size}")
        self.batch_size = batch_size
        self.version = 0
        self.refused: Counter[str] = Counter()
        self._encoder: PromptEncoder | None = None
        self._policy: Policy | None = None

    def start(self, encoder: PromptEncoder, policy: Policy | None) -> None:
        """Binds the engine to the live policy.

        Raises:
            ConfigurationError: Without a policy, or with a sharded one.
        """
        if policy is None:
            raise ConfigurationError(
                "TransformersEngine samples from the live policy and the module has none; use a module with a backbone "
                "(SFTModule, GRPOModule), or an engine with weights of its own"
            )
        sharding = sharded_by(policy)
        if sharding is not None:
            raise ConfigurationError(
                f"TransformersEngine cannot decode on a policy sharded by {sharding}: ranks would have to take every "
                "step together. Use a strategy that keeps whole weights on each rank (auto, ddp, deepspeed_stage_2), "
                "or the vLLM engine; beside that one, weights are sharded by ModelParallelStrategy"
            )
        self._encoder, self._policy = encoder, policy

    @torch.no_grad()
    def generate(
        self, samples: Sequence[Sample], params: SamplingParams, *, keys: Sequence[RolloutKey]
    ) -> list[RolloutGroup]:
        """Samples `params.n` completions for each sample, in the order given.

        A prompt that cannot be built is refused: its completions are empty and end with "error".
        """
        encoder, policy = self._started()
        prompts: dict[int, EncodedPrompt] = {}
        groups: dict[int, RolloutGroup] = {}
        for i, sample in enumerate(samples):
            try:
                prompts[i] = encoder.encode(sample)
            except DataError as error:
                groups[i] = refuse(sample, error, n=params.n, version=self.version, counts=self.refused)
        by_length = sorted(prompts, key=lambda i: -len(prompts[i].token_ids))
        per_batch = max(1, self.batch_size // params.n)
        with _evaluating(policy):
            for begin in range(0, len(by_length), per_batch):
                indices = by_length[begin : begin + per_batch]
                seeds = [keys[i].sample_seed(index) for i in indices for index in range(params.n)]
                decoded = self._decode([prompts[i] for i in indices], seeds, params)
                for position, i in enumerate(indices):
                    completions = decoded[position * params.n : (position + 1) * params.n]
                    groups[i] = RolloutGroup(samples[i], tuple(prompts[i].token_ids.tolist()), tuple(completions))
        return [groups[i] for i in range(len(samples))]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Records the version; the live policy needs no copy, so `weights` is not read."""
        self.version = version

    def identity(self) -> dict[str, Any]:
        """Returns its name, the fingerprint of the policy's present weights and their type."""
        _, policy = self._started()
        return {
            "engine": "TransformersEngine",
            "weights": weights_fingerprint(hub_weights(policy)),
            "dtype": str(policy.base.lm_head.weight.dtype).removeprefix("torch."),
        }

    def sleep(self) -> None:
        """Does nothing: there is no memory of the engine's own."""

    def wake(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Lets go of the policy."""
        self._encoder = self._policy = None

    def _started(self) -> tuple[PromptEncoder, Policy]:
        if self._encoder is None or self._policy is None:
            raise EngineError("the engine is not started, or was closed; call start(encoder, policy) first")
        return self._encoder, self._policy

    def _decode(
        self, prompts: Sequence[EncodedPrompt], seeds: Sequence[int], params: SamplingParams
    ) -> list[Completion]:
        encoder, policy = self._started()
        model = policy.base
        ends = torch.tensor(encoder.end_token_ids, device=model.device)
        banned = _banned_mask(encoder, model.lm_head.weight.shape[0], model.device)
        noise = uniforms(seeds, params.max_tokens).to(model.device)
        batch = left_pad(prompts, encoder.end_token_ids[-1]).to(model.device)
        output = model.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            pixel_values=batch.pixel_values,
            image_grid_thw=batch.image_grid_thw,
            past_key_values=DynamicCache(config=model.config.text_config),
            use_cache=True,
        )
        cache = output.past_key_values
        cache.batch_repeat_interleave(params.n)
        hidden = output.last_hidden_state[:, -1].repeat_interleave(params.n, dim=0)
        mask = batch.attention_mask.repeat_interleave(params.n, dim=0)
        position = (batch.position_ids.amax(dim=(0, 2)) + 1).repeat_interleave(params.n)

        # everything stays on the device; the host learns once per token how many rows still run
        rows = torch.arange(len(seeds), device=model.device)  # which completion each row of the batch is
        ended = torch.zeros(len(seeds), dtype=torch.bool, device=model.device)
        tokens = torch.full((len(seeds), params.max_tokens), int(ends[0]), device=model.device)
        logprobs = torch.zeros(len(seeds), params.max_tokens, device=model.device)
        for step in range(params.max_tokens):
            logits = head.token_logits(hidden, model.lm_head.weight).masked_fill(banned, -torch.inf)
            distribution = processed_logprobs(logits, params)
            chosen = sample_tokens(distribution, noise[rows, step], greedy=params.temperature == 0)
            tokens[rows, step] = chosen
            logprobs[rows, step] = distribution.gather(-1, chosen[:, None])[:, 0]
            ended = ended | torch.isin(chosen, ends)
            live = int((~ended).sum())
            if live == 0 or step + 1 == params.max_tokens:
                break
            if live <= len(rows) // 2:  # copying the cache costs more than a few rows that run on
                kept = (~ended).nonzero()[:, 0]
                cache.batch_select_indices(kept)
                rows, chosen, mask, position = rows[kept], chosen[kept], mask[kept], position[kept]
                ended = ended[kept]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            output = model.model(
                input_ids=chosen[:, None],
                attention_mask=mask,
                position_ids=(position + step)[None, :, None].expand(3, -1, 1),
                past_key_values=cache,
                use_cache=True,
            )
            hidden = output.last_hidden_state[:, -1]
        made = step + 1
        return [
            self._completion(ids[:made], row[:made])
            for ids, row in zip(tokens.tolist(), logprobs.tolist(), strict=True)
        ]

    def _completion(self, ids: list[int], logprobs: list[float]) -> Completion:
        encoder, _ = self._started()
        length = next((i + 1 for i, token in enumerate(ids) if token in encoder.end_token_ids), len(ids))
        ids = ids[:length]  # a row may have run on beyond its end
        return Completion(
            token_ids=tuple(ids),
            text=encoder.tokenizer.decode(ids, skip_special_tokens=True),
            sampler_logprobs=tuple(logprobs[:length]),
            finish_reason="stop" if ids[-1] in encoder.end_token_ids else "length",
            version=self.version,
        )


@dataclass(frozen=True)
class PaddedPrompts:
    """Prompts padded on the left, for decoding.

    Attributes:
        input_ids: (B, P).
        attention_mask: 1 where a token is, (B, P).
        position_ids: (3, B, P), zero on padding.
        pixel_values: Patches of all pictures in prompt order, or None.
        image_grid_thw: (pictures, 3), or None.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None

    def to(self, device: torch.device) -> PaddedPrompts:
        """Returns the prompts on a device."""
        pixels, grids = self.pixel_values, self.image_grid_thw
        return PaddedPrompts(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.position_ids.to(device),
            None if pixels is None else pixels.to(device),
            None if grids is None else grids.to(device),
        )


def left_pad(prompts: Sequence[EncodedPrompt], pad_token_id: int) -> PaddedPrompts:
    """Pads prompts on the left to the longest, so that all of them end at the last column."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    input_ids = torch.full((len(prompts), longest), pad_token_id)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    positions = torch.zeros(3, len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        begin = longest - len(prompt.token_ids)
        input_ids[row, begin:] = prompt.token_ids
        mask[row, begin:] = 1
        positions[:, row, begin:] = prompt.position_ids
    pixels = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
    grids = [prompt.image_grid_thw for prompt in prompts if prompt.image_grid_thw is not None]
    return PaddedPrompts(
        input_ids, mask, positions, torch.cat(pixels) if pixels else None, torch.cat(grids) if grids else None
    )


def _banned_mask(encoder: PromptEncoder, vocab_size: int, device: torch.device) -> Tensor:
    """True for control tokens and for the padding of the embedding beyond the tokenizer, (V,)."""
    banned = torch.zeros(vocab_size, dtype=torch.bool)
    banned[encoder.unsampled_token_ids(vocab_size)] = True
    return banned.to(device)


@contextmanager
def _evaluating(policy: Policy) -> Iterator[None]:
    """Evaluation mode inside, the previous mode of every module afterwards."""
    modes = {module: module.training for module in policy.modules()}
    policy.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
