# SPDX-License-Identifier: Apache-2.0
"""A loader that can be resumed at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from medvlt.errors import ConfigurationError

Item = TypeVar("Item", covariant=True)


class EpochSampler(DistributedSampler[Item]):
    """Yields (epoch, number) for every item of a data set, in order, from `begin` on.

    It is a DistributedSampler only so that Lightning leaves it in place and tells it the epoch. The epoch travels in
    the key, so worker processes never hold a stale one.
    """

    def __init__(self, dataset: Dataset[Item]) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)
        self.begin = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        return ((self.epoch, number) for number in range(self.begin, len(cast(Sized, self.dataset))))


class ResumableLoader(DataLoader[Item]):
    """Yields the items of a data set that is indexed by (epoch, number); the position is its state.

    Lightning stores and restores the state. The position counts items handed out, not those that workers have prepared;
    after the last item of an epoch it is 0, so that a checkpoint made there goes on with the next epoch.

    Args:
        dataset: Indexed by (epoch, number), with a length.
        epoch: The epoch to begin with; Lightning sets later ones.
        seed: Of the generator that seeds workers; without one of its own a loader would draw from the global one.
        num_workers: Processes that prepare items.
        per_step: Items of this rank that make one optimizer step.
        fingerprint: Names the data and their order; a state with another one is refused.
    """

    def __init__(
        self, dataset: Dataset[Item], *, epoch: int, seed: int, num_workers: int, per_step: int, fingerprint: str
    ) -> None:
        sampler = EpochSampler(dataset)
        sampler.set_epoch(epoch)
        super().__init__(
            dataset,
            batch_size=None,
            sampler=cast(Any, sampler),  # its keys are pairs
            num_workers=num_workers,
            generator=torch.Generator().manual_seed(seed),
            pin_memory=torch.cuda.is_available(),
        )
        self._sampler = sampler
        self._per_step, self._fingerprint = per_step, fingerprint
        self._position = 0
        self._resume_at = 0

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        # a generator: it runs when the first item is asked for, when Lightning has set the epoch and restored the state
        self._position, self._resume_at = self._resume_at, 0
        self._sampler.begin = self._position
        for item in super().__iter__():
            self._position += 1
            yield item

    def state_dict(self) -> dict[str, int | str]:
        """Returns how many items of the epoch were handed out, how many make a step, and which plan they are of."""
        position = self._position % max(1, len(self))
        return {"position": position, "per_step": self._per_step, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iteration begin at the item after those that the state counts.

        Raises:
            ConfigurationError: If the state is of other data or another order, or lies in the middle of an epoch whose
                steps had another number of items, and the module did not rewrite it together with Lightning's counts.
        """
        if state["fingerprint"] != self._fingerprint:
            raise ConfigurationError(
                "the checkpoint is of other training data or another order of them (source, encoder, length limit, "
                "global_batch_size, updates_per_iteration or seed differ), so its place in them means nothing here; "
                "resume with the settings of the checkpoint, or start a new run from its weights"
            )
        if state["position"] and state["per_step"] != self._per_step:
            raise ConfigurationError(
                f"the checkpoint was written in the middle of an epoch whose optimizer steps had {state['per_step']} "
                f"micro-batches per rank, a step has {self._per_step} now; resume with the same "
                "accumulate_grad_batches, or with a module that rewrites the counts, as those in lightning_modules do"
            )
        self._resume_at = state["position"]
