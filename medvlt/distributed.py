# SPDX-License-Identifier: Apache-2.0
"""Exchange of small Python values between ranks; with one process each function is the identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch.distributed as dist

from medvlt.errors import EngineError, MedvltError

Value = TypeVar("Value")


def world() -> tuple[int, int]:
    """Returns (number of ranks, this rank)."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1, 0
    return dist.get_world_size(), dist.get_rank()


def gather(value: Value) -> list[Value]:
    """Returns the value of every rank, in rank order, on every rank. The value must be picklable.

    Raises:
        EngineError: If another rank has ended.
    """
    ranks, _ = world()
    if ranks == 1:
        return [value]
    values: list[Value | None] = [None] * ranks
    try:
        dist.all_gather_object(values, value)
    except RuntimeError as error:  # the backends' words for a rank that is gone
        raise EngineError(
            "another rank has ended; its own message, above or in its own output, says why. "
            f"({' '.join(str(error).split())[:120]})"
        ) from error
    return values  # type: ignore[return-value]  # every entry is filled


def gather_to_first(value: Value) -> list[Value]:
    """Returns the value of every rank, in rank order, on rank 0, and an empty list on the others.

    For values that only rank 0 works on. The value must be picklable.
    """
    ranks, rank = world()
    if ranks == 1:
        return [value]
    values: list[Value | None] | None = [None] * ranks if rank == 0 else None
    dist.gather_object(value, values)
    return cast(list[Value], values or [])


def interleave(shares: Sequence[Sequence[Value]]) -> list[Value]:
    """Undoes the split `items[rank::ranks]`: returns the items in their original order."""
    total = sum(map(len, shares))
    return [shares[number % len(shares)][number // len(shares)] for number in range(total)]


def together(action: Callable[[], Value]) -> Value:
    """Runs an action on every rank; if it fails on one, it fails on all, so that none waits for the others.

    Every rank raises the same kind of error, or one would try again where another gives up.

    Args:
        action: May raise a `MedvltError`; exchanges between ranks inside it are its own matter.

    Raises:
        MedvltError: The error of the first rank that failed; the other ranks quote it.
    """
    failure: MedvltError | None = None
    result: Value | None = None
    try:
        result = action()
    except MedvltError as error:
        failure = error
    reports = gather(None if failure is None else (_kind(failure), str(failure)))
    first = next((rank for rank, report in enumerate(reports) if report is not None), None)
    if first is None:
        return cast(Value, result)
    if failure is not None and first == world()[1]:
        raise failure
    kind, message = cast(tuple[type[MedvltError], str], reports[first])
    raise kind(f"rank {first}: {message}") from failure


def _kind(error: MedvltError) -> type[MedvltError]:
    """The class in `medvlt.errors` that an error belongs to: it is made from a message alone."""
    return next(kind for kind in type(error).__mro__ if kind.__module__ == MedvltError.__module__)
