# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from medvlt.rollout.sampling import processed_logprobs, sample_tokens, uniforms
from medvlt.types import RolloutKey, SamplingParams


def brute_force(logits: list[float], params: SamplingParams) -> list[float]:
    """Probabilities by the definition, token by token."""
    weights = [math.exp(x / params.temperature) for x in logits]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    kept = order[: params.top_k or len(order)]
    total = sum(weights[i] for i in kept)
    nucleus, mass = [], 0.0
    for i in kept:
        if mass >= params.top_p:
            break
        nucleus.append(i)
        mass += weights[i] / total
    total = sum(weights[i] for i in nucleus)
    return [weights[i] / total if i in nucleus else 0.0 for i in range(len(weights))]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=1.3, top_k=3),
        SamplingParams(temperature=0.9, top_p=0.7),
        SamplingParams(temperature=0.8, top_k=4, top_p=0.5),
    ],
)
def test_processed_distribution(params: SamplingParams) -> None:
    logits = [1.0, -2.0, 0.3, 2.5, 0.0, 1.7]
    ours = processed_logprobs(torch.tensor([logits]), params).exp()[0]
    torch.testing.assert_close(ours, torch.tensor(brute_force(logits, params)), rtol=1e-5, atol=1e-6)


def test_greedy_reports_temperature_one() -> None:
    logits = torch.tensor([[0.1, 2.0, 1.0]])
    greedy = processed_logprobs(logits, SamplingParams(temperature=0))
    torch.testing.assert_close(greedy, logits.log_softmax(-1))
    assert sample_tokens(greedy, torch.zeros(1), greedy=True).tolist() == [1]


def test_frequencies_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    draws = uniforms([7], 20_000)[0]
    tokens = sample_tokens(probabilities.log().expand(20_000, -1), draws, greedy=False)
    frequencies = torch.bincount(tokens, minlength=4) / 20_000
    assert frequencies[1] == 0
    assert (frequencies - probabilities).abs().max() < 4 * math.sqrt(0.25 / 20_000)


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (1 - 1e-16, 2), (0.49, 1), (0.51, 2)])
def test_edges_never_draw_the_impossible(uniform: float, token: int) -> None:
    logprobs = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).log()
    assert sample_tokens(logprobs, torch.tensor([uniform], dtype=torch.float64), greedy=False).item() == token


def test_uniforms_belong_to_their_seed() -> None:
    together = uniforms([3, 4, 3], 5)
    assert together[0].tolist() == together[2].tolist() == uniforms([3], 5)[0].tolist()
    assert together[0].tolist() != together[1].tolist()
    assert uniforms([3], 9)[0, :5].tolist() == together[0].tolist()  # a longer limit does not change the beginning


def test_seeds_differ_in_every_part_of_the_key() -> None:
    key = RolloutKey(1, 2, "a")
    others = [RolloutKey(9, 2, "a"), RolloutKey(1, 3, "a"), RolloutKey(1, 2, "b")]
    seeds = [key.sample_seed(0), key.sample_seed(1), *(other.sample_seed(0) for other in others)]
    assert len(set(seeds)) == len(seeds)
    assert key.sample_seed(0) == RolloutKey(1, 2, "a").sample_seed(0)
    assert all(0 <= seed < 2**63 for seed in seeds)
