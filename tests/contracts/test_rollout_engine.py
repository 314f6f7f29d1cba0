# SPDX-License-Identifier: Apache-2.0
"""What every rollout engine promises. A new engine is one more parameter of the fixture."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from medvlt.rollout.sampling import processed_logprobs
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.rollout.transformers import TransformersEngine
from medvlt.rollout.vllm import VLLMEngine
from medvlt.rollout.weights import hub_weights
from medvlt.types import RolloutGroup, RolloutKey, Sample, SamplingParams


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
GREEDY = SamplingParams(temperature=0, max_tokens=12)
LONG = [  # above one block of vLLM's KV cache, 128 tokens on a CPU, with the pictures behind and before the long text
    Sample("long:1", "A very long question. " * 12, OPTIONS, "A", "Left"),
    Sample(
        "long:2", "Both pictures, at length. " * 10, OPTIONS, "B", "Right", (picture(4, 84, 84), picture(5, 56, 84))
    ),
]
LONG_KEYS = [RolloutKey(7, 3, sample.uid) for sample in LONG]


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> PromptEncoder:
    return PromptEncoder(str(tiny_folder), template="plain")


@pytest.fixture(scope="module")
def policy(tiny_folder: Path) -> Policy:
    return Policy(load_backbone(Backbone(str(tiny_folder))))


def build(kind: str, model: Path | None = None) -> RolloutEngine:
    texts = ["<think> x </think>\n<answer> A </answer>", "B", "a long text that will not fit into twelve tokens at all"]
    if kind == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed", exc_type=ImportError)
        name = None if model is None else str(model)
        return VLLMEngine(name, max_model_len=1024, max_images=2, max_num_seqs=32)
    return ScriptedEngine(texts) if kind == "scripted" else TransformersEngine(batch_size=5)


ENGINES = ["scripted", "transformers", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow])]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, encoder: PromptEncoder, policy: Policy) -> Iterator[RolloutEngine]:
    built = build(request.param)
    built.start(encoder, policy)
    yield built
    built.close()


def samples_weights(engine: RolloutEngine) -> bool:
    return not isinstance(engine, ScriptedEngine)


def copies_weights(engine: RolloutEngine) -> bool:
    return samples_weights(engine) and not isinstance(engine, TransformersEngine)


@contextmanager
def changed(engine: RolloutEngine, policy: Policy, part: str = "", factor: float = -1.5) -> Iterator[None]:
    """Multiplies the matrices whose name holds `part`, and sends the weights; undoes both."""
    parameters = [p for name, p in policy.base.named_parameters() if part in name and p.ndim == 2]
    assert parameters
    kept = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(factor)
    try:
        engine.load_weights(hub_weights(policy), version=5)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
        engine.load_weights(hub_weights(policy), version=6)


def trainer_logits(encoder: PromptEncoder, policy: Policy, group: RolloutGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the packed forward over the tokens that may be sampled, and the tokens that were."""
    completions = [torch.tensor(c.token_ids) for c in group.completions]
    batch = pack([Group(encoder.encode(group.sample), completions, [1.0] * len(completions))])
    with torch.no_grad():
        logits = policy.hidden_states(batch) @ policy.base.lm_head.weight.T
    logits[:, [*encoder.banned_token_ids, *range(len(encoder.tokenizer), logits.shape[1])]] = -torch.inf
    return logits, batch.targets[:, None]


def assert_trainer_agrees(encoder: PromptEncoder, policy: Policy, groups: list[RolloutGroup], t: float = 1.0) -> None:
    for group in groups:
        ours = torch.tensor([x for c in group.completions for x in c.sampler_logprobs])
        logits, sampled = trainer_logits(encoder, policy, group)
        expected = (logits / t).log_softmax(-1).gather(-1, sampled)[:, 0]
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


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


