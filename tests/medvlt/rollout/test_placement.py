# SPDX-License-Identifier: Apache-2.0
"""Which ranks share an engine; the ranks and their hosts are made up."""

from __future__ import annotations

import pytest

from medvlt.errors import ConfigurationError
from medvlt.rollout.vllm_start import check_neighbours, placement

TWO_NODES = ["a"] * 8 + ["b"] * 8


@pytest.mark.parametrize(
    ("hosts", "size"), [(TWO_NODES, 1), (TWO_NODES, 4), (TWO_NODES, 8), (["a", "a"], 2), (["a", "b"] * 4, 1)]
)
def test_neighbours_on_one_node_may_share_an_engine(hosts: list[str], size: int) -> None:
    check_neighbours(hosts, size)


@pytest.mark.parametrize(
    ("hosts", "size", "message"),
    [
        (
            ["a"] * 7 + ["b"] * 7,
            2,
            r"ranks 6 to 7 would share an engine and are on 2 nodes \(a, b\); tensor_parallel_size must divide the 7 ",
        ),
        (TWO_NODES, 16, r"ranks 0 to 15 .* divide the 8 ranks of a node"),
        (["a", "b"] * 4, 2, r"ranks 0 to 1 .*\(a, b\); ranks must be numbered node by node \(srun --distribution"),
    ],
)
def test_ranks_of_two_nodes_may_not(hosts: list[str], size: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_neighbours(hosts, size)


def test_every_rank_is_asked_before_anything_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that raises before the others have met would leave them waiting."""
    asked: list[str] = []

    def gather(host: str) -> list[str]:
        asked.append(host)
        return [host, "another"] * 2

    monkeypatch.setattr("medvlt.rollout.vllm_start.gather", gather)
    with pytest.raises(ConfigurationError, match="tensor_parallel_size=3 needs a multiple"):
        placement(3)
    with pytest.raises(ConfigurationError, match="node by node"):
        placement(2)
    assert len(asked) == 2
