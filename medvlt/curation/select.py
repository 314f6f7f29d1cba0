# SPDX-License-Identifier: Apache-2.0
"""The commands around pass counts: questions of a band of difficulty as a data set on disk, and the counts shown."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from medvlt.console import wide_console
from medvlt.curation.card import announce, refuse_existing, write_dataset
from medvlt.curation.histogram import NO_NAME, by_source, histogram_png, histogram_table
from medvlt.curation.ledger import Ledger, Probe
from medvlt.curation.selection import Count, Decision, Selection, check_band, chosen_probe
from medvlt.data.drops import ReadReport
from medvlt.data.files import file_sha256, replacing
from medvlt.data.samples import Source, uids_fingerprint
from medvlt.errors import DataError, MissingExtraError
from medvlt.rewards.grade import GRADER_VERSION

logger = logging.getLogger(__name__)


def select(
    source: Source, selection: Selection, output: Path, title: str | None = None, overwrite: bool = False
) -> None:
    """Writes the questions of a band of difficulty as a data set, with what they were chosen by.

    Prints what became of each source and the histogram of pass counts, which also goes into the folder as
    `pass_counts.png`.

    Args:
        source: The questions.
        selection: By which ledger, and what stays; the same settings as in the YAML of a training.
        output: Folder of the new data set; `SavedDataset` and `datasets.load_from_disk` read it.
        title: Of the data card; by default the name of the folder.
        overwrite: Whether a data set that is there may be replaced.
    """
    refuse_existing(output, overwrite=overwrite)
    band, count = (selection.low, selection.high), selection.count
    decision = selection.decide(source.load())
    selected = decision.selected
    samples = decision.samples
    names = {uid: samples.light(index).dataset_name or NO_NAME for index, uid in enumerate(samples.uids)}
    bins = by_source(decision.counts, names, decision.probe.n)
    console = wide_console()
    console.print(_sources_table(decision, names))
    console.print(histogram_table(bins, f"{decision.probe.name}, {count} count.", band))
    files: dict[str, bytes] = {}
    try:
        files["pass_counts.png"] = histogram_png(bins, f"{decision.probe.answered_by}, {count} count", band)
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


def histogram(
    ledger: Path,
    probe: str | None = None,
    count: Count = "strict",
    low: int | None = None,
    high: int | None = None,
    png: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Prints how many questions were answered right how often.

    Args:
        ledger: The ledger file.
        probe: Whose counts; all probes if left out.
        count: "strict", by the grader of the reference's pass counts, or "robust".
        low: Smallest count of a band to be marked; by default there is none.
        high: Its largest count.
        png: Picture to write, of one probe.
        overwrite: Whether it may replace a file.
    """
    if png is not None:
        if png.resolve() == ledger.resolve():
            raise DataError(f"the picture would take the place of the ledger {ledger}; choose another png")
        refuse_existing(png, overwrite=overwrite)
    read = Ledger.read(ledger)
    chosen = list(read.probes.values()) if probe is None and png is None else [chosen_probe(read, probe, ledger)]
    if not chosen:
        raise DataError(f"{ledger} has no probe; `medvlt predict` adds one")
    bands = {one.name: _band(low, high, one, ledger) for one in chosen}
    names = read.column("dataset_name")
    for one in chosen:
        failed = read.column(f"{one.name}/errors")
        counts = {uid: n for uid, n in read.column(f"{one.name}/{count}").items() if not failed[uid]}
        if not counts:
            raise DataError(f"probe {one.name!r} of {ledger} has no question whose {one.n} completions all exist")
        bins = by_source(counts, names, one.n)
        title = f"{one.name} ({one.answered_by}, {one.prompt}), {count} count."
        wide_console().print(histogram_table(bins, title, bands[one.name]))
        if len(counts) < one.questions:
            print(f"{one.questions - len(counts)} questions with failed completions are left out")
        if png is not None:
            picture = histogram_png(bins, f"{one.answered_by}, {count} count", bands[one.name])
            with replacing(png, overwrite=True) as temporary:
                temporary.write_bytes(picture)


def _band(low: int | None, high: int | None, probe: Probe, path: Path) -> tuple[int, int] | None:
    if low is None and high is None:
        return None
    band = (0 if low is None else low, probe.n if high is None else high)
    check_band(*band, probe, path)
    return band


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
        "source_fingerprint": uids_fingerprint(decision.samples.uids),
        "ledger": {"path": str(path), "sha256": file_sha256(path)},
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
