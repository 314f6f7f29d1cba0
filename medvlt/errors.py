# SPDX-License-Identifier: Apache-2.0
"""Errors a user can cause. The command line prints their message and exits with code 2."""

from __future__ import annotations

from collections.abc import Sequence


class MedvltError(Exception):
    """Base of every error whose message alone tells the user what to change."""


class ConfigurationError(MedvltError, ValueError):
    """Settings that contradict one another or the machine."""


class DataError(MedvltError, ValueError):
    """A data set that cannot be read, or that lost more records than allowed."""


class MissingExtraError(MedvltError, ImportError):
    """An optional package is needed and not installed."""


class MissingRolloutError(MedvltError, RuntimeError):
    """A batch reached the module without completions."""


class EngineError(MedvltError, RuntimeError):
    """A rollout engine failed or was used after it died."""


class LostRankError(EngineError):
    """Another rank of the job has ended or is silent; nothing can be tried again without it."""


class RewardError(MedvltError, RuntimeError):
    """A reward raised, or returned something that is not a reward."""


def listed(names: Sequence[str], most: int = 12) -> str:
    """Returns names for a message: all of them, or of a long list the first and the last two.

    >>> listed(["a", "b", "c", "d", "e", "f"], most=4)
    'a, b, ... (2 more), e, f'
    """
    if len(names) <= most:
        return ", ".join(names)
    return ", ".join([*names[: most - 2], f"... ({len(names) - most} more)", *names[-2:]])


def readable(message: str) -> str:
    """Shortens a parser's message to what the user can act on.

    Model and data may be left out as far as the parser knows, so each complaint about them comes twice, once as "not a
    class" and once as "not nothing"; the second is dropped, and long values are cut.
    """
    lines = [line for line in message.splitlines() if line.strip() and "NoneType" not in line]
    return "\n".join(line if len(line) <= 200 else f"{line[:200]} ..." for line in lines)


def own_words(error: BaseException) -> str:
    """Returns the message of our own error inside an exception chain, or else the chain's, shortened."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MedvltError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return readable(str(error))
