# SPDX-License-Identifier: Apache-2.0
"""What every rollout engine promises. A new engine is one more parameter of the fixture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medvlt.data.encoder import PromptEncoder
from medvlt.data.packing import Group, pack
from medvlt.errors import EngineError
from medvlt.models.loading import Backbone, load_backbone
from medvlt.models.policy import Policy
from medvlt.rollout.base import RolloutEngine
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.rollout.transformers import TransformersEngine
from medvlt.types import RolloutKey, Sample, SamplingParams


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


OPTIONS = {"A": "Left", "B": "Right"}
SAMPLES = [
    Sample("text:1", "A question about a patient who is old.", OPTIONS, "A", "Left"),
    Sample("picture:1", "Which side?", OPTIONS, "B", "Right", (picture(1, 84, 56),)),
    Sample("picture:2", "Which of the two, and why?", OPTIONS, "A", "Left", (picture(2, 56, 56), picture(3, 112, 84))),
    Sample("text:2", "Short.", OPTIONS, "B", "Right"),
]
KEYS = [RolloutKey(7, 3, sample.uid) for sample in SAMPLES]
SAMPLING = SamplingParams(n=3, temperature=0.9, max_tokens=12)


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> PromptEncoder:
    return PromptEncoder(str(tiny_folder), template="plain")


@pytest.fixture(scope="module")
def policy(tiny_folder: Path) -> Policy:
    return Policy(load_backbone(Backbone(str(tiny_folder))))


@pytest.fixture(scope="module", params=["scripted", "transformers"])
def engine(request: pytest.FixtureRequest, encoder: PromptEncoder, policy: Policy) -> Iterator[RolloutEngine]:
    texts = ["<think> x </think>\n<answer> A </answer>", "B", "a long text that will not fit into twelve tokens at all"]
    built: RolloutEngine = {
        "scripted": lambda: ScriptedEngine(texts),
        "transformers": lambda: TransformersEngine(batch_size=5),
    }[request.param]()
    built.start(encoder, policy)
    yield built
    built.close()


def samples_weights(engine: RolloutEngine) -> bool:
    return not isinstance(engine, ScriptedEngine)


def test_is_a_rollout_engine(engine: RolloutEngine) -> None:
    assert isinstance(engine, RolloutEngine)


def test_order_number_and_lengths(engine: RolloutEngine) -> None:
    groups = engine.generate(SAMPLES, SAMPLING, keys=KEYS)
    assert [group.sample.uid for group in groups] == [sample.uid for sample in SAMPLES]
    for group in groups:
        assert len(group.completions) == SAMPLING.n
        for completion in group.completions:
            assert 1 <= len(completion.token_ids) <= SAMPLING.max_tokens
            assert len(completion.sampler_logprobs) == len(completion.token_ids)
            assert all(np.isfinite(completion.sampler_logprobs))


def test_prompt_ids_are_those_of_the_trainer(engine: RolloutEngine, encoder: PromptEncoder) -> None:
    for group in engine.generate(SAMPLES, SAMPLING, keys=KEYS):
        assert list(group.prompt_token_ids) == encoder.encode(group.sample).token_ids.tolist()


def test_equal_keys_give_equal_completions_whatever_else_is_asked(engine: RolloutEngine) -> None:
    together = engine.generate(SAMPLES, SAMPLING, keys=KEYS)
    for sample, key, group in reversed(list(zip(SAMPLES, KEYS, together, strict=True))):
        alone = engine.generate([sample], SAMPLING, keys=[key])[0]
        assert [c.token_ids for c in alone.completions] == [c.token_ids for c in group.completions]
        fewer = engine.generate([sample], SamplingParams(n=1, temperature=0.9, max_tokens=12), keys=[key])[0]
        assert fewer.completions[0].token_ids == group.completions[0].token_ids


def test_other_keys_give_other_completions(engine: RolloutEngine) -> None:
    seen = {
        tuple(c.token_ids for g in engine.generate(SAMPLES, SAMPLING, keys=keys) for c in g.completions)
        for keys in (KEYS, [RolloutKey(8, 3, k.uid) for k in KEYS], [RolloutKey(7, 4, k.uid) for k in KEYS])
    }
    assert len(seen) == 3


def test_finish_reason_and_text(engine: RolloutEngine, encoder: PromptEncoder) -> None:
    reasons = set()
    for seed in range(6):
        keys = [RolloutKey(seed, 0, sample.uid) for sample in SAMPLES]
        for group in engine.generate(SAMPLES, SAMPLING, keys=keys):
            for completion in group.completions:
                ended = completion.token_ids[-1] in encoder.end_token_ids
                assert completion.finish_reason == ("stop" if ended else "length")
                assert not any(token in encoder.end_token_ids for token in completion.token_ids[:-1])
                assert completion.text == encoder.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
                if not ended:
                    assert len(completion.token_ids) == SAMPLING.max_tokens
                reasons.add(completion.finish_reason)
    assert reasons == {"stop", "length"}  # else rows that end early were not tried


def test_greedy_needs_no_luck(engine: RolloutEngine) -> None:
    greedy = SamplingParams(n=2, temperature=0, max_tokens=8)
    runs = [engine.generate(SAMPLES, greedy, keys=[RolloutKey(seed, 0, s.uid) for s in SAMPLES]) for seed in (1, 2)]
    for one, two in zip(*runs, strict=True):
        assert len({c.token_ids for c in (*one.completions, *two.completions)}) == 1


def test_logprobs_are_those_of_the_trainer(engine: RolloutEngine, encoder: PromptEncoder, policy: Policy) -> None:
    """The log-probability that the engine reports is that of the packed forward at the same temperature."""
    if not samples_weights(engine):
        pytest.skip("a scripted engine has no distribution")
    for group in engine.generate(SAMPLES, SAMPLING, keys=KEYS):
        completions = [torch.tensor(c.token_ids) for c in group.completions]
        batch = pack([Group(encoder.encode(group.sample), completions, [1.0] * len(completions))])
        with torch.no_grad():
            logits = policy.hidden_states(batch) @ policy.base.lm_head.weight.T
        # the engine never samples control tokens or the padding of the vocabulary, so they leave its distribution
        logits[:, list(encoder.banned_token_ids)] = -torch.inf
        logits[:, len(encoder.tokenizer) :] = -torch.inf
        expected = (logits / SAMPLING.temperature).log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
        ours = torch.tensor([x for c in group.completions for x in c.sampler_logprobs])
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_control_tokens_and_padding_are_never_sampled(
    engine: RolloutEngine, encoder: PromptEncoder, policy: Policy
) -> None:
    if not samples_weights(engine):
        pytest.skip("a scripted engine has no distribution")
    head = policy.base.lm_head.weight
    before = head.detach().clone()
    forbidden = [*encoder.banned_token_ids, *range(len(encoder.tokenizer), len(head))]
    assert encoder.image_token_id in forbidden
    assert len(head) > len(encoder.tokenizer)
    try:
        with torch.no_grad():
            head[forbidden] *= 50  # makes them likely wherever their logit is positive
        sampled = {
            token
            for seed in range(4)
            for group in engine.generate(SAMPLES, SAMPLING, keys=[RolloutKey(seed, 0, s.uid) for s in SAMPLES])
            for completion in group.completions
            for token in completion.token_ids
        }
        assert not sampled & set(forbidden)
    finally:
        with torch.no_grad():
            head.copy_(before)


@pytest.mark.parametrize("part", ["visual", "language_model"])
def test_new_weights_change_the_output(part: str, engine: RolloutEngine, policy: Policy) -> None:
    if not samples_weights(engine):
        pytest.skip("a scripted engine has no weights")
    greedy = SamplingParams(temperature=0, max_tokens=12)
    before = engine.generate(SAMPLES, greedy, keys=KEYS)
    changed = [parameter for name, parameter in policy.base.named_parameters() if part in name and parameter.ndim == 2]
    kept = [parameter.detach().clone() for parameter in changed]
    try:
        with torch.no_grad():
            for parameter in changed:
                parameter.mul_(-1.5)
        engine.load_weights(policy.base.state_dict().items(), version=5)
        after = engine.generate(SAMPLES, greedy, keys=KEYS)
        assert before[1].completions[0].token_ids != after[1].completions[0].token_ids  # a question with a picture
        assert {c.version for group in after for c in group.completions} == {5}
    finally:
        with torch.no_grad():
            for parameter, value in zip(changed, kept, strict=True):
                parameter.copy_(value)
        engine.load_weights(policy.base.state_dict().items(), version=6)
    again = engine.generate(SAMPLES, greedy, keys=KEYS)
    assert [g.completions[0].token_ids for g in again] == [g.completions[0].token_ids for g in before]


def test_sleep_and_wake_are_idempotent(engine: RolloutEngine) -> None:
    before = engine.generate(SAMPLES[:1], SAMPLING, keys=KEYS[:1])
    for step in (engine.sleep, engine.sleep, engine.wake, engine.wake):
        step()
    after = engine.generate(SAMPLES[:1], SAMPLING, keys=KEYS[:1])
    assert [c.token_ids for c in after[0].completions] == [c.token_ids for c in before[0].completions]


def test_training_mode_survives(engine: RolloutEngine, policy: Policy) -> None:
    policy.train()
    policy.base.model.visual.eval()
    engine.generate(SAMPLES[:1], SAMPLING, keys=KEYS[:1])
    assert policy.training
    assert policy.base.lm_head.training
    assert not policy.base.model.visual.training
    policy.train()


def test_a_closed_engine_says_so(engine: RolloutEngine, encoder: PromptEncoder, policy: Policy) -> None:
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.generate(SAMPLES[:1], SAMPLING, keys=KEYS[:1])
    engine.start(encoder, policy)  # and can be started again
    assert engine.generate(SAMPLES[:1], SAMPLING, keys=KEYS[:1])