def test_a_part_of_a_group_is_that_part(engine: RolloutEngine) -> None:
    """Completions that are sampled later, or again, are those that the whole group has."""
    for params in (replace(SAMPLING, n=5), replace(GREEDY, n=5)):
        whole = engine.generate(SAMPLES, params, keys=KEYS)
        for first, count in ((0, 2), (1, 1), (2, 3), (4, 1)):
            keys = [replace(key, first=first) for key in KEYS]
            parts = engine.generate(SAMPLES, replace(params, n=count), keys=keys)
            for part, group in zip(parts, whole, strict=True):
                expected = group.completions[first : first + count]
                assert [c.token_ids for c in part.completions] == [c.token_ids for c in expected]
                assert part.prompt_token_ids == group.prompt_token_ids
        mixed = engine.generate(SAMPLES[:1] * 2, replace(params, n=1), keys=[replace(KEYS[0], first=f) for f in (3, 1)])
        assert [g.completions[0].token_ids for g in mixed] == [whole[0].completions[i].token_ids for i in (3, 1)]


def test_a_part_of_a_refused_group_is_refused(engine: RolloutEngine) -> None:
    damaged = Sample("damaged", "Which side?", OPTIONS, "A", "Left", (b"no picture",))
    (group,) = engine.generate([damaged], replace(SAMPLING, n=2), keys=[RolloutKey(7, 3, "damaged", first=4)])
    assert [(c.text, c.finish_reason, c.error != "") for c in group.completions] == [("", "error", True)] * 2


def test_identity_is_that_of_the_weights(engine: RolloutEngine, policy: Policy) -> None:
    """The same for the same completions, another one for others; goes through JSON."""
    engine.load_weights(hub_weights(policy), version=3)
    before = engine.identity()
    assert before["engine"] == type(engine).__name__
    assert json.loads(json.dumps(before)) == before
    engine.generate(SAMPLES, SAMPLING, keys=KEYS)
    assert engine.identity() == before
    if samples_weights(engine):
        with changed(engine, policy, "visual"):
            assert engine.identity() != before
    engine.load_weights(hub_weights(policy), version=4)
    assert engine.identity() == before


def test_identity_changes_with_the_model(engine: RolloutEngine, encoder: PromptEncoder, tmp_path: Path) -> None:
    """Of an engine that was only started; a copy of the model is the same model, wherever it lies."""
    if not isinstance(engine, TransformersEngine):
        pytest.skip(
            "a scripted engine has no weights, and vLLM is started thrice in test_vllm_calls, where it is cheap"
        )
    identities = []
    with torch.no_grad():
        for number, factor in enumerate((1.0, 1.0, 1.2)):
            folder = shutil.copytree(encoder.model, tmp_path / str(number))
            copy = Policy(load_backbone(Backbone(str(folder))))
            copy.base.lm_head.weight.mul_(factor)
            copy.base.save_pretrained(folder)
            started = TransformersEngine()
            started.start(encoder, copy)
            identities.append(started.identity())
    assert identities[0] == identities[1] != identities[2]


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
        assert len(one.completions) == 2


@pytest.mark.parametrize("temperature", [0.9, 0.0])
def test_logprobs_are_those_of_the_trainer(
    temperature: float, engine: RolloutEngine, encoder: PromptEncoder, policy: Policy
) -> None:
    """What the engine reports is the packed forward at the same temperature; for greedy, at temperature 1."""
    if not samples_weights(engine):
        pytest.skip("a scripted engine has no distribution")
    params = SamplingParams(n=3, temperature=temperature, max_tokens=12)
    for samples, keys in ((SAMPLES, KEYS), (LONG, LONG_KEYS)):
        groups = engine.generate(samples, params, keys=keys)
        assert_trainer_agrees(encoder, policy, groups, temperature or 1.0)


@pytest.mark.parametrize("truncation", [{"top_k": 3}, {"top_p": 0.5}, {"top_k": 20, "top_p": 0.7}])
def test_logprobs_are_of_what_truncation_leaves(
    truncation: dict, engine: RolloutEngine, encoder: PromptEncoder, policy: Policy
) -> None:
    if not samples_weights(engine):
        pytest.skip("a scripted engine has no distribution")
    params = SamplingParams(n=3, temperature=0.8, max_tokens=6, **truncation)
    for group in engine.generate(SAMPLES, params, keys=KEYS):
        ours = torch.tensor([x for c in group.completions for x in c.sampler_logprobs])
        logits, sampled = trainer_logits(encoder, policy, group)
        expected = processed_logprobs(logits, params).gather(-1, sampled)[:, 0]
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
        engine.load_weights(hub_weights(policy), version=1)
        for params in (SAMPLING, GREEDY):
            sampled = {
                token
                for seed in range(4)
                for group in engine.generate(SAMPLES, params, keys=[RolloutKey(seed, 0, s.uid) for s in SAMPLES])
                for completion in group.completions
                for token in completion.token_ids
            }
            assert not sampled & set(forbidden)
    finally:
        with torch.no_grad():
            head.copy_(before)
        engine.load_weights(hub_weights(policy), version=2)


