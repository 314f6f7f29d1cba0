# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from medvlt.errors import DataError
from medvlt.evaluation.statistics.passes import pass_curve
from medvlt.metrics.passes import MajorityAccuracy, PassAtK


@pytest.mark.parametrize("k", [1, 3, 8, None])
def test_two_ranks_are_one(k: int | None) -> None:
    """Uneven shares, one of them in two batches; summed the way torchmetrics reduces gathered states."""
    correct = np.random.default_rng(0).random((13, 8)) < 0.2
    counts, totals = torch.from_numpy(correct.sum(axis=1)), torch.full((13,), 8)
    ranks = [PassAtK(k), PassAtK(k)]
    for rank, part in ((0, slice(0, 2)), (0, slice(2, 9)), (1, slice(9, 13)), (1, slice(13, 13))):
        ranks[rank].update(counts[part], totals[part])
    merged = PassAtK(k)
    for name in ("passed", "questions"):
        setattr(merged, name, merged._reductions[name](torch.stack([getattr(rank, name) for rank in ranks])))
    whole = PassAtK(k)
    whole.update(counts, totals)
    expected = correct.any(axis=1).mean() if k in (8, None) else pass_curve(correct[:, :8]).get(k)
    if expected is not None:
        assert float(whole.compute()) == pytest.approx(expected)
    merged._update_count = 1  # it was filled by hand
    assert float(merged.compute()) == pytest.approx(float(whole.compute()))
    assert merged.questions == 13


def test_each_question_has_its_own_number_of_completions() -> None:
    metric = PassAtK()
    metric.update(torch.tensor([1, 0, 2]), torch.tensor([4, 2, 2]))
    assert metric.compute().item() == pytest.approx(2 / 3)
    metric.reset()
    metric.update(torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long))
    assert metric.compute().item() == 0
    with pytest.raises(DataError, match="k=3"):
        PassAtK(3).update(torch.tensor([1]), torch.tensor([2]))


def test_majority_is_a_share_of_questions() -> None:
    metric = MajorityAccuracy()
    metric.update(torch.tensor([True, False, True, True]))
    assert (metric.compute().item(), metric.higher_is_better) == (0.75, True)
