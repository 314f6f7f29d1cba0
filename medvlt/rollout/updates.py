# SPDX-License-Identifier: Apache-2.0
"""Which groups of an iteration make which optimizer step and micro-batch: a pure function, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medvlt.data.packing import balance
from medvlt.losses.reduce import StepTotals


@dataclass(frozen=True)
class UpdatePlan:
    """The optimizer steps of one iteration.

    Attributes:
        micro_batches: For each step, the group numbers of each micro-batch over all ranks; some may be empty.
        totals: For each step, the sizes that normalise its loss.
    """

    micro_batches: tuple[tuple[tuple[int, ...], ...], ...]
    totals: tuple[StepTotals, ...]


def plan_updates(
    sizes: Sequence[int],
    counted: Sequence[Sequence[int]],
    used: Sequence[bool],
    *,
    steps: int,
    micro_batches: int,
    balanced: bool = True,
) -> UpdatePlan:
    """Cuts an iteration into optimizer steps of nearly equal numbers of groups, and those into micro-batches.

    Groups keep their order over the steps; inside a step they are spread over micro-batches so that the largest has
    few tokens. A group that is not used still counts in the normaliser of its step: whether a zero is added up or left
    out must not change the result.

    Args:
        sizes: Tokens of each group, prompt included, (B,).
        counted: Tokens of each counted completion of each group; a completion that is masked out of a token mean is
            written as 0 tokens and still counts as a completion.
        used: Whether a group has to be computed, (B,).
        steps: Optimizer steps, at least 1.
        micro_batches: Micro-batches of a step over all ranks, at least 1.
        balanced: Spread by tokens. False cuts the groups in order into equal numbers, as the reference does; a mean
            over micro-batches depends on it.
    """
    planned: list[tuple[tuple[int, ...], ...]] = []
    totals: list[StepTotals] = []
    for members in even_cuts(len(sizes), steps):
        chosen = [number for number in members if used[number]]
        filled = min(micro_batches, len(chosen))
        bins = even_cuts(len(chosen), filled)
        if balanced and filled:
            bins = balance([sizes[number] for number in chosen], filled)
        bins += [[] for _ in range(micro_batches - filled)]
        planned.append(tuple(tuple(chosen[i] for i in items) for items in bins))
        lengths = [length for number in members for length in counted[number]]
        totals.append(StepTotals(sum(lengths), len(lengths), max(1, filled)))
    return UpdatePlan(tuple(planned), tuple(totals))


def even_cuts(items: int, parts: int) -> list[list[int]]:
    """Returns the numbers 0 to `items` - 1 in order, cut into parts whose sizes differ by at most one."""
    return [list(range(part * items // parts, (part + 1) * items // parts)) for part in range(parts)]
