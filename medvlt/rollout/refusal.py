# SPDX-License-Identifier: Apache-2.0
"""Prompts that an engine cannot sample: answered with nothing and counted, so that one bad picture ends no run."""

from __future__ import annotations

import logging
from collections import Counter

from medvlt.data.drops import RecordError
from medvlt.errors import DataError
from medvlt.types import Completion, RolloutGroup, Sample

logger = logging.getLogger(__name__)


class RefusedPrompt(DataError):
    """A prompt beyond the limits of an engine.

    Args:
        reason: Kind of limit, for counting.
        message: What is allowed, what came, what to change.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def refuse(sample: Sample, error: DataError, *, n: int, version: int, counts: Counter[str]) -> RolloutGroup:
    """Returns the answer to a prompt that cannot be sampled, and makes the reason known.

    Args:
        sample: The question.
        error: Why it cannot be sampled.
        n: Completions that were asked for.
        version: Version of the engine's weights.
        counts: The engine's refused prompts by kind, counted up here.

    Returns:
        A group without prompt tokens whose n completions have no tokens and end with "error".
    """
    counts[str(error.reason) if isinstance(error, RecordError | RefusedPrompt) else "bad_prompt"] += 1
    logger.warning("question %s is not sampled, its completions stay empty: %s", sample.uid, error)
    return RolloutGroup(sample, (), (Completion((), "", (), "error", version, error=str(error)),) * n)
