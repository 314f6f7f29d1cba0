# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest

from medvlt.curation.probe import Probe
from medvlt.errors import DataError

PROBE = Probe("a", "Qwen", "reference", {"n": 16, "top_p": 1.0}, 42, {"engine": {"weights": "f00"}, "sizes": (1, 2)})


@pytest.mark.parametrize("name", ["", "mark", "a/b", "a b", "ü"])
def test_a_name_must_be_able_to_head_a_column(name: str) -> None:
    with pytest.raises(DataError, match="heads its columns"):
        replace(PROBE, name=name)


@pytest.mark.parametrize("sampling", [{}, {"n": 0}, {"n": "16"}])
def test_the_number_of_completions_must_be_known(sampling: dict[str, object]) -> None:
    with pytest.raises(DataError, match="sampling needs n"):
        replace(PROBE, sampling=sampling)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "clean"}, "prompt 'clean' and 'reference'"),
        ({"seed": 1}, "seed 1 and 42"),
        ({"sampling": {"n": 16, "top_p": 0.9}}, "sampling.top_p 0.9 and 1.0"),
        ({"details": {"engine": {"weights": "bad"}, "sizes": [1, 2]}}, "details.engine.weights 'bad' and 'f00'"),
    ],
)
def test_settings_that_completions_depend_on_make_it_another_probe(change: dict[str, object], words: str) -> None:
    assert replace(PROBE, **change).differences(PROBE) == [words]


def test_what_completions_do_not_depend_on_makes_no_difference() -> None:
    """A folder may be moved, and the name on the Hub stands for the same weights as its snapshot."""
    other = replace(
        PROBE, model="/elsewhere/Qwen", checkpoint="last.ckpt", versions={"vllm": "1"}, grader_version="9",
        date="2030-01-01", sampling={"top_p": 1.0, "n": 8}, questions=3, fingerprint="x",
        details={"sizes": [1, 2], "engine": {"weights": "f00"}},
    )  # fmt: skip
    assert other.differences(PROBE) == []


def test_the_checkpoint_is_shown_with_the_model() -> None:
    assert PROBE.answered_by == "Qwen"
    assert replace(PROBE, checkpoint="last.ckpt").answered_by == "Qwen with weights of last.ckpt"
