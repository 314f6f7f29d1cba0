# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medvlt.errors import ConfigurationError, RewardError
from medvlt.rewards.base import AccuracyReward, FormatReward, FunctionReward, Reward
from medvlt.rewards.combine import Rewards
from medvlt.types import Completion, Reason, Sample, Verdict

SAMPLE = Sample("pmc:17", "Which drug?", {"A": "Aspirin", "B": "Heparin"}, "B", "Heparin", dataset_name="pmc_vqa")
COMPLETION = Completion((1, 2), "<think>r</think><answer>B</answer>", (0.0, 0.0), "stop")
RIGHT = Verdict(correct=True, label="B", format_ok=True, reason=Reason.LABEL, grader_version="1")
AMBIGUOUS = Verdict(correct=False, label=None, format_ok=True, reason=Reason.AMBIGUOUS, grader_version="1")


def returns(value: Any) -> Reward:
    return FunctionReward(lambda sample, completion, verdict: value)


def read_score(text: str) -> float:
    return float(text.split("score=")[1])


def reads_score(sample: Sample, completion: Completion, verdict: Verdict) -> float:
    return read_score(completion.text)


def completed(text: str) -> Completion:
    return Completion((1,), text, (0.0,), "stop")


def test_weighted_sum_and_parts() -> None:
    rewards = Rewards(
        {"accuracy": AccuracyReward(no_verdict=None), "format": FormatReward(), "style": returns(-3)},
        {"format": 0.25, "style": 0.5},
    )
    scored = rewards(SAMPLE, COMPLETION, RIGHT)
    assert (scored.total, scored.parts) == (1 + 0.25 - 1.5, {"accuracy": 1.0, "format": 1.0, "style": -3.0})
    scored = rewards(SAMPLE, COMPLETION, AMBIGUOUS)
    assert (scored.total, scored.parts) == (0.25 - 1.5, {"accuracy": None, "format": 1.0, "style": -3.0})


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-9, 9))
WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.floats(-2, 2))


@given(st.dictionaries(st.sampled_from("abcd"), VALUES, min_size=1), WEIGHTS)
def test_total_of_any_values(values: dict[str, float | None], weights: dict[str, float]) -> None:
    weights = {name: weight for name, weight in weights.items() if name in values}
    scored = Rewards({name: returns(value) for name, value in values.items()}, weights)(SAMPLE, COMPLETION, RIGHT)
    assert scored.parts == values
    expected, counted = 0.0, 0
    for name, value in values.items():
        if value is not None:
            expected, counted = expected + weights.get(name, 1.0) * value, counted + 1
    assert scored.total == (pytest.approx(expected, abs=1e-12) if counted else None)


def test_a_reward_of_weight_zero_is_reported_and_not_paid() -> None:
    scored = Rewards({"a": returns(2.0), "b": returns(5.0)}, {"b": 0.0})(SAMPLE, COMPLETION, RIGHT)
    assert (scored.total, scored.parts["b"]) == (2.0, 5.0)


@pytest.mark.parametrize("value", [True, np.True_, 1, np.int64(1), np.float32(1)])
def test_any_number_becomes_a_float(value: object) -> None:
    scored = Rewards({"a": returns(value)})(SAMPLE, COMPLETION, RIGHT)
    assert (scored.parts["a"], type(scored.parts["a"]), type(scored.total)) == (1.0, float, float)


BAD_VALUES = [math.nan, math.inf, -math.inf, 10**400, np.float32("nan"), "1.0", [1.0], 1j, torch.tensor(1.0)]


@pytest.mark.parametrize("value", BAD_VALUES, ids=lambda value: repr(value)[:20])
def test_what_is_no_reward(value: object) -> None:
    with pytest.raises(RewardError) as caught:
        Rewards({"a": FormatReward(), "b": returns(value)})(SAMPLE, COMPLETION, RIGHT)
    message = str(caught.value)
    assert message.startswith(f"reward 'b' returned {repr(value)[:200]} ")
    assert all(part in message for part in (str(type(value)), "finite number", "'pmc:17' of 'pmc_vqa'", "<answer>B"))
    forgiving = Rewards({"a": FormatReward(), "b": returns(value)}, on_error="no_verdict")
    scored = forgiving(SAMPLE, COMPLETION, RIGHT)
    assert (scored.total, scored.parts, forgiving.errors) == (1.0, {"a": 1.0, "b": None}, {"a": 0, "b": 1})


def test_a_reward_that_raises_stops_and_tells_where() -> None:
    rewards = Rewards({"format": FormatReward(), "score": FunctionReward(reads_score)})
    with pytest.raises(RewardError) as caught:
        rewards(SAMPLE, completed("y" * 300), RIGHT)
    message = str(caught.value)
    for part in ("reward 'score' raised IndexError: list index out of range", "'pmc:17' of 'pmc_vqa'"):
        assert part in message
    assert f" > test_combine.py:{reads_score.__code__.co_firstlineno + 1} in reads_score > test_combine.py:" in message
    assert f"'{'y' * 200}' ..." in message
    assert "on_reward_error to no_verdict" in message
    assert isinstance(caught.value.__cause__, IndexError)
    assert rewards.errors == {"format": 0, "score": 1}


def test_a_reward_that_raises_may_count_as_no_verdict(caplog: pytest.LogCaptureFixture) -> None:
    rewards = Rewards({"format": FormatReward(), "score": FunctionReward(reads_score)}, on_error="no_verdict")
    with caplog.at_level(logging.WARNING, logger="medvlt.rewards.combine"):
        scored = [rewards(SAMPLE, completed(text), RIGHT) for text in ("score=2", "no", "score=", "score=3")]
    assert [s.parts["score"] for s in scored] == [2.0, None, None, 3.0]
    assert [s.total for s in scored] == [3.0, 1.0, 1.0, 4.0]
    assert rewards.errors == {"format": 0, "score": 2}
    (record,) = caplog.records  # the first of each reward
    assert "reward 'score' raised IndexError" in record.getMessage()


def test_all_rewards_without_a_verdict() -> None:
    rewards = Rewards({"none": returns(None), "score": FunctionReward(reads_score)}, on_error="no_verdict")
    scored = rewards(SAMPLE, COMPLETION, RIGHT)
    assert (scored.total, scored.parts) == (None, {"none": None, "score": None})
    assert rewards.errors == {"none": 0, "score": 1}  # None is an answer, not a failure


def test_an_interrupt_is_no_failure_of_a_reward() -> None:
    def interrupted(sample: Sample, completion: Completion, verdict: Verdict) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Rewards({"a": FunctionReward(interrupted)}, on_error="no_verdict")(SAMPLE, COMPLETION, RIGHT)


@pytest.mark.parametrize(
    ("rewards", "weights", "on_error", "told"),
    [
        ({}, None, "raise", "no reward"),
        ({"a": FormatReward()}, {"b": 1.0, "c": 1.0, "a": 1.0}, "raise", "names b, c, but the rewards are a"),
        ({"a": None}, None, "raise", "'a' must be an object"),
        ({"a": FormatReward}, None, "raise", "'a' must be an object"),
        ({"a": FormatReward()}, {"a": math.nan}, "raise", "weight of reward 'a'"),
        ({"a": FormatReward()}, {"a": -math.inf}, "raise", "weight of reward 'a'"),
        ({"a": FormatReward()}, None, "ignore", "raise or no_verdict, got 'ignore'"),
    ],
)
def test_settings_that_make_no_sense(
    rewards: Mapping[str, Any], weights: Mapping[str, float] | None, on_error: Any, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Rewards(rewards, weights, on_error)
