# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import weakref

import pytest

from medvlt.rollout.vllm_process import release_frames, restored_environment


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "7")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delenv("VLLM_TEST", raising=False)
    with restored_environment({"RANK": "0"}):
        assert os.environ["RANK"] == "0"
        os.environ.update(LD_PRELOAD="x", VLLM_TEST="1")
        del os.environ["PATH"]
    assert os.environ["RANK"] == "7"
    assert "LD_PRELOAD" not in os.environ
    assert os.environ.pop("VLLM_TEST") == "1"
    assert os.environ["PATH"]


class Activations:
    """Stands for what takes memory in a frame."""


def test_an_error_and_its_causes_let_go_of_their_frames() -> None:
    held: list[weakref.ref[Activations]] = []

    def compute(depth: int) -> None:
        activations = Activations()
        held.append(weakref.ref(activations))
        if depth == 0:
            raise RuntimeError("CUDA error")
        try:
            compute(depth - 1)
        except RuntimeError as error:
            raise ValueError("a worker failed") from error
        except (ValueError, OSError):
            raise OSError("an executor failed")  # noqa: B904

    with pytest.raises(OSError, match="an executor") as raised:
        compute(3)
    assert [reference() is None for reference in held] == [False] * 4
    release_frames(raised.value)
    assert [reference() is None for reference in held] == [True] * 4
    cause = raised.value.__context__
    assert cause is not None
    cause.__cause__ = raised.value
    release_frames(raised.value)  # causes that go round in a circle end
