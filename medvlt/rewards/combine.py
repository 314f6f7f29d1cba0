# SPDX-License-Identifier: Apache-2.0
"""Several named rewards become one number, and what happens when one of them fails."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from medvlt.errors import ConfigurationError, RewardError
from medvlt.rewards.base import Reward
from medvlt.types import Completion, Sample, Verdict

logger = logging.getLogger(__name__)

OnRewardError: TypeAlias = Literal["raise", "no_verdict"]
"""What a reward that fails does: it stops the run, or it counts as None."""

SHOWN_CHARACTERS = 200
"""How much of a completion a message shows."""

SHOWN_FRAMES = 5
"""How many of the innermost calls a message shows."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The rewards of one completion.

    Attributes:
        total: Sum of weight * reward over the rewards that are not None; None if all are.
        parts: Each reward by name, before its weight.
    """

    total: float | None
    parts: dict[str, float | None]


class Rewards:
    """Adds up named rewards.

    A reward fails if it raises, or returns anything but a finite number, a bool or None. Weights apply to each
    completion by itself: one with a None among its parts is not scaled up to make up for it.

    Args:
        rewards: Rewards by name, at least one.
        weights: Factor of each reward, finite; 1 where a name is missing.
        on_error: "raise" stops at the first failure; "no_verdict" counts it as None, logs the first of each reward, and
            goes on.

    Attributes:
        errors: Failures of each reward by name, since this object was made.

    Raises:
        ConfigurationError: If there is no reward, a name has no callable reward, a weight names no reward or is not
            finite, or `on_error` is unknown.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float] | None = None,
        on_error: OnRewardError = "raise",
    ) -> None:
        self.rewards = dict(rewards)
        self.weights = dict.fromkeys(self.rewards, 1.0) | dict(weights or {})
        self.on_error = on_error
        self.errors = dict.fromkeys(self.rewards, 0)
        self._check()

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> Scored:
        """Scores one completion.

        Raises:
            RewardError: If a reward fails and `on_error` is "raise".
        """
        parts = {name: self._value(name, sample, completion, verdict) for name in self.rewards}
        paid = [self.weights[name] * value for name, value in parts.items() if value is not None]
        return Scored(sum(paid) if paid else None, parts)

    def _value(self, name: str, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        try:
            value: object = self.rewards[name](sample, completion, verdict)
        except Exception as error:
            self._fail(name, sample, completion, f"raised {_described(error)}", error)
            return None
        if value is None:
            return None
        number = _finite(value)
        if number is None:
            what = f"returned {value!r:.{SHOWN_CHARACTERS}} ({type(value)}) instead of a finite number, a bool or None"
            self._fail(name, sample, completion, what)
        return number

    def _fail(
        self, name: str, sample: Sample, completion: Completion, what: str, error: Exception | None = None
    ) -> None:
        self.errors[name] += 1
        text = completion.text
        shown = repr(text[:SHOWN_CHARACTERS]) + (" ..." if len(text) > SHOWN_CHARACTERS else "")
        message = f"reward {name!r} {what}; sample {sample.uid!r} of {sample.dataset_name!r}, completion {shown}"
        if self.on_error == "raise":
            raise RewardError(
                f"{message}; mend the reward, or set on_reward_error to no_verdict to leave such completions out of it"
            ) from error
        if self.errors[name] == 1:
            logger.warning("%s; it counts as no verdict, and so will all later failures of this reward", message)

    def _check(self) -> None:
        if not self.rewards:
            raise ConfigurationError(
                "there is no reward; name at least one, such as `accuracy: {class_path: AccuracyReward}`"
            )
        for name, reward in self.rewards.items():
            if isinstance(reward, type) or not callable(reward):
                raise ConfigurationError(
                    f"reward {name!r} must be an object that is called with (sample, completion, verdict), "
                    f"got {reward!r}"
                )
        unknown = [name for name in self.weights if name not in self.rewards]
        if unknown:
            raise ConfigurationError(
                f"reward_weights names {', '.join(unknown)}, but the rewards are {', '.join(self.rewards)}; "
                "use the same names"
            )
        for name, weight in self.weights.items():
            if not math.isfinite(weight):
                raise ConfigurationError(f"the weight of reward {name!r} must be a finite number, got {weight}")
        if self.on_error not in get_args(OnRewardError):
            known = " or ".join(get_args(OnRewardError))
            raise ConfigurationError(f"on_reward_error must be {known}, got {self.on_error!r}")


def _finite(value: object) -> float | None:
    """Returns a real number (a bool too) as a float; None for anything else, NaN and infinity included."""
    if not isinstance(value, Real | np.bool_):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the largest float
        return None
    return number if math.isfinite(number) else None


def _described(error: Exception) -> str:
    """Names an exception and the calls that led to it: the command line prints the message and no traceback."""
    frames = traceback.extract_tb(error.__traceback__)[1:][-SHOWN_FRAMES:]  # the first is the call in this file
    calls = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames)
    return f"{type(error).__name__}: {error}" + (f" ({calls})" if calls else "")
