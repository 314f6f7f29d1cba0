# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from torch.utils.data import Dataset

from datamodules.loader import ResumableLoader
from medvlt.errors import ConfigurationError


class Keys(Dataset[str]):
    """Yields the keys it is asked for."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, key: tuple[int, int]) -> str:
        epoch, number = key
        return f"{epoch}:{number}"


def loader(*, per_step: int = 2, fingerprint: str = "a", num_workers: int = 0) -> ResumableLoader[str]:
    return ResumableLoader(Keys(), epoch=4, seed=1, num_workers=num_workers, per_step=per_step, fingerprint=fingerprint)


def after(items: int, *, num_workers: int = 0) -> dict[str, int | str]:
    stopped = loader(num_workers=num_workers)
    iterator = iter(stopped)
    for _ in range(items):
        next(iterator)
    return stopped.state_dict()


@pytest.mark.parametrize(("items", "num_workers"), [*((items, 0) for items in range(7)), (1, 1), (6, 1)])
def test_goes_on_after_the_items_handed_out(items: int, num_workers: int) -> None:
    """Also if workers have prepared more; after the last one a new epoch begins."""
    resumed = loader()
    resumed.load_state_dict(after(items, num_workers=num_workers))
    assert list(resumed) == [f"4:{number}" for number in range(items % 6, 6)]
    assert list(resumed) == [f"4:{number}" for number in range(6)]


@pytest.mark.parametrize("items", range(7))
def test_other_micro_batches_only_between_epochs(items: int) -> None:
    """Lightning counts them to find the end of a step; inside an epoch `begin_at_step` has to rewrite both."""
    resumed = loader(per_step=3)
    if items % 6:
        with pytest.raises(
            ConfigurationError, match=r"2 micro-batches per rank, a step has 3 now; .* rewrites the counts"
        ):
            resumed.load_state_dict(after(items))
    else:
        resumed.load_state_dict(after(items))
        assert len(list(resumed)) == 6


def test_other_data() -> None:
    with pytest.raises(ConfigurationError, match="other training data"):
        loader(fingerprint="b").load_state_dict(after(0))
