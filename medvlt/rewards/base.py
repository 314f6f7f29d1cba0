# SPDX-License-Identifier: Apache-2.0
"""What a reward is, and the two that need nothing but the verdict."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from medvlt.types import Completion, Reason, Sample, Verdict


@runtime_checkable
class Reward(Protocol):
    """Turns a graded completion into a number."""

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        """Returns the reward, or None if this reward has nothing to say of this completion."""


class AccuracyReward:
    """Pays for the right answer.

    Args:
        right: Reward of a right answer.
        wrong: Reward of a completion that chooses a wrong option.
        no_verdict: Reward of a completion that chooses no option: truncated, empty, ambiguous or unreadable. None
            leaves it out instead of judging it.
    """

    def __init__(self, right: float = 1.0, wrong: float = 0.0, no_verdict: float | None = 0.0) -> None:
        self.right = right
        self.wrong = wrong
        self.no_verdict = no_verdict

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        """Returns one of the three rewards; None for a question without options, which cannot be graded."""
        if verdict.correct:
            return self.right
        if verdict.reason is Reason.OPEN_QUESTION:
            return None
        return self.no_verdict if verdict.label is None else self.wrong


class FormatReward:
    """Pays for the format alone, whatever the answer.

    Args:
        weight: Reward of a completion in the right format; any other earns 0.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        """Returns `weight` or 0, never None."""
        return self.weight if verdict.format_ok else 0.0