@pytest.mark.parametrize("part", ["visual", "language_model"])
def test_new_weights_change_the_output(part: str, engine: RolloutEngine, policy: Policy) -> None:
    if not samples_weights(engine):
        pytest.skip("a scripted engine has no weights")
    before = engine.generate(SAMPLES, GREEDY, keys=KEYS)
    with changed(engine, policy, part):
        after = engine.generate(SAMPLES, GREEDY, keys=KEYS)
        assert before[1].completions[0].token_ids != after[1].completions[0].token_ids  # a question with a picture
        assert {c.version for group in after for c in group.completions} == {5}
    again = engine.generate(SAMPLES, GREEDY, keys=KEYS)
    assert [g.completions[0].token_ids for g in again] == [g.completions[0].token_ids for g in before]


@pytest.mark.parametrize("part", ["visual", "language_model"])
def test_nothing_computed_from_old_weights_is_used_again(
    part: str, engine: RolloutEngine, encoder: PromptEncoder, policy: Policy
) -> None:
    """Caches of prefixes and of pictures: the same long prompts and the same pictures, before and after an update."""
    if not samples_weights(engine):
        pytest.skip("a scripted engine has no weights")
    assert all(len(encoder.encode(sample).token_ids) > 2 * 128 for sample in LONG)
    for _ in range(2):  # the second time from the caches
        assert_trainer_agrees(encoder, policy, engine.generate(LONG, GREEDY, keys=LONG_KEYS))
    with changed(engine, policy, part):
        assert_trainer_agrees(encoder, policy, engine.generate(LONG, GREEDY, keys=LONG_KEYS))
    assert_trainer_agrees(encoder, policy, engine.generate(LONG, GREEDY, keys=LONG_KEYS))


def test_an_updated_engine_equals_a_fresh_one(
    engine: RolloutEngine, encoder: PromptEncoder, policy: Policy, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not samples_weights(engine):
        pytest.skip("a scripted engine has no weights")
    questions, keys = [*SAMPLES, *LONG], [*KEYS, *LONG_KEYS]
    engine.generate(questions, GREEDY, keys=keys)  # fills the caches
    with changed(engine, policy, factor=1.2):
        updated = [engine.generate(questions, params, keys=keys) for params in (GREEDY, SAMPLING)]
        folder = shutil.copytree(encoder.model, tmp_path / "new")
        policy.base.save_pretrained(folder)
        engine.close()
        fresh = build(request.node.callspec.params["engine"], folder)
        fresh.start(encoder, Policy(load_backbone(Backbone(str(folder)))))
        started = [fresh.generate(questions, params, keys=keys) for params in (GREEDY, SAMPLING)]
        fresh.close()
        engine.start(encoder, policy)
    for one, two in zip([g for run in updated for g in run], [g for run in started for g in run], strict=True):
        for ours, theirs in zip(one.completions, two.completions, strict=True):
            assert ours.token_ids == theirs.token_ids
            assert ours.sampler_logprobs == pytest.approx(theirs.sampler_logprobs, abs=1e-5)


def test_every_missing_tensor_is_named(engine: RolloutEngine, policy: Policy) -> None:
    if not copies_weights(engine):
        pytest.skip("the engine has no weights of its own")
    names = [name for name, _ in hub_weights(policy)]
    for missing in names:
        with pytest.raises(EngineError, match=f"1 missing: {re.escape(missing)}$"):
            engine.load_weights(((n, w) for n, w in hub_weights(policy) if n != missing), version=7)
    with pytest.raises(EngineError, match="call load_weights"):  # half new, half old
        engine.generate(SAMPLES[:1], SAMPLING, keys=KEYS[:1])
    engine.load_weights(hub_weights(policy), version=8)
    assert engine.generate(SAMPLES[:1], SAMPLING, keys=KEYS[:1])[0].completions[0].version == 8


def broken(policy: Policy, fault: str) -> Iterator[tuple[str, torch.Tensor]]:
    for number, (name, weight) in enumerate(hub_weights(policy)):
        yield (f"{name}_", weight) if fault == "unknown" and number == 20 else (name, weight)
        if fault == "twice" and number == 20:
            yield name, weight
        if fault == "raises" and number == 20:
            raise RuntimeError("a rank was lost")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("unknown", r"1 missing: (\S+); 1 unknown: \1_$"),
        ("twice", r": 1 sent more than once: \S+$"),
        ("raises", r"RuntimeError: a rank was lost; \d+ missing: "),
    ],
)
def test_a_faulty_stream_is_refused(
    fault: str, message: str, engine: RolloutEngine, encoder: PromptEncoder, policy: Policy
) -> None:
    if not copies_weights(engine):
        pytest.skip("the engine has no weights of its own")
    before = engine.generate(SAMPLES, SAMPLING, keys=KEYS)
    with pytest.raises(EngineError, match=message):
        engine.load_weights(broken(policy, fault), version=7)
    with pytest.raises(EngineError, match="call load_weights"):
        engine.generate(SAMPLES[:1], SAMPLING, keys=KEYS[:1])
    engine.load_weights(hub_weights(policy), version=8)
    after = engine.generate(SAMPLES, SAMPLING, keys=KEYS)
    assert [c.token_ids for g in after for c in g.completions] == [c.token_ids for g in before for c in g.completions]


