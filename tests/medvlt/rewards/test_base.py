# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from medvlt.rewards.base import AccuracyReward, FormatReward, Reward
from medvlt.rewards.grade import grade
from medvlt.types import Completion, Sample

SAMPLE = Sample("1", "Which drug?", {"A": "Aspirin", "B": "Heparin"}, "B", "Heparin")
OPEN = Sample("2", "Which organ?", {}, None, "Lung")


def reward_of(reward: Reward, text: str, sample: Sample = SAMPLE, *, truncated: bool = False) -> float | None:
    completion = Completion((1, 2), text, (-0.1, -0.2), "length" if truncated else "stop")
    return reward(sample, completion, grade(text, sample, truncated=truncated))


@pytest.mark.parametrize("reward", [AccuracyReward(), FormatReward()])
def test_is_a_reward(reward: Reward) -> None:
    assert isinstance(reward, Reward)


def test_accuracy_reward() -> None:
    reward = AccuracyReward(right=2.0, wrong=-1.0, no_verdict=-0.5)
    assert reward_of(reward, "B") == 2.0
    assert reward_of(reward, "A") == -1.0
    for text in ("", "no idea", "A or B", "<think>B"):
        assert reward_of(reward, text) == -0.5
    assert reward_of(reward, "B", truncated=True) == -0.5
    assert reward_of(reward, "Lung", OPEN) is None
    assert reward_of(AccuracyReward(no_verdict=None), "A or B") is None


def test_default_accuracy_is_zero_or_one() -> None:
    assert [reward_of(AccuracyReward(), text) for text in ("B", "A", "")] == [1.0, 0.0, 0.0]


def test_format_reward_ignores_the_answer() -> None:
    reward = FormatReward(weight=0.25)
    assert reward_of(reward, "<think>r</think>\n<answer>B</answer>") == 0.25
    assert reward_of(reward, "<think>r</think>\n<answer>A</answer>") == 0.25
    for text in ("", "B", "<answer>B</answer>", "<think>r</think><answer>B"):
        assert reward_of(reward, text) == 0.0
