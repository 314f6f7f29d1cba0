# SPDX-License-Identifier: Apache-2.0
"""Sources made of sources: parts of one, one without its pictures, and mixtures of several."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from medvlt.data.controls import Blind, controlled
from medvlt.data.drops import Drop, DropReason, ReadReport
from medvlt.data.samples import Chain, SampleSet, Source, View, copy_uid, shuffle_key
from medvlt.errors import ConfigurationError, DataError


@dataclass(frozen=True)
class Subset(Source):
    """Some samples of a source: first chosen, then shuffled, then cut.

    Args:
        source: Where they come from.
        dataset_name: Keep only samples of these data sets, by `Sample.dataset_name`; null keeps all.
        with_reasoning: Keep only samples that bring a chain of thought, as supervised fine-tuning needs.
        shuffle_seed: Order by this seed and the uids; null keeps the source's order.
        limit: Keep at most so many, the first ones; null keeps all.
    """

    source: Source
    dataset_name: str | list[str] | None = None
    with_reasoning: bool = False
    shuffle_seed: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigurationError(f"limit must be at least 1, got {self.limit}")

    def load(self) -> SampleSet:
        """Loads the source and looks at texts only.

        Raises:
            DataError: If nothing is left.
        """
        samples = self.source.load()
        names = [self.dataset_name] if isinstance(self.dataset_name, str) else self.dataset_name
        chosen = list(range(len(samples)))
        if names is not None or self.with_reasoning:
            found = [samples.light(index) for index in chosen]
            known = Counter(sample.dataset_name for sample in found)
            if unknown := set(names or ()) - set(known):
                raise DataError(
                    f"{samples.report.source}: no sample of {', '.join(sorted(unknown))}; its data sets: "
                    + ", ".join(f"{name} ({number})" for name, number in known.items())
                )
            chosen = [
                index
                for index, sample in enumerate(found)
                if (names is None or sample.dataset_name in names) and (sample.reasoning or not self.with_reasoning)
            ]
        if not chosen:
            raise DataError(
                f"{samples.report.source}: none of {len(samples)} samples has reasoning; set with_reasoning=false or "
                "collect traces first"
            )
        if (seed := self.shuffle_seed) is not None:
            chosen.sort(key=lambda index: shuffle_key(seed, samples.uids[index]))
        return samples.select(chosen[: self.limit])


@dataclass(frozen=True)
class WithoutPictures(Source):
    """The same questions under the same uids, their pictures taken away: the control `Blind` as a source.

    A probe over it shows which questions need no picture (`medvlt data quality --blind_probe`). Nothing else changes:
    wording, order of the options and uids, and with them the seeds of the completions, are those of the source.

    Args:
        source: The questions.
    """

    source: Source

    def load(self) -> SampleSet:
        """Loads the source; its pictures are not read again after its own checks."""
        return controlled(self.source.load(), Blind())


@dataclass(frozen=True)
class Mixture(Source):
    """Several sources as one set. A uid that an earlier source brought already is left out and reported.

    Without weights: all samples, one source after the other.

    With weights: source i makes up the share w_i / sum(w) of the set, to the nearest sample, whatever its size. Which
    of its samples these are, and the order of the whole, follow from `seed` and the uids alone.

    Args:
        sources: The sources.
        weights: One number >= 0 per source; only their ratios count. A source of weight 0 is not even loaded. Null
            chains the sources.
        size: Samples in the set; needs weights. Null takes the largest set that repeats nothing.
        seed: Seed of choice and order.
        repeat: Whether `size` may ask more of a source than it has. Its samples then come in whole passes, the last one
            cut short; the uid of the second time ends in `#2`, and so on.
    """

    sources: list[Source]
    weights: list[float] | None = None
    size: int | None = None
    seed: int = 0
    repeat: bool = False

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigurationError("a mixture needs at least one source, got none")
        if self.weights is None:
            if self.size is not None:
                raise ConfigurationError(
                    f"size={self.size} needs weights; without them all samples are taken. To cut, wrap it in Subset"
                )
            return
        if len(self.weights) != len(self.sources):
            raise ConfigurationError(
                f"expected one weight per source, got {len(self.weights)} weights for {len(self.sources)} sources"
            )
        if not all(0 <= weight < math.inf for weight in self.weights) or not sum(self.weights):
            raise ConfigurationError(f"weights must be finite, 0 or above and not all 0, got {self.weights}")
        if self.size is not None and self.size < 1:
            raise ConfigurationError(f"size must be at least 1, got {self.size}")

    def load(self) -> SampleSet:
        """Loads every source.

        Raises:
            DataError: If a source has too few samples for its share and nothing may be repeated.
        """
        weights = self.weights or [1.0] * len(self.sources)
        used = [source for source, weight in zip(self.sources, weights, strict=True) if weight]
        parts, repeated = _without_repeats([source.load() for source in used])
        chain = Chain(parts)
        uids = [uid for part in parts for uid in part.uids]
        picked = [(index, 0) for index in range(len(chain))] if self.weights is None else self._pick(chain, uids)
        result_uids = [copy_uid(uids[index], copy) for index, copy in picked]
        if self.weights is not None:
            order = sorted(range(len(picked)), key=lambda i: shuffle_key(self.seed, f"order {result_uids[i]}"))
            picked, result_uids = [picked[i] for i in order], [result_uids[i] for i in order]
        view = View(SampleSet(chain, uids=uids), [i for i, _ in picked], [copy for _, copy in picked])
        reports = tuple(part.report for part in parts)
        report = ReadReport("mixture", sum(r.read for r in reports), len(view), repeated, reports)
        return SampleSet(view, report, uids=result_uids)

    def _pick(self, chain: Chain, uids: list[str]) -> list[tuple[int, int]]:
        """Returns (position, copy) of each sample taken: whole passes over a source, then part of one."""
        picked = []
        for part, start, count in zip(chain.sets, chain.starts[:-1], self._counts(chain.sets), strict=True):
            passes = -(-count // len(part)) if count else 0
            for copy in range(passes):
                order = sorted(
                    range(start, start + len(part)), key=lambda i: shuffle_key(self.seed, copy_uid(uids[i], copy))
                )
                picked += [(index, copy) for index in order[: count - copy * len(part)]]
        return picked

    def _counts(self, parts: tuple[SampleSet, ...]) -> list[int]:
        weights = [weight for weight in self.weights or [] if weight]
        shares = [weight / sum(weights) for weight in weights]
        # floor of a float quotient may fall one short: 3 / 0.3 is 10, 0.3 * 10 is 3
        largest = min(math.floor(len(part) / share + 1e-9) for part, share in zip(parts, shares, strict=True) if share)
        size = largest if self.size is None else self.size
        if size == 0:
            raise DataError(
                "a source with a weight above 0 has no samples of its own; take it out or set its weight to 0"
            )
        counts = _apportion(shares, size)
        for part, count in zip(parts, counts, strict=True):
            if count > len(part) and not (self.repeat and len(part)):
                raise DataError(
                    f"a mixture of {size} takes {count} samples of {part.report.source}, which has {len(part)}; set "
                    f"size to {largest} or less, change the weights, or set repeat=true"
                )
        return counts


def _apportion(shares: list[float], size: int) -> list[int]:
    """Returns whole numbers that sum to `size`, each `share * size` rounded down or up (largest remainders up)."""
    exact = [share * size for share in shares]
    counts = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for index in by_remainder[: size - sum(counts)]:
        counts[index] += 1
    return counts


def _without_repeats(parts: list[SampleSet]) -> tuple[list[SampleSet], tuple[Drop, ...]]:
    """Leaves out of each set what an earlier one has; reported rows count on from set to set."""
    seen: set[str] = set()
    unique, dropped, start = [], [], 0
    for part in parts:
        kept = []
        for index, uid in enumerate(part.uids):
            if uid in seen:
                message = f"{part.report.source}: uid {uid} is in an earlier source of the mixture"
                dropped.append(Drop(start + index, uid, DropReason.DUPLICATE, message))
            else:
                kept.append(index)
        seen.update(part.uids)
        start += len(part)
        report = replace(part.report, kept=len(kept))
        unique.append(part if len(kept) == len(part) else part.select(kept, report))
    return unique, tuple(dropped)
