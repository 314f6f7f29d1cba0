# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from medvlt.distributed import enter_phase, gather, gather_to_first, interleave, lost_rank, together, world
from medvlt.errors import DataError, EngineError, LostRankError


class Odd(DataError):
    """An error that is not made from its message alone, as those of records are."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


@given(st.lists(st.integers()), st.integers(1, 7))
def test_interleave_undoes_the_split(items: list[int], ranks: int) -> None:
    assert interleave([items[rank::ranks] for rank in range(ranks)]) == items


def failing(error: BaseException) -> Callable[[], str]:
    def action() -> str:
        raise error

    return action


def test_alone() -> None:
    assert world() == (1, 0)
    value = object()
    assert gather(value)[0] is value
    assert gather_to_first(value)[0] is value
    assert together(lambda: value) is value
    with pytest.raises(EngineError, match=r"^it died$"):
        together(failing(EngineError("it died")))
    with pytest.raises(ZeroDivisionError):
        together(failing(ZeroDivisionError()))


@pytest.mark.parametrize("error", [LostRankError("rank 1 is gone"), KeyboardInterrupt(), SystemExit(2)])
def test_nobody_is_asked_when_a_rank_is_gone_or_this_one_ends(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medvlt.distributed.gather", lambda _: pytest.fail("asked"))
    with pytest.raises(type(error)) as raised:
        together(failing(error))
    assert raised.value is error


def outcome(action: Callable[[], str]) -> tuple[str, str]:
    try:
        return "returned", together(action)
    except Exception as error:
        return type(error).__name__, str(error)


def work(rank: int, port: int, output: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    actions: dict[str, tuple[Callable[[], str], Callable[[], str]]] = {
        "both well": (lambda: "zero", lambda: "one"),
        "second fails": (lambda: "zero", failing(EngineError("it died"))),
        "first fails": (failing(Odd(7, "bad picture")), lambda: "one"),
        "both fail": (failing(DataError("bad picture")), failing(EngineError("it died"))),
        "second fails otherwise": (lambda: "zero", failing(ZeroDivisionError("by zero"))),
        "inside": (lambda: together(lambda: "zero"), lambda: together(failing(ZeroDivisionError("by zero")))),
        "both fail, one otherwise": (failing(DataError("bad picture")), failing(ZeroDivisionError("by zero"))),
    }
    found = {
        "world": world(),
        "gathered": gather({"rank": rank, "ids": tuple(range(rank * 3))}),
        "on the first": gather_to_first("one" * rank),
        "together": {name: outcome(pair[rank]) for name, pair in actions.items()},
    }
    torch.save(found, output / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (first["world"], second["world"]) == ((2, 0), (2, 1))
    assert first["gathered"] == second["gathered"] == [{"rank": 0, "ids": ()}, {"rank": 1, "ids": (0, 1, 2)}]
    assert (first["on the first"], second["on the first"]) == (["", "one"], [])
    # the kind is the same on both ranks, so that both go on alike; here an engine's failure means a second try
    assert first["together"] == {
        "both well": ("returned", "zero"),
        "second fails": ("EngineError", "rank 1: it died"),
        "first fails": ("Odd", "bad picture"),
        "both fail": ("DataError", "bad picture"),
        "second fails otherwise": ("EngineError", "rank 1: ZeroDivisionError: by zero"),
        "inside": ("EngineError", "rank 1: ZeroDivisionError: by zero"),
        "both fail, one otherwise": ("DataError", "bad picture"),
    }
    assert second["together"] == {
        "both well": ("returned", "one"),
        "second fails": ("EngineError", "it died"),
        "first fails": ("DataError", "rank 0: bad picture"),
        "both fail": ("DataError", "rank 0: bad picture"),
        "second fails otherwise": ("ZeroDivisionError", "by zero"),
        "inside": ("ZeroDivisionError", "by zero"),
        "both fail, one otherwise": ("ZeroDivisionError", "by zero"),
    }


GLOO = "[/__w/pytorch/gloo/transport/tcp/"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError(f"{GLOO}pair.cc:553] Connection closed\nby peer [127.0.0.1]:28394."), "another rank has ended"),
        (
            RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 6000ms for recv"),
            "did not come within the time",
        ),
        (RuntimeError("Application timeout caused pair closure"), "did not come within the time-out"),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network"), "another rank has ended"),
        (dist.DistBackendError("Watchdog caught collective operation timeout: WorkNCCL(Seq"), "did not come within"),
        (dist.DistNetworkError("Broken pipe"), "another rank has ended"),
        (dist.DistStoreError("wait timeout after 3000ms, keys: /x/b"), "did not come within the time-out"),
        (LostRankError("rank 1 is gone"), "rank 1 is gone"),
    ],
)
def test_a_rank_that_is_gone_is_said_in_words(error: RuntimeError, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise error

    monkeypatch.setattr("medvlt.distributed.world", lambda: (2, 0))
    enter_phase("generate")
    for call, name in ((gather, "all_gather_object"), (gather_to_first, "gather_object")):
        monkeypatch.setattr(f"medvlt.distributed.dist.{name}", lost)
        with pytest.raises(LostRankError, match=words) as raised:
            call(1)
        if not isinstance(error, LostRankError):
            assert "This is rank 0 (host" in str(raised.value)
            assert "in phase generate; go on from the last checkpoint" in str(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ConnectionResetError("Connection reset by peer"),  # of an endpoint, not of a rank
        EngineError("the endpoint closed: Connection reset by peer"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_other_errors_are_not_taken_for_a_lost_rank(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: object) -> None:
        raise error

    assert lost_rank(error) is None
    monkeypatch.setattr("medvlt.distributed.world", lambda: (2, 0))
    monkeypatch.setattr("medvlt.distributed.dist.all_gather_object", other)
    with pytest.raises(type(error)) as raised:
        gather(1)
    assert raised.value is error


def test_a_lost_rank_is_recognised_through_the_errors_it_caused() -> None:
    error = EngineError("the engine failed")
    error.__cause__ = RuntimeError("Connection closed by peer")
    assert lost_rank(error) == "Connection closed by peer"
