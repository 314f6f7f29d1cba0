# SPDX-License-Identifier: Apache-2.0
"""Which questions of a set are neither too hard nor too easy for a probed model, and in which order they come."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from medvlt.curation.ledger import Ledger, Probe
from medvlt.curation.probe import accepted_graders
from medvlt.data.drops import ReadReport
from medvlt.data.samples import BuiltSamples, SampleSet, Source, shuffle_key, uids_fingerprint
from medvlt.errors import ConfigurationError, DataError
from medvlt.types import Sample

logger = logging.getLogger(__name__)

Count: TypeAlias = Literal["strict", "robust"]
"""Which grader's pass count."""

Unmeasured: TypeAlias = Literal["drop", "keep", "refuse"]
"""What becomes of questions without a pass count."""

Order: TypeAlias = Literal["source", "shuffled", "easy_to_hard", "hard_to_easy"]
"""Order of the questions."""

NOT_MEASURED, FAILED, BELOW, ABOVE = "not measured", "completions failed", "below the band", "above the band"
"""Why a question is left out; the other reason is a mark, `marked {name}`."""


@dataclass(frozen=True)
class Selection:
    """Questions that a probed model answers right neither too seldom nor too often.

    The defaults are the reference's: the pass count of its own strict grader, 1 to 7 of 16, both included. A question
    is not measured if the ledger has no counts of it, or if some of its completions failed. A set of which too few
    questions are measured is refused: the ledger is of another set, or its probe mostly failed. A question that was
    never examined for a mark does not have it; the log says how many these are.

    Args:
        ledger: The ledger file.
        probe: Whose counts; null if the ledger has only one.
        count: "strict", by the grader of the reference's pass counts, or "robust", which also reads answers in another
            dress than the asked one.
        low: Smallest count that stays.
        high: Largest count that stays.
        unmeasured: "drop" leaves out what is not measured, as the reference does; "keep" keeps it, with pass count -1,
            behind all others if the order is by difficulty; "refuse" makes it an error.
        order: "source" keeps the source's order, "easy_to_hard" is by falling and "hard_to_easy" by rising count.
        seed: Of the order "shuffled" and of that among equal counts; the order follows from it and the uids alone.
        without_marks: Leave out questions that have one of these marks; on a command line '[one_mark, another]'.
        accept_grader_version: Version of older grading rules whose counts are good enough.
        min_measured: Share of the questions that must be measured, in [0, 1], whatever becomes of the others. (The
            reference trained without 9 of 23,465.)
    """

    ledger: str | Path
    probe: str | None = None
    count: Count = "strict"
    low: int = 1
    high: int = 7
    unmeasured: Unmeasured = "drop"
    order: Order = "source"
    seed: int = 42
    without_marks: list[str] = field(default_factory=list)
    accept_grader_version: str | None = None
    min_measured: float = 0.95

    def __post_init__(self) -> None:
        for name, value, known in (
            ("count", self.count, get_args(Count)),
            ("unmeasured", self.unmeasured, get_args(Unmeasured)),
            ("order", self.order, get_args(Order)),
        ):
            if value not in known:
                raise ConfigurationError(f"selection: {name} must be one of {', '.join(known)}, got {value!r}")
        if not 0 <= self.low <= self.high:
            raise ConfigurationError(f"selection: expected 0 <= low <= high, got low={self.low} and high={self.high}")
        if not 0 <= self.min_measured <= 1:
            raise ConfigurationError(f"selection: min_measured must be in [0, 1], got {self.min_measured}")

    def apply(self, samples: SampleSet) -> SampleSet:
        """Returns the selected samples with their pass counts, without building any; logs what was left out.

        Raises:
            DataError: If the ledger does not fit the samples or the selection, or nothing is left.
        """
        return self.decide(samples).selected

    def decide(self, samples: SampleSet) -> Decision:
        """Returns what the selection takes and leaves; see `apply`."""
        ledger = Ledger.read(self.ledger)
        probe = chosen_probe(ledger, self.probe, self.ledger)
        check_band(self.low, self.high, probe, self.ledger)
        asked, failed = ledger.column(f"{probe.name}/n"), ledger.column(f"{probe.name}/errors")
        counts = ledger.column(f"{probe.name}/{self.count}")
        measured = {uid: int(counts[uid]) for uid in samples.uids if uid in asked and not failed[uid]}
        self._check_measured(samples, probe, asked.keys(), len(measured))
        graders = ledger.column(f"{probe.name}/grader")
        what = f"pass counts of probe {probe.name!r} in {self.ledger}"
        accepted_graders(what, (graders[uid] for uid in measured), self.accept_grader_version)
        marks = {name: ledger.column(f"mark/{name}") for name in self._known_marks(ledger)}
        reasons = {uid: self._reason(uid, measured, asked, marks) for uid in samples.uids}
        unmeasured = [uid for uid in samples.uids if uid not in measured]
        if self.unmeasured == "refuse" and unmeasured:
            raise DataError(
                f"{samples.report.source}: {len(unmeasured)} of {len(samples)} questions have no pass count by probe "
                f"{probe.name!r}, such as {', '.join(unmeasured[:3])}; probe them, or set unmeasured=drop or keep"
            )
        unexamined = {name: sum(uid not in found for uid in samples.uids) for name, found in marks.items()}
        decision = Decision(self, ledger, probe, samples, measured, reasons, unexamined)
        decision.log()
        return decision

    def ordered(self, uids: Sequence[str], chosen: list[int], counts: Mapping[str, int]) -> list[int]:
        """Returns chosen positions in the order of the selection.

        Args:
            uids: Of all samples.
            chosen: Positions in `uids`, in the source's order.
            counts: Uid to pass count.
        """
        if self.order == "source":
            return chosen
        sign = {"shuffled": 0, "easy_to_hard": -1, "hard_to_easy": 1}[self.order]

        def key(index: int) -> tuple[bool, int, bytes]:
            uid = uids[index]
            return bool(sign) and uid not in counts, sign * counts.get(uid, 0), shuffle_key(self.seed, uid)

        return sorted(chosen, key=key)

    def _reason(
        self,
        uid: str,
        measured: Mapping[str, int],
        asked: Mapping[str, int],
        marks: Mapping[str, Mapping[str, bool]],
    ) -> str | None:
        for name, found in marks.items():
            if found.get(uid, False):
                return f"marked {name}"
        if uid not in measured:
            return None if self.unmeasured == "keep" else FAILED if uid in asked else NOT_MEASURED
        return BELOW if measured[uid] < self.low else ABOVE if measured[uid] > self.high else None

    def _check_measured(self, samples: SampleSet, probe: Probe, asked: Container[str], measured: int) -> None:
        if not len(samples) or measured / len(samples) >= self.min_measured:  # a product would round up at 0.07 * 100
            return
        known = sum(uid in asked for uid in samples.uids)
        raise DataError(
            f"probe {probe.name!r} of {self.ledger} measured {measured} of the {len(samples)} questions of "
            f"{samples.report.source} ({measured / len(samples):.1%}), and min_measured={self.min_measured} asks for "
            f"{self.min_measured:.1%}. It was asked {probe.questions} questions (fingerprint {probe.fingerprint}; this "
            f"set's is {uids_fingerprint(samples.uids)}), {known} of these {len(samples)} among them, of which "
            f"{known - measured} have completions that failed. Name the ledger of this set, or probe the whole set: "
            "run its `medvlt predict` again, nothing that its completion store has is sampled anew; or set a lower "
            "min_measured"
        )

    def _known_marks(self, ledger: Ledger) -> list[str]:
        if unknown := [name for name in self.without_marks if name not in ledger.marks]:
            raise DataError(
                f"{self.ledger} has no mark {unknown[0]!r}; it has: {', '.join(ledger.marks) or 'none'}; "
                "`medvlt data quality` makes marks"
            )
        return self.without_marks


