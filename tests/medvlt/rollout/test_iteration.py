# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medvlt.losses.advantages import zero_variance
from medvlt.rollout.iteration import Iteration, ScoredGroup
from medvlt.types import Completion, Reason, RolloutGroup, Sample, SamplingParams, Verdict

SAMPLES = {
    4: Sample("text:4", "Welche Seite?", {"A": "links", "B": "rechts"}, "A", "links"),
    9: Sample("picture:9", "Which?", {"A": "x", "B": "y"}, "B", "y", (Path("a.png"), b"bytes")),
}
RIGHT = Verdict(True, "A", True, Reason.LABEL_AND_TEXT, "3")
WRONG = Verdict(False, None, False, Reason.EMPTY, "3")
GROUPS = (
    ScoredGroup(
        9,
        RolloutGroup(
            SAMPLES[9],
            (151_655, 0, 151_655),
            (
                # doubles that no shorter type holds
                Completion((151_645, 3, 2), "<think> µ \n\x00", (math.log(0.3), -1e-300, -math.pi), "stop", 7),
                Completion((5,), "", (-1 / 3,), "length", 8),
            ),
        ),
        (RIGHT, WRONG),
        (0.1 + 0.2, None),
        {"accuracy": (1.0, None), "style": (-0.1, None)},
    ),
    # refused by the engine: no prompt, no tokens
    ScoredGroup(
        4,
        RolloutGroup(SAMPLES[4], (), (Completion((), "", (), "error", 7),) * 2),
        (WRONG, WRONG),
        (None, None),
        {"accuracy": (None, None), "style": (None, None)},
    ),
)
SAMPLING = SamplingParams(n=2, temperature=0.7, top_p=0.9, top_k=5, max_tokens=11)
COMPLETE: dict[str, Any] = {
    "advantages": torch.tensor([[math.pi, -math.pi], [0.0, 0.0]], dtype=torch.float64),
    "masked": torch.tensor([[False, False], [True, True]]),
    "used": torch.tensor([True, False]),
    "old_logprobs": {0: torch.tensor([-0.1, -0.2, -0.3, -0.4])},
    "ref_logprobs": {0: torch.tensor([-1.1, -1.2, -1.3, -1.4])},
}


def test_group_comes_back_as_it_was() -> None:
    for group in GROUPS:
        assert ScoredGroup.from_state(group.to_state(), SAMPLES[group.index]) == group


@pytest.mark.parametrize("known", [{}, COMPLETE], ids=["just sampled", "complete"])
def test_iteration_survives_a_file_without_code_in_it(known: dict[str, Any], tmp_path: Path) -> None:
    before = Iteration(3, GROUPS, SAMPLING, **known)
    torch.save(before.to_state(), tmp_path / "state.pt")
    asked = []

    def sample_at(index: int, uid: str) -> Sample:
        asked.append((index, uid))
        return SAMPLES[index]

    after = Iteration.from_state(torch.load(tmp_path / "state.pt", weights_only=True), sample_at)
    assert asked == [(9, "picture:9"), (4, "text:4")]
    assert (after.number, after.groups, after.sampling) == (3, GROUPS, SAMPLING)
    assert type(after.groups[0].verdicts[0].reason) is Reason
    for name in COMPLETE:
        ours, theirs = getattr(after, name), known.get(name)
        if isinstance(theirs, torch.Tensor):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs), name
        elif theirs is not None:
            assert ours.keys() == theirs.keys()
            assert torch.equal(ours[0], theirs[0]), name
        else:
            assert ours is None


def test_the_state_holds_no_question() -> None:
    """Pictures and questions are in the data; a checkpoint that copied them would grow by gigabytes."""
    text = repr(Iteration(3, GROUPS, SAMPLING).to_state())
    assert "Welche" not in text
    assert "a.png" not in text


def test_columns() -> None:
    iteration = Iteration(0, GROUPS, SAMPLING)
    assert iteration.lengths == [[3, 1], [0, 0]]
    rewards = iteration.rewards
    assert rewards.dtype == torch.float64
    assert rewards[0, 0] == 0.1 + 0.2
    assert rewards.isnan().tolist() == [[False, True], [True, True]]


@given(st.lists(st.sampled_from([None, 0.0, 0.1, 0.1 + 2**-40, 1.0]), min_size=1, max_size=5))
def test_variance_is_that_of_the_advantages(rewards: list[float | None]) -> None:
    """Dynamic sampling drops exactly the groups whose advantages would all be zero."""
    group = ScoredGroup(0, GROUPS[0].group, (), tuple(rewards), {})
    assert group.has_variance == (not bool(zero_variance(Iteration(0, (group,), SAMPLING).rewards)))
