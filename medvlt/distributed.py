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
    """Returns the value of every rank, in rank order, on every rank. The value must be picklable."""
    ranks, _ = world()
    if ranks == 1:
        return [value]
    values: list[Value | None] = [None] * ranks
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # every entry is filled


def interleave(shares: Sequence[Sequence[Value]]) -> list[Value]:
    """Undoes the split `items[rank::ranks]`: returns the items in their original order."""
    total = sum(map(len, shares))
    return [shares[number % len(shares)][number // len(shares)] for number in range(total)]


def together(action: Callable[[], Value]) -> Value:
    """Runs an action on every rank; if it fails on one, it fails on all, so that none waits for the others.

    Args:
        action: May raise a `MedvltError`; exchanges between ranks inside it are its own matter.

    Raises:
        MedvltError: The rank's own error, or an `EngineError` that quotes another rank's.
    """
    failure: MedvltError | None = None
    result: Value | None = None
    try:
        result = action()
    except MedvltError as error:
        failure = error
    messages = gather(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for rank, message in enumerate(messages):
        if message is not None:
            raise EngineError(f"rank {rank}: {message}")
    return cast(Value, result)