@dataclass(frozen=True, slots=True)
class SelectionReport(ReadReport):
    """Report of a selected set.

    Attributes:
        left_out: Number of questions by the reason for which they were left out.
    """

    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What a selection takes and leaves.

    Attributes:
        selection: The selection.
        ledger: Its ledger.
        probe: Whose counts were used.
        samples: All questions.
        counts: Uid to pass count, of the measured ones.
        reasons: Uid to why it is left out, None if it stays.
        unexamined: Mark to the number of questions never examined for it.
    """

    selection: Selection
    ledger: Ledger
    probe: Probe
    samples: SampleSet
    counts: Mapping[str, int]
    reasons: Mapping[str, str | None]
    unexamined: Mapping[str, int]

    @property
    def left_out(self) -> Counter[str]:
        """Number of questions by reason."""
        return Counter(reason for reason in self.reasons.values() if reason is not None)

    @cached_property
    def selected(self) -> SampleSet:
        """The selected samples."""
        uids, source = self.samples.uids, self.samples.report.source
        chosen = [index for index, uid in enumerate(uids) if self.reasons[uid] is None]
        if not chosen:
            reasons = ", ".join(f"{reason} {number}" for reason, number in self.left_out.most_common())
            raise DataError(
                f"{source}: the selection leaves none of {len(uids)} questions ({reasons}); widen the band or choose "
                "another count; `medvlt data histogram` shows the pass counts"
            )
        picked = self.samples.select(self.selection.ordered(uids, chosen, self.counts))
        counted = WithPassCounts(picked, [self.counts.get(uid, -1) for uid in picked.uids])
        report = SelectionReport(
            f"{source}, {self.in_words}", len(uids), len(picked), parts=(self.samples.report,), left_out=self.left_out
        )
        return SampleSet(counted, report, uids=picked.uids)

    @property
    def in_words(self) -> str:
        """The selection in a few words."""
        chosen = self.selection
        return f"{chosen.low} to {chosen.high} of {self.probe.n} right by {self.probe.name} ({chosen.count})"

    def log(self) -> None:
        """Says what was left out; as a warning where something was not known."""
        kept = len(self.reasons) - self.left_out.total()
        parts = [f"{number} {reason}" for reason, number in self.left_out.most_common()]
        parts += [
            f"{number} never examined for mark {name} (kept)" for name, number in self.unexamined.items() if number
        ]
        unknown = len(self.counts) < len(self.reasons) or any(self.unexamined.values())
        logger.log(
            logging.WARNING if unknown else logging.INFO,
            "%s, %s: %d of %d questions stay; left out: %s",
            self.samples.report.source, self.in_words, kept, len(self.reasons), ", ".join(parts) or "none",
        )  # fmt: skip


class WithPassCounts(BuiltSamples):
    """Samples with pass counts, set when they are asked for.

    Args:
        samples: The samples.
        counts: One per sample, -1 for not measured.
    """

    def __init__(self, samples: SampleSet, counts: Sequence[int]) -> None:
        self.samples = samples
        self.counts = tuple(counts)

    def __len__(self) -> int:
        return len(self.counts)

    def build(self, index: int) -> Sample:
        """Returns a sample with its pass count."""
        return replace(self.samples[index], pass_count=self.counts[index])

    def light(self, index: int) -> Sample:
        """See `medvlt.data.samples.LightAccess`."""
        return replace(self.samples.light(index), pass_count=self.counts[index])


@dataclass(frozen=True)
class Selected(Source):
    """A source of which a selection is taken.

    Args:
        source: The source.
        selection: By which ledger, and what stays.
    """

    source: Source
    selection: Selection

    def load(self) -> SampleSet:
        """Loads the source and selects; see `Selection.apply`."""
        return self.selection.apply(self.source.load())


def check_band(low: int, high: int, probe: Probe, path: str | Path) -> None:
    """Raises DataError unless a band lies within the pass counts that a probe can have.

    Args:
        low: Smallest count.
        high: Largest count.
        probe: The probe.
        path: Of its ledger, for the message.
    """
    if not 0 <= low <= high <= probe.n:
        raise DataError(
            f"the band {low} to {high} is not within 0 to {probe.n}, the completions of each question in probe "
            f"{probe.name!r} of {path}; change low and high"
        )


def chosen_probe(ledger: Ledger, name: str | None, path: str | Path) -> Probe:
    """Returns the named probe, or the only one.

    Args:
        ledger: The ledger.
        name: Name of the probe; None for the only one.
        path: Of the ledger, for the message.

    Raises:
        DataError: If there is no such probe, or several and none is named.
    """
    if name is None and len(ledger.probes) == 1:
        return next(iter(ledger.probes.values()))
    if name is None or name not in ledger.probes:
        wanted = "no probe is named" if name is None else f"there is no probe {name!r}"
        raise DataError(f"{path}: {wanted}; set probe to one of: {', '.join(ledger.probes) or '(it has none)'}")
    return ledger.probes[name]
