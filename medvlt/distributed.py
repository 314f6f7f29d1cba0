# SPDX-License-Identifier: Apache-2.0
"""Exchange of small Python values between ranks; with one process each function is the identity.

Also what a rank is doing, and how to tell that another one is gone: the backends have their own words for it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch.distributed as dist

from medvlt.errors import EngineError, LostRankError, MedvltError

Value = TypeVar("Value")

GONE_WORDS = (
    "connection closed by peer",  # gloo
    "connection reset by peer",
    "broken pipe",
    "connection refused",
    "connection was likely closed",  # the store
    "no route to host",
    "network is unreachable",
    "connectfullmesh failed",  # gloo, while it makes a group
    "remote process exit",  # NCCL: "exited or there was a network error", "exiting prematurely"
    "communicator was aborted",
)
"""What errors of gloo, NCCL and the store say when a rank has ended."""

LATE_WORDS = (
    "timed out waiting",  # gloo
    "timeout caused pair closure",
    "timed out in monitoredbarrier",
    "collective operation timeout",  # NCCL
    "wait timeout after",  # the store
    "the client socket has timed out",
)
"""What they say when a rank did not come in time."""

GO_ON = "go on from the last checkpoint: the same command with --ckpt_path last"

_phase = ""


def enter_phase(name: str) -> None:
    """Notes what this rank is doing, for messages about ranks that are lost."""
    global _phase
    _phase = name


def current_phase() -> str:
    """Returns what this rank is doing; "" while nobody has said so."""
    return _phase


def in_phase() -> str:
    """Returns " in phase update", as the end of a description; nothing while the phase is not known."""
    return f" in phase {_phase}" if _phase else ""


def world() -> tuple[int, int]:
    """Returns (number of ranks, this rank)."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1, 0
    return dist.get_world_size(), dist.get_rank()


def this_rank() -> str:
    """Returns who this is and what it does, as in "rank 3 (host node-1) in phase update"."""
    return f"rank {world()[1]} (host {socket.gethostname()}){in_phase()}"


def lost_rank(error: BaseException) -> str | None:
    """Returns what a backend said if an error, or what caused it, is that another rank is gone or late; else None."""
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(str(cause).split())
        own = isinstance(cause, MedvltError)  # may quote what an endpoint said of its connection
        if isinstance(cause, LostRankError) or (
            isinstance(cause, RuntimeError) and not own and _says(text, *GONE_WORDS, *LATE_WORDS)
        ):
            return text
        cause = cause.__cause__ or cause.__context__
    return None


def lost_message(words: str) -> str:
    """Returns what to tell the user when a backend says that another rank is gone or late.

    Args:
        words: The backend's.
    """
    what = (
        "another rank did not come within the time-out of the process group; its own output says what it does"
        if _says(words, *LATE_WORDS)
        else "another rank has ended; its own message, above or in its own output, says why"
    )
    return f"{what}. This is {this_rank()}; {GO_ON} ({words[:200]})"


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Turns a backend's error about another rank into one that says what this rank was doing.

    Raises:
        LostRankError: If a rank is gone or late. Other errors pass.
    """
    try:
        yield
    except LostRankError:
        raise
    except RuntimeError as error:
        words = lost_rank(error)
        if words is None:
            raise
        raise LostRankError(lost_message(words)) from error


def gather(value: Value) -> list[Value]:
    """Returns the value of every rank, in rank order, on every rank. The value must be picklable.

    Raises:
        LostRankError: If another rank has ended, or did not come in time.
    """
    ranks, _ = world()
    if ranks == 1:
        return [value]
    values: list[Value | None] = [None] * ranks
    with naming_lost_ranks():
        dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # every entry is filled


def gather_to_first(value: Value) -> list[Value]:
    """Returns the value of every rank, in rank order, on rank 0, and an empty list on the others.

    For values that only rank 0 works on. The value must be picklable.

    Raises:
        LostRankError: If another rank has ended, or did not come in time.
    """
    ranks, rank = world()
    if ranks == 1:
        return [value]
    values: list[Value | None] | None = [None] * ranks if rank == 0 else None
    with naming_lost_ranks():
        dist.gather_object(value, values)
    return cast(list[Value], values or [])


def interleave(shares: Sequence[Sequence[Value]]) -> list[Value]:
    """Undoes the split `items[rank::ranks]`: returns the items in their original order."""
    total = sum(map(len, shares))
    return [shares[number % len(shares)][number // len(shares)] for number in range(total)]


def together(action: Callable[[], Value]) -> Value:
    """Runs an action on every rank; if it fails on one, it fails on all, so that none waits for the others.

    If the action raises errors of medvlt alone, every rank raises the same kind, or one would try again where another
    gives up. Whoever tries again has to make such errors of all others.

    Args:
        action: What to run; exchanges between ranks inside it are its own matter.

    Raises:
        LostRankError: That of the action, at once: there is nobody to tell.
        MedvltError: The error of the first rank that failed; the other ranks quote it, as an `EngineError` if it is no
            `MedvltError`.
        Exception: An error of this rank that is no `MedvltError`, as it is.
    """
    failure: Exception | None = None
    result: Value | None = None
    try:
        result = action()
    except LostRankError:
        raise
    except Exception as error:
        failure = error
    reports = gather(None if failure is None else _report(failure))
    first = next((rank for rank, report in enumerate(reports) if report is not None), None)
    if first is None:
        return cast(Value, result)
    if failure is not None and (first == world()[1] or not isinstance(failure, MedvltError)):
        raise failure
    kind, message = cast(tuple[type[MedvltError], str], reports[first])
    raise kind(f"rank {first}: {message}") from failure


def _report(error: Exception) -> tuple[type[MedvltError], str]:
    """The class in `medvlt.errors` that other ranks raise, which is made from a message alone, and the message."""
    if not isinstance(error, MedvltError):
        return EngineError, f"{type(error).__name__}: {error}"
    return next(kind for kind in type(error).__mro__ if kind.__module__ == MedvltError.__module__), str(error)


def _says(text: str, *words: str) -> bool:
    return any(word in text.lower() for word in words)
