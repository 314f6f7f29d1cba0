# SPDX-License-Identifier: Apache-2.0
"""Sets of samples: what a source gives, and what it is asked for."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Protocol, overload, runtime_checkable

from medvlt.data.drops import ReadReport
from medvlt.types import Sample


@runtime_checkable
class Source(Protocol):
    """Something that gives samples; named in YAML by the class and its settings.

    Classes name it as their base, so that the command line finds them under their short names.
    """

    def load(self) -> SampleSet:
        """Reads and checks the samples: the same set, in the same order, at every call and on every rank."""
        ...


@runtime_checkable
class LightAccess(Protocol):
    """A sequence that can give a sample without reading its pictures."""

    def light(self, index: int) -> Sample:
        """Returns the sample at a position, from 0, with or without its pictures."""
        ...


class SampleSet(Sequence[Sample]):
    """Samples in a fixed order, with the report of the read.

    Holds what it is given and builds nothing ahead, so it is as lazy as `samples`, and can be sent to the workers of a
    loader if `samples` can.

    Args:
        samples: The samples, or a sequence that builds them when asked.
        report: What became of the records; by default all are taken to have been kept.
        uids: Uid of each sample, if at hand; otherwise found when first asked for.
    """

    def __init__(
        self, samples: Sequence[Sample], report: ReadReport | None = None, *, uids: Sequence[str] | None = None
    ) -> None:
        self._samples = samples
        self._uids = None if uids is None else tuple(uids)
        self.report = report or ReadReport(source="memory", read=len(samples), kept=len(samples))

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> SampleSet: ...

    def __getitem__(self, index: int | slice) -> Sample | SampleSet:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return self._samples[_from_start(index, len(self))]

    def light(self, index: int) -> Sample:
        """Returns a sample that may lack its pictures: the cheap way to look at text and labels.

        Args:
            index: Position, from 0.
        """
        return self._samples.light(index) if isinstance(self._samples, LightAccess) else self._samples[index]

    @property
    def uids(self) -> tuple[str, ...]:
        """Uid of each sample, in order."""
        if self._uids is None:
            self._uids = tuple(self.light(index).uid for index in range(len(self)))
        return self._uids

    def select(self, indices: Iterable[int], report: ReadReport | None = None) -> SampleSet:
        """Returns the samples at these positions, in this order, without building them.

        Args:
            indices: Positions, from 0.
            report: Report of the new set; by default this set's own.
        """
        view = View(self, indices)
        return SampleSet(
            view, report or replace(self.report, kept=len(view)), uids=[self.uids[i] for i in view.indices]
        )


class View(Sequence[Sample]):
    """Some samples of another sequence, possibly several times.

    Args:
        base: The sequence looked into.
        indices: Positions in `base`, from 0.
        copies: For each position, 0 for the first time a sample appears, 1 for the second, and so on. The uid of copy
            c > 0 ends in `#{c + 1}`, so that uids stay unique. By default nothing is a copy.
    """

    def __init__(self, base: SampleSet, indices: Iterable[int], copies: Iterable[int] | None = None) -> None:
        self.base = base
        self.indices = array("q", indices)
        self.copies = None if copies is None else array("q", copies)

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> View: ...

    def __getitem__(self, index: int | slice) -> Sample | View:
        if isinstance(index, slice):
            return View(self.base, self.indices[index], None if self.copies is None else self.copies[index])
        return self._named(self.base[self.indices[index]], index)

    def light(self, index: int) -> Sample:
        """See `LightAccess`."""
        return self._named(self.base.light(self.indices[index]), index)

    def _named(self, sample: Sample, index: int) -> Sample:
        if self.copies is None or self.copies[index] == 0:
            return sample
        return replace(sample, uid=copy_uid(sample.uid, self.copies[index]))


class BuiltSamples(Sequence[Sample]):
    """Samples that are built at every access; a subclass has a length and says how one is built."""

    @abstractmethod
    def build(self, index: int) -> Sample:
        """Returns the sample at a position, from 0 to the length - 1."""

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self.build(i) for i in range(*index.indices(len(self)))]
        return self.build(_from_start(index, len(self)))


class Chain(BuiltSamples):
    """Sets one after the other.

    Args:
        sets: The sets, in order.
    """

    def __init__(self, sets: Sequence[SampleSet]) -> None:
        self.sets = tuple(sets)
        self.starts = (0, *accumulate(len(part) for part in self.sets))

    def __len__(self) -> int:
        return self.starts[-1]

    def build(self, index: int) -> Sample:
        """Returns the sample of the set that holds the position."""
        part, position = self._locate(index)
        return part[position]

    def light(self, index: int) -> Sample:
        """See `LightAccess`."""
        part, position = self._locate(index)
        return part.light(position)

    def _locate(self, index: int) -> tuple[SampleSet, int]:
        number = bisect_right(self.starts, index) - 1
        return self.sets[number], index - self.starts[number]


def copy_uid(uid: str, copy: int) -> str:
    """Returns the uid of a repeat: the uid itself for copy 0, else with `#{copy + 1}` behind it."""
    return f"{uid}#{copy + 1}" if copy else uid


def uids_fingerprint(uids: Iterable[str]) -> str:
    """Returns 16 hex digits that name a set of questions, whatever their order.

    They are the first of SHA-256 over the sorted uids, each followed by a newline.

    Example:
        >>> uids_fingerprint(["b", "a"]) == uids_fingerprint(["a", "b"]) != uids_fingerprint(["a"])
        True
    """
    digest = hashlib.sha256()
    for uid in sorted(uids):
        digest.update(uid.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:16]


def shuffle_key(seed: int, uid: str) -> bytes:
    """Returns a key to sort by: a random order that depends on (seed, uid) alone, so not on how a set is stored."""
    return hashlib.sha256(f"{seed}\x1f{uid}".encode("utf-8", "surrogatepass")).digest()


def _from_start(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(f"position {index} in a set of {length} samples")
    return index % length
