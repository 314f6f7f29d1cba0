# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import jsonargparse
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvlt.errors import ConfigurationError
from medvlt.rewards.base import (
    AccuracyReward,
    FormatGate,
    FormatReward,
    FunctionReward,
    LengthPenalty,
    Reward,
    SoftOverlong,
)
from medvlt.rewards.grade import GradePolicy, grade
from medvlt.types import Completion, FinishReason, Reason, Sample, Verdict

SAMPLE = Sample("1", "Which drug?", {"A": "Aspirin", "B": "Heparin"}, "B", "Heparin")
OPEN = Sample("2", "Which organ?", {}, None, "Lung")
RIGHT = "<think>r</think>\n<answer>B</answer>"
WRONG = "<think>r</think>\n<answer>A</answer>"
VERDICT = Verdict(correct=True, label="B", format_ok=True, reason=Reason.LABEL, grader_version="1")


def reward_of(
    reward: Reward,
    text: str,
    sample: Sample = SAMPLE,
    *,
    finish_reason: FinishReason = "stop",
    policy: GradePolicy = "robust",
) -> float | None:
    completion = Completion((1, 2), text, (-0.1, -0.2), finish_reason)
    return reward(sample, completion, grade(text, sample, policy=policy, truncated=finish_reason == "length"))


def of_length(tokens: int) -> Completion:
    return Completion((1,) * tokens, "", (0.0,) * tokens, "stop")


def test_accuracy_reward() -> None:
    reward = AccuracyReward(right=2.0, wrong=-1.0, no_verdict=-0.5)
    assert reward_of(reward, "B") == 2.0
    assert reward_of(reward, "A") == -1.0
    for text in ("", "no idea", "A or B", "<think>B"):
        assert reward_of(reward, text) == -0.5
    assert reward_of(reward, "Lung", OPEN) is None
    assert reward_of(AccuracyReward(no_verdict=None), "A or B") is None


def test_default_accuracy_is_zero_or_one() -> None:
    assert [reward_of(AccuracyReward(), text) for text in (RIGHT, WRONG, "")] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("finish_reason", ["length", "error"])
@pytest.mark.parametrize("policy", get_args(GradePolicy))
def test_nothing_is_paid_for_an_answer_without_an_end(policy: GradePolicy, finish_reason: FinishReason) -> None:
    reward = AccuracyReward(right=2.0, wrong=-1.0, no_verdict=-0.5)
    for text in (RIGHT, WRONG, ""):
        assert reward_of(reward, text, finish_reason=finish_reason, policy=policy) == -0.5
    assert reward_of(FormatGate(reward), RIGHT, finish_reason=finish_reason, policy=policy) == -0.5
    assert reward_of(reward, RIGHT, policy=policy) == 2.0  # it is the end that matters here
    assert reward_of(reward, WRONG, policy=policy) == -1.0


def test_an_open_question_is_left_out_however_it_ends() -> None:
    assert reward_of(AccuracyReward(), "Lung", OPEN, finish_reason="length") is None


def test_format_reward_ignores_the_answer() -> None:
    reward = FormatReward(weight=0.25)
    assert reward_of(reward, RIGHT) == 0.25
    assert reward_of(reward, WRONG) == 0.25
    for text in ("", "B", "<answer>B</answer>", "<think>r</think><answer>B"):
        assert reward_of(reward, text) == 0.0


def test_gated_accuracy_is_the_reference_reward() -> None:
    """Where both graders read the same answer, a gate before the robust one pays what the reference pays."""
    gate = FormatGate(AccuracyReward())
    for text, expected in ((RIGHT, 1.0), (WRONG, 0.0), ("B", 0.0), ("<answer>B</answer>", 0.0), ("", 0.0)):
        assert reward_of(gate, text) == expected
        assert reward_of(AccuracyReward(), text, policy="reference_reward") == expected


def test_a_reward_never_sees_what_its_gate_keeps_out() -> None:
    seen = []

    def record(sample: Sample, completion: Completion, verdict: Verdict) -> None:
        seen.append(completion.text)

    gate = FormatGate(FunctionReward(record), otherwise=-0.75)
    assert reward_of(gate, "B") == -0.75
    assert seen == []
    assert reward_of(gate, RIGHT) is None
    assert seen == [RIGHT]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0.0), (16384, 0.0), (16385, -1 / 4096), (18432, -0.5), (20479, -4095 / 4096), (20480, -1.0), (40000, -1.0)],
)
def test_soft_overlong_with_the_numbers_of_the_paper(tokens: int, expected: float) -> None:
    assert SoftOverlong(20480, 4096)(SAMPLE, of_length(tokens), VERDICT) == expected


@given(st.data(), st.integers(1, 200))
def test_soft_overlong_is_equation_13(data: st.DataObject, max_tokens: int) -> None:
    cache_tokens = data.draw(st.integers(1, max_tokens))
    tokens = data.draw(st.integers(0, 2 * max_tokens))
    if tokens <= max_tokens - cache_tokens:
        expected = Fraction(0)
    elif tokens <= max_tokens:
        expected = Fraction((max_tokens - cache_tokens) - tokens, cache_tokens)
    else:
        expected = Fraction(-1)
    assert SoftOverlong(max_tokens, cache_tokens)(SAMPLE, of_length(tokens), VERDICT) == float(expected)


