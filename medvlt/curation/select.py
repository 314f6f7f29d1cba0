# SPDX-License-Identifier: Apache-2.0
"""Questions of a band of difficulty: as a source for training, and as a data set on disk; and the pass counts shown."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medvlt.curation.card import announce, fingerprint, refuse_existing, write_dataset
from medvlt.curation.histogram import by_source, histogram_png, histogram_table
from medvlt.curation.ledger import Ledger
from medvlt.curation.selection import Count, Decision, Order, Selection, Unmeasured, chosen_probe
from medvlt.data.drops import ReadReport
from medvlt.data.files import replacing
from medvlt.data.samples import SampleSet, Source
from medvlt.errors import DataError, MissingExtraError
from medvlt.rewards.grade import GRADER_VERSION

__all__ = ["Selected", "Selection", "select", "show"]

logger = logging.getLogger(__name__)


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


def select(
    source: Source,
    ledger: Path,
    output: Path,
    probe: str | None = None,
    count: Count = "strict",
    low: int = 1,
    high: int = 7,
    unmeasured: Unmeasured = "drop",
    order: Order = "source",
    seed: int = 42,
    without_marks: tuple[str, ...] = (),
    accept_grader_version: str | None = None,
    title: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the questions of a band of difficulty as a data set, with what they were chosen by.

    Prints what became of each source and the histogram of pass counts, which also goes into the folder as
    `pass_counts.png`.

    Args:
        source: The questions.
        ledger: The ledger file that `medvlt predict` wrote.
        output: Folder of the new data set; `SavedDataset` and `datasets.load_from_disk` read it.
        probe: Whose counts; may be left out if the ledger has only one.
        count: "strict", by the grader of the reference's pass counts, or "robust".
        low: Smallest count that stays.
        high: Largest count that stays.
        unmeasured: "drop" leaves out questions without counts, "keep" keeps them, "refuse" makes them an error.
        order: "source", "shuffled", "easy_to_hard" or "hard_to_easy".
        seed: Of the shuffled order, and of that among equal counts.
        without_marks: Leave out questions that have one of these marks.
        accept_grader_version: Version of older grading rules whose counts are good enough.
        title: Of the data card; by default the name of the folder.
        overwrite: Whether a data set that is there may be replaced.
    """
    refuse_existing(output, overwrite=overwrite)
    selection = Selection(
        ledger, probe, count, low, high, unmeasured, order, seed, without_marks, accept_grader_version
    )
    decision = selection.decide(source.load())
    selected = decision.selected
    samples = decision.samples
    names = {uid: samples.light(index).dataset_name or "(no name)" for index, uid in enumerate(samples.uids)}
    bins = by_source(decision.counts, names, decision.probe.n)
    console = _console()
    console.print(_sources_table(decision, names))
    console.print(histogram_table(bins, f"{decision.probe.name}, {count} count.", (low, high)))
    files: dict[str, bytes] = {}
    try:
        files["pass_counts.png"] = histogram_png(bins, f"{decision.probe.model}, {count} count", (low, high))
    except MissingExtraError as error:
        logger.warning("no pass_counts.png: %s", error)
    facts = write_dataset(
        selected,
        output,
        title=title or output.resolve().name,
        provenance=_provenance(decision, source, names),
        notes=[f"Selected: {decision.in_words}.", *_notes(decision)],
        files=files,
        overwrite=overwrite,
    )
    announce(facts, output)


def show(
    ledger: Path,
    probe: str | None = None,
    count: Count = "strict",
    low: int | None = None,
    high: int | None = None,
    png: Path | None = None,
) -> None:
    """Prints how many questions were answered right how often.

    Args:
        ledger: The ledger file.
        probe: Whose counts; all probes if left out.
        count: "strict", by the grader of the reference's pass counts, or "robust".
        low: Smallest count of a band to be marked; by default there is none.
        high: Its largest count.
        png: Picture to write, of one probe.
    """
    read = Ledger.read(ledger)
    chosen = list(read.probes.values()) if probe is None and png is None else [chosen_probe(read, probe, ledger)]
    if not chosen:
        raise DataError(f"{ledger} has no probe; `medvlt predict` adds one")
    names = read.column("dataset_name")
    for one in chosen:
        failed = read.column(f"{one.name}/errors")
        counts = {uid: n for uid, n in read.column(f"{one.name}/{count}").items() if not failed[uid]}
        if not counts:
            raise DataError(f"probe {one.name!r} of {ledger} has no question whose {one.n} completions all exist")
        bins = by_source(counts, names, one.n)
        band = None if low is None and high is None else (low or 0, one.n if high is None else high)
        title = f"{one.name} ({one.model}, {one.prompt}), {count} count."
        _console().print(histogram_table(bins, title, band))
        if len(counts) < one.questions:
            print(f"{one.questions - len(counts)} questions with failed completions are left out")
        if png is not None:
            picture = histogram_png(bins, f"{one.model}, {count} count", band)
            with replacing(png, overwrite=True) as temporary:
                temporary.write_bytes(picture)


def _sources_table(decision: Decision, names: Mapping[str, str]) -> Table:
    table = Table(title=f"{decision.in_words}. Research software, not for clinical use.", title_justify="left")
    reasons = list(decision.left_out)
    for heading in ("source", "questions", *reasons, "stay", "share"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    rows = _by_source(decision, names)
    for name, counts in [*rows.items(), *([("all", sum(rows.values(), Counter()))] if len(rows) > 1 else [])]:
        questions, stay = counts.total(), counts[None]
        left_out = (f"{counts[reason]:,}" for reason in reasons)
        table.add_row(Text(name), f"{questions:,}", *left_out, f"{stay:,}", f"{stay / questions:.1%}")
    return table


def _by_source(decision: Decision, names: Mapping[str, str]) -> dict[str, Counter[str | None]]:
    """Source to the number of questions by the reason for which they are left out; None counts those that stay."""
    rows: dict[str, Counter[str | None]] = {}
    for uid, reason in decision.reasons.items():
        rows.setdefault(names[uid], Counter())[reason] += 1
    return rows


def _provenance(decision: Decision, source: Source, names: Mapping[str, str]) -> dict[str, Any]:
    path = Path(decision.selection.ledger)
    return {
        "source": repr(source),
        "reads": [
            {"source": report.source, "read": report.read, "kept": report.kept}
            for report in _reports(decision.samples.report)
        ],
        "source_fingerprint": fingerprint(decision.samples.uids),
        "ledger": {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        "probe": asdict(decision.probe),
        "grader_version": GRADER_VERSION,
        "selection": asdict(decision.selection) | {"ledger": str(path), "probe": decision.probe.name},
        "left_out": dict(decision.left_out),
        "never_examined_for_mark": dict(decision.unexamined),
        "by_source": {
            name: {"before": counts.total(), "after": counts[None]}
            for name, counts in _by_source(decision, names).items()
        },
    }


def _notes(decision: Decision) -> list[str]:
    counts = ", ".join(f"{number:,} {reason}" for reason, number in decision.left_out.most_common())
    notes = [f"Left out of {len(decision.samples):,} questions: {counts or 'none'}."]
    if decision.selection.order != "source":
        notes.append(f"Order: {decision.selection.order}, seed {decision.selection.seed}.")
    return notes


def _reports(report: ReadReport) -> list[ReadReport]:
    return [report, *(deeper for part in report.parts for deeper in _reports(part))]


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)