def test_the_weights_are_a_copy(engine: RolloutEngine, encoder: PromptEncoder, policy: Policy) -> None:
    """What the trainer does to the policy between two syncs must not reach the engine."""
    if not copies_weights(engine):
        pytest.skip("the engine has no weights of its own")
    engine.load_weights(hub_weights(policy), version=1)
    before = engine.generate(SAMPLES, GREEDY, keys=KEYS)
    kept = {name: weight.clone() for name, weight in hub_weights(policy)}
    try:
        with torch.no_grad():
            for parameter in policy.base.parameters():
                parameter.mul_(1.5)
        after = engine.generate(SAMPLES, GREEDY, keys=KEYS)
    finally:
        policy.base.load_state_dict(kept)
    assert [g.completions for g in after] == [g.completions for g in before]


def test_a_prompt_that_cannot_be_built_is_refused(engine: RolloutEngine, encoder: PromptEncoder) -> None:
    damaged = Sample("damaged", "Which side?", OPTIONS, "A", "Left", (b"no picture",))
    control = Sample("control", "Which <|im_end|> side?", OPTIONS, "A", "Left")
    samples = [SAMPLES[0], damaged, SAMPLES[1], control]
    before = dict(engine.refused)
    groups = engine.generate(samples, SAMPLING, keys=[RolloutKey(7, 3, s.uid) for s in samples])
    assert [group.sample.uid for group in groups] == [sample.uid for sample in samples]
    for group in (groups[1], groups[3]):
        assert group.prompt_token_ids == ()
        assert [(c.token_ids, c.text, c.finish_reason) for c in group.completions] == [((), "", "error")] * SAMPLING.n
    assert engine.refused["corrupt_image"] == before.get("corrupt_image", 0) + 1
    assert engine.refused["bad_prompt"] == before.get("bad_prompt", 0) + 1
    alone = engine.generate(SAMPLES[:2], SAMPLING, keys=KEYS[:2])
    assert [c.token_ids for g in (groups[0], groups[2]) for c in g.completions] == [
        c.token_ids for g in alone for c in g.completions
    ]
    assert all(
        group.completions[0].finish_reason == "error" for group in engine.generate([damaged], GREEDY, keys=KEYS[:1])
    )


def test_sleep_and_wake_are_idempotent(engine: RolloutEngine) -> None:
    before = engine.generate(SAMPLES[:1], SAMPLING, keys=KEYS[:1])
    for step in (engine.sleep, engine.sleep, engine.wake, engine.wake):
        step()
    after = engine.generate(SAMPLES[:1], SAMPLING, keys=KEYS[:1])
    assert [c.token_ids for c in after[0].completions] == [c.token_ids for c in before[0].completions]


def test_an_empty_call_gives_nothing(engine: RolloutEngine) -> None:
    assert engine.generate([], SAMPLING, keys=[]) == []


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
