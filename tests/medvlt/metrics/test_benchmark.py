# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from medvlt.evaluation.statistics.intervals import effective_questions
from medvlt.metrics.benchmark import BenchmarkMetrics
from medvlt.metrics.policy import PolicyStatistics
from medvlt.types import Completion, FinishReason, Reason, RolloutGroup, Sample, Verdict

Row = tuple[str | None, int, FinishReason]
"""The letter that a completion chose, its tokens, and why it ended. The right letter is A."""


def question(*rows: Row) -> tuple[RolloutGroup, list[Verdict]]:
    sample = Sample("1", "?", {"A": "a", "B": "b"}, "A", "a")
    completions = tuple(Completion((7,) * tokens, "", (-1.0,) * tokens, end) for _, tokens, end in rows)
    verdicts = [Verdict(label == "A", label, label is not None, Reason.LABEL, "1") for label, *_ in rows]
    return RolloutGroup(sample, (1,), completions), verdicts


def count(metrics: BenchmarkMetrics, *questions: tuple[RolloutGroup, list[Verdict]]) -> dict[str, float]:
    metrics.update([group for group, _ in questions], [verdicts for _, verdicts in questions])
    return {name: float(value) for name, value in metrics.compute().items()}


def test_numbers_by_hand() -> None:
    metrics = BenchmarkMetrics()
    count(metrics, question(("A", 10, "stop")), question((None, 30, "length")))
    values = count(metrics, question(("A", 35, "stop")), *[question((None, 0, "error"))] * 2)
    counts = {"correct": 2, "count": 5, "questions": 5, "failed": 2}
    shares = {"accuracy": 0.4, "format_rate": 0.4, "truncation_rate": 0.2, "mean_tokens": 25}
    assert values == pytest.approx(counts | shares)


THREE = (
    question(("A", 1, "stop"), ("B", 1, "stop"), ("B", 1, "stop")),  # right once, outvoted
    question((None, 1, "length"), (None, 0, "error"), ("A", 1, "stop")),  # one vote
    question(("B", 1, "stop"), ("B", 1, "stop"), ("B", 1, "stop")),
    question(("A", 1, "stop"), ("A", 1, "stop"), ("A", 1, "stop")),
)
BY_HAND = {"correct": 5, "count": 12, "questions": 4, "failed": 1, "majority": 0.5, "pass_at_3": 0.75}


def test_several_completions_by_hand() -> None:
    values = count(BenchmarkMetrics(), *THREE)
    assert {name: values[name] for name in BY_HAND} == BY_HAND
    scores = [1 / 3, 1 / 3, 0, 1]
    assert values["effective_questions"] == pytest.approx(effective_questions(scores, completions=3), rel=1e-5)


def test_states_can_be_held_where_there_are_no_doubles() -> None:
    """Apple's GPUs have none; moving a metric there must not fail."""
    metrics = [*BenchmarkMetrics().metrics.values(), PolicyStatistics()]
    kinds = {getattr(metric, name).dtype for metric in metrics for name in metric._defaults}
    assert kinds <= {torch.float32, torch.int64}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted_is_zero() -> None:
    """A rank may have no question of a benchmark, and still takes part in the reduction."""
    assert all(float(value) == 0 for value in BenchmarkMetrics().compute().values())
    assert count(BenchmarkMetrics()) == count(BenchmarkMetrics())
    assert set(count(BenchmarkMetrics()).values()) == {0}


def test_two_ranks_are_one() -> None:
    """One question on one, three on the other, none on a third; real processes: tests/distributed."""
    ranks = [BenchmarkMetrics(), BenchmarkMetrics(), BenchmarkMetrics()]
    for rank, part in zip(ranks, (THREE[:1], THREE[1:], ()), strict=True):
        rank.update([group for group, _ in part], [verdicts for _, verdicts in part])
    for name, metric in ranks[0].metrics.items():
        for other in ranks[1:]:
            metric.merge_state(other.metrics[name])
    merged = {name: float(value) for name, value in ranks[0].compute().items()}
    assert merged == count(BenchmarkMetrics(), *THREE)
