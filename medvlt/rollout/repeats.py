# SPDX-License-Identifier: Apache-2.0
"""Greedy completions that are decoded again and again: what an engine repeats, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medvlt.types import RolloutGroup, SamplingParams


def engine_calls(sampling: SamplingParams) -> list[tuple[SamplingParams, int]]:
    """Returns how the completions of a question are asked for: (sampling, number of the first) of each call.

    Samples come from one call. Greedy completions are all the same in exact arithmetic, so an engine decodes one and
    copies it. Whoever asks for several wants to see how often they differ all the same (rounding depends on what is
    decoded together; an endpoint has its own reasons), so each is a call of its own.
    """
    if sampling.temperature > 0:
        return [(sampling, 0)]
    return [(replace(sampling, n=1), number) for number in range(sampling.n)]


def joined(calls: Sequence[Sequence[RolloutGroup]]) -> list[RolloutGroup]:
    """Returns whole groups from those of several calls for the same questions; a call that failed knows no prompt."""
    return [
        RolloutGroup(
            parts[0].sample,
            next((part.prompt_token_ids for part in parts if part.prompt_token_ids), ()),
            tuple(completion for part in parts for completion in part.completions),
        )
        for parts in zip(*calls, strict=True)
    ]
