# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvlt.data.encoder import PromptEncoder
from medvlt.errors import ConfigurationError, EngineError
from medvlt.models.loading import Backbone, load_backbone
from medvlt.models.policy import Policy
from medvlt.rollout.parity import SCANNED, Comparison, ParityGate, check, choose_samples, compare
from medvlt.rollout.transformers import TransformersEngine
from medvlt.types import Completion, RolloutGroup, RolloutKey, Sample, SamplingParams

OPTIONS = {"A": "Left", "B": "Right"}
SAMPLING = SamplingParams(n=2, temperature=0.7, max_tokens=8)
TOLERANCE = 1e-4


def picture(seed: int, width: int = 84, height: int = 56) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


SAMPLES = [
    Sample("text", "A question about a patient who is old.", OPTIONS, "A", "Left"),
    Sample("picture", "Which side?", OPTIONS, "B", "Right", (picture(1),)),
    Sample("pictures", "Which of the two?", OPTIONS, "A", "Left", (picture(2, 56, 56), picture(3))),
]


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> PromptEncoder:
    return PromptEncoder(str(tiny_folder), template="plain")


@pytest.fixture(scope="module")
def policy(tiny_folder: Path) -> Policy:
    return Policy(load_backbone(Backbone(str(tiny_folder))))


@pytest.fixture(scope="module")
def groups(encoder: PromptEncoder, policy: Policy) -> list[RolloutGroup]:
    engine = TransformersEngine()
    engine.start(encoder, policy)
    return engine.generate(SAMPLES, SAMPLING, keys=[RolloutKey(0, -2, sample.uid) for sample in SAMPLES])


def compared(
    groups: Sequence[RolloutGroup], policy: Policy, encoder: PromptEncoder, temperature: float = SAMPLING.temperature
) -> list[Comparison]:
    return compare(groups, policy, encoder, temperature=temperature)


def shifted(group: RolloutGroup, *differences: float) -> RolloutGroup:
    """The first completion with these numbers added to the engine's first log-probabilities."""
    first = group.completions[0]
    added = [*differences, *[0.0] * len(first.token_ids)]
    changed = tuple(x + y for x, y in zip(first.sampler_logprobs, added, strict=False))
    return replace(group, completions=(replace(first, sampler_logprobs=changed), *group.completions[1:]))


def test_engine_and_trainer_agree(groups: list[RolloutGroup], policy: Policy, encoder: PromptEncoder) -> None:
    found = compared(groups, policy, encoder)
    assert [(c.uid, c.pictures) for c in found] == [(s.uid, len(s.images)) for s in SAMPLES for _ in range(SAMPLING.n)]
    assert all(comparison.agrees(TOLERANCE) for comparison in found), list(map(str, found))
    assert "0 pictures" in str(found[0])


def test_another_temperature_is_seen(groups: list[RolloutGroup], policy: Policy, encoder: PromptEncoder) -> None:
    assert not any(c.agrees(0.05) for c in compared(groups, policy, encoder, temperature=1.0))


def test_another_picture_is_seen(groups: list[RolloutGroup], policy: Policy, encoder: PromptEncoder) -> None:
    """As many tokens, so nothing but the log-probabilities can tell."""
    other = replace(groups[1], sample=replace(SAMPLES[1], images=(picture(9),)))
    for comparison in compared([other], policy, encoder):
        assert comparison.same_prompt
        assert not comparison.agrees(0.05)


@pytest.mark.parametrize("change", ["one token", "one missing"])
def test_another_prompt_is_seen(
    change: str, groups: list[RolloutGroup], policy: Policy, encoder: PromptEncoder
) -> None:
    """Even where the log-probabilities happen to agree."""
    ids = groups[0].prompt_token_ids
    other = replace(groups[0], prompt_token_ids=(ids[0] + 1, *ids[1:]) if change == "one token" else ids[:-1])
    for comparison in compared([other], policy, encoder):
        assert comparison.mean_difference < TOLERANCE
        assert not comparison.agrees(TOLERANCE)
        assert f"{len(ids)} prompt tokens here, {len(other.prompt_token_ids)} in the engine" in str(comparison)