@given(st.integers(0, 50), st.floats(0, 1), st.integers(0, 100))
def test_length_penalty_counts_each_token_beyond_the_free_ones(free: int, cost: float, tokens: int) -> None:
    expected = -sum(cost for position in range(tokens) if position >= free)
    assert LengthPenalty(free, cost)(SAMPLE, of_length(tokens), VERDICT) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "build",
    [
        lambda: SoftOverlong(10, 0),
        lambda: SoftOverlong(10, 11),
        lambda: SoftOverlong(0, 0),
        lambda: LengthPenalty(-1, 0.1),
        lambda: LengthPenalty(0, -0.1),
        lambda: LengthPenalty(0, float("nan")),
        lambda: LengthPenalty(0, float("inf")),
    ],
)
def test_settings_that_make_no_sense(build: Callable[[], Reward]) -> None:
    with pytest.raises(ConfigurationError, match="tokens="):
        build()


def test_a_function_is_given_all_three() -> None:
    completion = of_length(3)
    assert FunctionReward(lambda *got: 0.5 if got == (SAMPLE, completion, VERDICT) else -9)(
        SAMPLE, completion, VERDICT
    ) == pytest.approx(0.5)


@pytest.mark.parametrize("function", [lambda sample, completion: 1.0, lambda a, b, c, *, d: 1.0, "no function"])
def test_a_function_with_other_arguments_is_refused_at_once(function: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"function\(sample, completion, verdict\)"):
        FunctionReward(function)


def test_a_function_that_hides_its_arguments_is_accepted() -> None:
    assert FunctionReward(max).function is max


USER_MODULE = """
from __future__ import annotations

from medvlt.rewards.base import Reward
from medvlt.types import Completion, Sample, Verdict


def brevity(sample, completion, verdict):
    return -len(completion.token_ids)


def typed(sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
    return 7.0


class Inheriting(Reward):
    def __init__(self, bonus: float = 1.0) -> None:
        self.bonus = bonus

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        return self.bonus


class Typed:
    def __init__(self, bonus: float = 1.0) -> None:
        self.bonus = bonus

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        return self.bonus


class Narrower(Reward):
    def __init__(self, bonus: float = 1.0) -> None:
        self.bonus = bonus

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float:
        return self.bonus
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of a user's own, importable during the test."""
    name = "a_module_of_a_users_own"
    (tmp_path / f"{name}.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def parser() -> jsonargparse.ArgumentParser:
    built = jsonargparse.ArgumentParser(exit_on_error=False)
    built.add_argument("--rewards", type=dict[str, Reward])
    return built


def from_yaml(text: str) -> dict[str, Reward]:
    """Builds the rewards from what the parser writes down for a text, as Lightning does with the config of a run."""
    saved = parser().dump(parser().parse_string(text), skip_none=False)
    rewards: dict[str, Reward] = parser().instantiate(parser().parse_string(saved)).rewards
    return rewards


def test_rewards_are_named_in_yaml() -> None:
    rewards = from_yaml("""
        rewards:
          accuracy:
            class_path: FormatGate
            init_args:
              reward: {class_path: AccuracyReward, init_args: {wrong: -1, no_verdict: null}}
              otherwise: -2
          format: {class_path: medvlt.rewards.base.FormatReward, init_args: {weight: 0.5}}
          overlong: {class_path: SoftOverlong, init_args: {max_tokens: 10, cache_tokens: 4}}
          length: {class_path: LengthPenalty, init_args: {free_tokens: 1, per_token: 1e-1}}
    """)
    assert list(rewards) == ["accuracy", "format", "overlong", "length"]
    assert [reward_of(rewards["accuracy"], text) for text in (RIGHT, WRONG, "B")] == [1.0, -1.0, -2.0]
    assert reward_of(rewards["accuracy"], RIGHT, finish_reason="length") is None
    assert reward_of(rewards["format"], WRONG) == 0.5
    assert rewards["overlong"](SAMPLE, of_length(8), VERDICT) == -0.5
    assert rewards["length"](SAMPLE, of_length(8), VERDICT) == pytest.approx(-0.7)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("{class_path: MODULE.Inheriting, init_args: {bonus: 4}}", 4.0),
        ("{class_path: MODULE.Typed, init_args: {bonus: 5}}", 5.0),
        ("MODULE.typed", 7.0),
        ("{class_path: FunctionReward, init_args: {function: MODULE.brevity}}", -3.0),
        (
            "{class_path: FunctionReward, init_args: {function: {class_path: MODULE.Narrower, init_args: {bonus: 6}}}}",
            6.0,
        ),
    ],
)
def test_a_users_own_reward_is_named_in_yaml(setting: str, expected: float, user_module: str) -> None:
    rewards = from_yaml(f"rewards: {{mine: {setting.replace('MODULE', user_module)}}}")
    assert rewards["mine"](SAMPLE, of_length(3), VERDICT) == expected


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("MODULE.Narrower", "MODULE.Narrower does not implement protocol Reward"),  # as the docstring of Reward says
        ("MODULE.brevity", "MODULE.brevity does not implement protocol Reward"),
        ("{class_path: FunctionReward, init_args: {function: MODULE.absent}}", "no attribute 'absent'"),
        ("{class_path: FormatReward, init_args: {wieght: 1}}", "wieght"),
        ("null", "protocol Reward"),
    ],
)
def test_what_is_no_reward_in_yaml(setting: str, told: str, user_module: str) -> None:
    with pytest.raises(jsonargparse.ArgumentError, match=told.replace("MODULE", user_module)):
        from_yaml(f"rewards: {{mine: {setting.replace('MODULE', user_module)}}}")
