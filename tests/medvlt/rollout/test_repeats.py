# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from medvlt.rollout.repeats import engine_calls, joined
from medvlt.types import Completion, RolloutGroup, Sample, SamplingParams


def test_samples_come_from_one_call() -> None:
    sampling = SamplingParams(n=5, temperature=0.5)
    assert engine_calls(sampling) == [(sampling, 0)]


def test_greedy_completions_are_decoded_one_by_one() -> None:
    calls = engine_calls(SamplingParams(n=3, temperature=0, max_tokens=7))
    assert calls == [(SamplingParams(n=1, temperature=0, max_tokens=7), number) for number in range(3)]


def test_calls_become_whole_groups() -> None:
    samples = [Sample(uid, "Which?", {}, None, "") for uid in "ab"]
    calls = [
        [
            RolloutGroup(sample, (1,) if call else (), (Completion((), f"{sample.uid}{call}", (), "stop"),))
            for sample in samples
        ]
        for call in range(3)
    ]
    whole = joined(calls)
    assert [group.sample for group in whole] == samples
    assert [[c.text for c in group.completions] for group in whole] == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]
    assert [group.prompt_token_ids for group in whole] == [(1,), (1,)]  # the first call failed and knows no prompt
    assert joined([[], []]) == []