def test_differences_are_those_of_one_completion(
    groups: list[RolloutGroup], policy: Policy, encoder: PromptEncoder
) -> None:
    first, second, *_ = compared([shifted(groups[0], 0.5, -1.5)], policy, encoder)
    length = len(groups[0].completions[0].token_ids)
    assert length > 2
    assert first.mean_difference == pytest.approx(2.0 / length, abs=1e-4)
    assert first.max_difference == pytest.approx(1.5, abs=1e-4)
    assert first.agrees(2.0 / length + 1e-3)
    assert not first.agrees(2.0 / length - 1e-3)
    assert second.agrees(TOLERANCE)


@pytest.mark.parametrize(
    ("refused", "named"), [((0,), "all 1 prompts without pictures"), ((1, 2), "all 2 prompts with pictures"),
                           ((0, 1, 2), "all 3 prompts of the comparison")]
)  # fmt: skip
def test_a_modality_that_was_never_compared(
    refused: Sequence[int], named: str, groups: list[RolloutGroup], policy: Policy, encoder: PromptEncoder
) -> None:
    nothing = Completion((), "", (), "error", error="too long")
    asked = [replace(group, completions=(nothing,)) if i in refused else group for i, group in enumerate(groups)]
    with pytest.raises(EngineError, match=f"the engine refused {named}"):
        check(asked, policy, encoder, temperature=SAMPLING.temperature, tolerance=TOLERANCE)
    check([*groups[:2], asked[2]], policy, encoder, temperature=SAMPLING.temperature, tolerance=TOLERANCE)


def test_nan_never_agrees(groups: list[RolloutGroup], policy: Policy, encoder: PromptEncoder) -> None:
    first, second, *_ = compared([shifted(groups[0], float("nan"))], policy, encoder)
    assert not first.agrees(1e9)
    assert second.agrees(TOLERANCE)


def words(uid: str, count: int, pictures: int = 0) -> Sample:
    return Sample(uid, "word " * count, OPTIONS, "A", "Left", tuple(picture(i) for i in range(pictures)))


def test_chosen_prompts_are_spread_over_lengths_and_modalities(encoder: PromptEncoder) -> None:
    texts = [words(f"t{count}", count) for count in (30, 10, 70, 50, 20)]
    with_pictures = [words(f"p{count}", count, 1) for count in (5, 90, 8)]
    mixed = [sample for pair in zip(texts[:3], with_pictures, strict=True) for sample in pair] + texts[3:]

    def chosen(samples: Sequence[Sample], prompts: int) -> list[str]:
        return [sample.uid for sample in choose_samples(samples, encoder, prompts=prompts)]

    assert chosen(mixed, 2) == ["t10", "t70", "p5", "p90"]
    assert chosen(mixed, 3) == ["t10", "t30", "t70", "p5", "p8", "p90"]
    assert chosen(mixed, 1) == ["t10", "p5"]
    assert chosen(mixed, 9) == ["t10", "t20", "t30", "t50", "t70", "p5", "p8", "p90"]  # each once
    assert chosen(texts, 2) == ["t10", "t70"]
    assert chosen(with_pictures[:1], 2) == ["p5"]


def test_few_prompts_from_all_over_the_data_are_looked_at(encoder: PromptEncoder) -> None:
    """Questions are made, and pictures opened, when they are asked for; a large data set must not be walked through."""

    asked: list[int] = []

    class Far(Sequence[Sample]):
        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, number: int) -> Sample:  # type: ignore[override]
            asked.append(number)
            return words(f"t{number}", number % 7)

    first, last = choose_samples(Far(), encoder, prompts=2)
    assert encoder.prompt_length(first) < encoder.prompt_length(last)
    assert len(asked) == SCANNED
    assert max(asked) > 990_000  # pictures may come after the texts


@pytest.mark.parametrize("settings", [{"prompts": 0}, {"max_tokens": 0}, {"tolerance": 0.0}])
def test_a_gate_that_lets_everything_or_nothing_through_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"parity.{next(iter(settings))} must be"):
        ParityGate(**settings)  # type: ignore[arg-type]
