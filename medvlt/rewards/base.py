# SPDX-License-Identifier: Apache-2.0
"""What a reward is, and the rewards that a config can name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from medvlt.errors import ConfigurationError
from medvlt.types import Completion, Reason, Sample, Verdict


@runtime_checkable
class Reward(Protocol):
    """Turns a graded completion into a number.

    A class or function of yours can be named in a config by its dotted path if its call has the argument names and the
    types written here, `-> float | None` included; to inherit from this class is not enough for the parser.
    `FunctionReward` takes any other that can be called with these three arguments.
    """

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        """Returns the reward, or None if this reward has nothing to say of this completion."""


class AccuracyReward(Reward):
    """Pays for the right answer.

    The default is the 1 and 0 of the reference. Its paper writes 1 and -1 (`wrong` and `no_verdict` at -1),
    which is the same once a group is centred and scaled.
    A completion that was cut at its token limit, or that the engine refused, chooses no option, whatever its verdict
    says: the graders of the reference do not look at how a completion ended.

    Args:
        right: Reward of a right answer.
        wrong: Reward of a completion that chooses a wrong option.
        no_verdict: Reward of a completion that chooses no option: truncated, refused, empty, ambiguous or unreadable.
            None leaves it out instead of judging it.
    """

    def __init__(self, right: float = 1.0, wrong: float = 0.0, no_verdict: float | None = 0.0) -> None:
        self.right = right
        self.wrong = wrong
        self.no_verdict = no_verdict

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        """Returns one of the three rewards; None for a question without options, which cannot be graded."""
        if verdict.reason is Reason.OPEN_QUESTION:
            return None
        if completion.finish_reason != "stop":
            return self.no_verdict
        if verdict.correct:
            return self.right
        return self.no_verdict if verdict.label is None else self.wrong


class FormatReward(Reward):
    """Pays for the format alone, whatever the answer.

    Args:
        weight: Reward of a completion in the right format; any other earns 0.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        """Returns `weight` or 0, never None."""
        return self.weight if verdict.format_ok else 0.0


class FormatGate(Reward):
    """Lets another reward judge only what is in the right format.

    Args:
        reward: Judges completions in the right format; it never sees the others.
        otherwise: Reward of a completion in any other format.
    """

    def __init__(self, reward: Reward, otherwise: float = 0.0) -> None:
        self.reward = reward
        self.otherwise = otherwise

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        """Returns what the reward behind the gate returns, or `otherwise`."""
        return self.reward(sample, completion, verdict) if verdict.format_ok else self.otherwise


class SoftOverlong(Reward):
    """Takes up to 1 from completions that come near the token limit (DAPO, arXiv 2503.14476, eq. 13).

    With L tokens, end token included: 0 if L <= max_tokens - cache_tokens, -1 if L > max_tokens, and
    ((max_tokens - cache_tokens) - L) / cache_tokens between. The paper has 20480 and 4096.

    Args:
        max_tokens: Length that costs 1, at least 1. With the `max_tokens` of sampling, a truncated completion costs 1.
        cache_tokens: Length of the slope before it, in [1, max_tokens].

    Raises:
        ConfigurationError: If the slope is empty or longer than the limit.
    """

    def __init__(self, max_tokens: int, cache_tokens: int) -> None:
        if not 1 <= cache_tokens <= max_tokens:
            raise ConfigurationError(
                f"SoftOverlong needs 1 <= cache_tokens <= max_tokens, got cache_tokens={cache_tokens} and "
                f"max_tokens={max_tokens}; the slope must lie below the limit"
            )
        self.max_tokens = max_tokens
        self.cache_tokens = cache_tokens

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        """Returns a number in [-1, 0], never None."""
        left = self.max_tokens - self.cache_tokens - len(completion.token_ids)
        return min(0.0, max(-1.0, left / self.cache_tokens))


class LengthPenalty(Reward):
    """Takes the same amount for every token beyond a free length: -per_token * max(0, tokens - free_tokens).

    Args:
        free_tokens: Tokens that cost nothing, end token included, 0 or above.
        per_token: Cost of each further token, 0 or above.

    Raises:
        ConfigurationError: If one of them is negative, or the cost is not finite.
    """

    def __init__(self, free_tokens: int, per_token: float) -> None:
        if free_tokens < 0 or per_token < 0 or not math.isfinite(per_token):
            raise ConfigurationError(
                f"LengthPenalty needs free_tokens and a finite per_token of 0 or above, got free_tokens={free_tokens} "
                f"and per_token={per_token}; per_token is a cost, so write it without a minus sign"
            )
        self.free_tokens = free_tokens
        self.per_token = per_token

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        """Returns a number of 0 or below, never None."""
        return self.per_token * min(0, self.free_tokens - len(completion.token_ids))


class FunctionReward(Reward):
    """Pays what a function, or an object that can be called, of yours returns. It needs no type annotations.

    Args:
        function: Gets the sample, the completion and the verdict; returns a number, or None if it has nothing to say.
            In a config, its dotted path, `function: my_module.my_function`, or a class with its arguments,
            `function: {class_path: my_module.MyClass, init_args: {...}}`.

    Raises:
        ConfigurationError: If the function cannot be called with three arguments.
    """

    def __init__(self, function: Callable[[Sample, Completion, Verdict], float | None]) -> None:
        try:
            inspect.signature(function).bind(None, None, None)
        except TypeError as error:
            raise ConfigurationError(
                f"a reward function is called as function(sample, completion, verdict); {function!r} cannot be: {error}"
            ) from error
        except ValueError:
            pass  # compiled code that does not tell its arguments
        self.function = function

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        """Returns what the function returns."""
        return self.function(sample, completion, verdict)
