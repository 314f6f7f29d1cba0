# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from medvlt.metrics.benchmark import BenchmarkMetrics


def test_numbers_by_hand() -> None:
    metrics = BenchmarkMetrics()
    for correct, cut in (([True, False], [False, True]), ([True, True], [False, False])):
        metrics.update(
            questions=1,
            correct=torch.tensor(correct),
            format_ok=torch.tensor([True, False]),
            truncated=torch.tensor(cut),
            tokens=torch.tensor([10, 30]),
        )
    values = {name: float(value) for name, value in metrics.compute().items()}
    counts = {"correct": 3, "count": 4, "questions": 2}
    shares = {"accuracy": 0.75, "format_rate": 0.5, "truncation_rate": 0.25, "mean_tokens": 20}
    assert values == pytest.approx(counts | shares)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted_is_zero() -> None:
    """A rank may have no question of a benchmark, and still takes part in the reduction."""
    assert all(float(value) == 0 for value in BenchmarkMetrics().compute().values())
