# SPDX-License-Identifier: Apache-2.0
"""Data sets that say what they are: a saved folder with a data card and its provenance."""

from __future__ import annotations

import datetime
import json
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medvlt import __version__
from medvlt.console import tracked
from medvlt.data.decode import image_size
from medvlt.data.drops import DropReason, ReadReport
from medvlt.data.files import check_target
from medvlt.data.images import ImageLimits, image_token_count
from medvlt.data.samples import SampleSet, uids_fingerprint
from medvlt.data.writers import write_saved
from medvlt.errors import DataError

CARD, PROVENANCE, DROPS = "README.md", "provenance.json", "drops.jsonl"
"""Names of the files that lie beside the rows."""

NOTICE = "Research software, not for clinical use."

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$&])")
_COPY = re.compile(r"(.*)#\d+", re.DOTALL)  # see `medvlt.data.samples.copy_uid`
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class Spread:
    """How some whole numbers are spread.

    Attributes:
        count: How many numbers there are.
        least: The smallest.
        median: The middle one; of two, the mean.
        high: 95% of the numbers are at most this, between two of them by linear interpolation.
        most: The largest.
        mean: Their mean.
    """

    count: int
    least: int
    median: float
    high: float
    most: int
    mean: float

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread:
        """Returns the spread of at least one number."""
        numbers = np.asarray(values)
        median, high = np.quantile(numbers, (0.5, 0.95))
        return cls(
            len(numbers), int(numbers.min()), float(median), float(high), int(numbers.max()), float(numbers.mean())
        )


@dataclass(frozen=True)
class Facts:
    """What a data card says of a set.

    Attributes:
        questions: Questions in the set.
        fingerprint: See `fingerprint`.
        sources: Counts by `dataset_name`: "questions", "with pictures", "pictures", "with reasoning", "measured" (a
            pass count is known).
        labels: Number of options -> right letter -> questions.
        lengths: Spread of each text's length, in characters and in words.
        pictures: Spread of the sides in pixels and of the tokens that Qwen2.5-VL makes of a picture.
        report: What became of the records.
        left_out: Good questions that were left out on purpose, by reason; see `left_out`. What no report tells of is
            "not chosen by the source", such as what a `Subset` or a weighted `Mixture` cuts.
    """

    questions: int
    fingerprint: str
    sources: Mapping[str, Mapping[str, int]]
    labels: Mapping[int, Mapping[str, int]]
    lengths: Mapping[str, Spread]
    pictures: Mapping[str, Spread]
    report: ReadReport
    left_out: Mapping[str, int]

    def summary(self) -> str:
        """Returns the card in a few lines for a terminal."""
        sources = ", ".join(f"{name} {counts['questions']:,}" for name, counts in self.sources.items())
        labels: Counter[str] = Counter()
        for counts in self.labels.values():
            labels.update(counts)
        shares = ", ".join(f"{label} {labels[label] / self.questions:.1%}" for label in sorted(labels))
        lines = [
            f"{self.questions:,} questions: {sources}",
            f"right letter: {shares}",
            f"fingerprint {self.fingerprint}",
        ]
        if sides := self.pictures.get("longer side (pixels)"):
            lines.insert(2, f"{sides.count:,} pictures, longer side {sides.least} to {sides.most} pixels")
        reasons = [*self.report.drops.most_common(), *self.left_out.items()]
        if reasons:
            words = ", ".join(f"{reason} {count:,}" for reason, count in reasons)
            lines.append(f"left out of {records_read(self.report):,} records: {words}")
        return "\n".join(lines)


def describe(samples: SampleSet) -> Facts:
    """Counts and measures a set, one question at a time; of pictures only the headers are read.

    Raises:
        DataError: If a picture cannot be read any more.
    """
    limits = ImageLimits()
    sources: defaultdict[str, Counter[str]] = defaultdict(Counter)
    labels: defaultdict[int, Counter[str]] = defaultdict(Counter)
    numbers: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
    pictures: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
    for index in tracked(range(len(samples)), "describing", len(samples)):
        sample = samples[index]
        counts = sources[sample.dataset_name or "(no name)"]
        counts["questions"] += 1
        counts["pictures"] += len(sample.images)
        counts["with pictures"] += bool(sample.images)
        counts["with reasoning"] += sample.reasoning is not None
        counts["measured"] += sample.pass_count >= 0
        labels[len(sample.options)][sample.answer_label or "(open)"] += 1
        texts = [("question", sample.question), *(("option", text) for text in sample.options.values())]
        for name, text in (*texts, *([("reasoning", sample.reasoning)] if sample.reasoning else [])):
            numbers[f"{name} (characters)"].append(len(text))
            numbers[f"{name} (words)"].append(len(text.split()))
        for image in sample.images:
            width, height = image_size(image)
            pictures["longer side (pixels)"].append(max(width, height))
            pictures["shorter side (pixels)"].append(min(width, height))
            pictures["tokens (28 x 28 pixels)"].append(image_token_count(width, height, limits))
    return Facts(
        questions=len(samples),
        fingerprint=uids_fingerprint(samples.uids),
        sources={name: dict(counts) for name, counts in sources.items()},
        labels={number: dict(labels[number]) for number in sorted(labels)},
        lengths={name: Spread.of(values) for name, values in numbers.items()},
        pictures={name: Spread.of(values) for name, values in pictures.items()},
        report=samples.report,
        left_out=_left_out(samples),
    )


def data_card(facts: Facts, *, title: str, provenance: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """Returns a data card in Markdown, with the header that the Hugging Face Hub reads.

    Args:
        facts: What `describe` found.
        title: Name of the set.
        provenance: How it was made; anything that JSON can hold, the rest as text.
        notes: What a user of the set should know, one sentence each.
    """
    from huggingface_hub import DatasetCardData

    pictures = any(counts["pictures"] for counts in facts.sources.values())
    header = DatasetCardData(
        pretty_name=title,
        task_categories=["visual-question-answering" if pictures else "multiple-choice"],
        size_categories=[next((name for limit, name in _SIZES if facts.questions < limit), "n>1M")],
        tags=["medical", "medvlt"],
    )
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# {cell(title)}",
        f"{NOTICE} {facts.questions:,} questions, fingerprint `{facts.fingerprint}`. Read it with "
        "`datasets.load_from_disk`, or in a configuration with `SavedDataset`.",
    ]
    if notes:
        parts += ["## Notes", "\n".join(f"- {cell(note)}" for note in notes)]
    columns = ("questions", "with pictures", "pictures", "with reasoning", "measured")
    sources = [(name, *(counts[column] for column in columns)) for name, counts in facts.sources.items()]
    parts += [
        "## Sources",
        markdown_table(("source", *columns), sources),
        "Measured: a pass count is known.",
        "## Right letters",
        *(_label_table(number, labels) for number, labels in facts.labels.items()),
        "## Lengths",
        _spreads(facts.lengths),
    ]
    if facts.pictures:
        parts += ["## Pictures", _spreads(facts.pictures)]
    parts += ["## Left out", *_what_was_left_out(facts), "## Provenance", f"```json\n{_json(provenance)}\n```"]
    return "\n\n".join(parts) + "\n"


def write_dataset(
    samples: SampleSet,
    output: str | Path,
    *,
    title: str,
    provenance: Mapping[str, Any],
    notes: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> Facts:
    """Writes a set as a folder for `datasets.load_from_disk`, with README.md, provenance.json and, if any, drops.jsonl.

    All of it appears at once: a failed run leaves nothing under that name, nor harms what was there. Nor does a killed
    one, but for the moment of a replacement in which the old set is gone and the new one not yet in its place; the
    hidden copies that it leaves beside the folder are removed when the same name is written again.

    Args:
        samples: The questions; they are read one at a time.
        output: The folder.
        title: Name of the set.
        provenance: How it was made: source, settings, seeds, counts.
        notes: What a user of the set should know, one sentence each.
        files: Further files by name, such as a histogram.
        overwrite: Whether a saved data set that lies there may be replaced.

    Returns:
        What the card says.

    Raises:
        DataError: If there is no question, or the folder exists or cannot be written.
    """
    output = Path(output)
    refuse_existing(output, overwrite=overwrite)
    if output.is_file():
        raise DataError(f"expected the name of a folder, but {output} is a file; choose another path")
    if not len(samples):
        raise DataError(f"{samples.report.source}: no question is left to write to {output}; check what was asked for")
    facts = describe(samples)
    report = facts.report
    record = {
        "title": title,
        "notice": NOTICE,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "medvlt": __version__,
        "questions": facts.questions,
        "fingerprint": facts.fingerprint,
        "sources": {name: counts["questions"] for name, counts in facts.sources.items()},
        "read": records_read(report),
        "dropped": {reason.value: count for reason, count in report.drops.most_common()},
        "left_out": dict(facts.left_out),
        "notes": list(notes),
        "provenance": provenance,
    }
    extra = {
        CARD: data_card(facts, title=title, provenance=provenance, notes=notes).encode("utf-8", "backslashreplace"),
        PROVENANCE: (_json(record) + "\n").encode("utf-8", "backslashreplace"),  # paths hold any bytes
    }
    if report.drops:
        extra[DROPS] = "".join(report.drop_lines()).encode()
    if taken := sorted(extra.keys() & (files or {}).keys()):
        raise DataError(f"expected other names than {', '.join(extra)} for further files, got {', '.join(taken)}")
    write_saved(samples, output, files=extra | dict(files or {}), overwrite=overwrite)
    return facts


def announce(facts: Facts, output: str | Path) -> None:
    """Prints what was written and where; the end of every command that writes a set."""
    said = f"{facts.summary()}\nwritten to {output}, data card {Path(output) / CARD}\n{NOTICE}"
    print(said.encode("utf-8", "backslashreplace").decode())


def refuse_existing(output: Path, *, overwrite: bool) -> None:
    """Fails before hours of work rather than after them.

    Raises:
        DataError: If `output` has no name, or exists and may not be replaced.
    """
    check_target(output, overwrite=overwrite)


def left_out(report: ReadReport) -> Counter[str]:
    """Returns how many good questions were left out on purpose, by reason, as `SelectionReport` tells; parts included.

    What cannot be used is in `report.drops` instead.
    """
    counts: Counter[str] = Counter(getattr(report, "left_out", {}))  # its class imports this module
    for part in report.parts:
        counts.update(left_out(part))
    return counts


def records_read(report: ReadReport) -> int:
    """Returns how many stored records a set was made of: those of its parts, if it has any."""
    return sum(map(records_read, report.parts)) if report.parts else report.read


def cell(value: object, limit: int = 300) -> str:
    """Returns a text that Markdown shows as it is, in one line, cut to `limit` characters."""
    text = " ".join("".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in str(value)).split())
    return _SPECIAL.sub(r"\\\1", text if len(text) <= limit else f"{text[:limit]} ...")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table; columns that begin with a number stand at the right, texts are shown as they are."""
    rows = list(rows)
    sides = ["---:" if isinstance(value, int | float) else "---" for value in (rows[0] if rows else head)]
    lines = [head, sides, *rows]
    return "\n".join("| " + " | ".join(_shown(value) for value in line) + " |" for line in lines)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else cell(value)


def _label_table(number: int, labels: Mapping[str, int]) -> str:
    total = sum(labels.values())
    names = sorted(labels)
    return markdown_table(
        ("options", "questions", *names), [(str(number), total, *(f"{labels[name] / total:.1%}" for name in names))]
    )


def _spreads(spreads: Mapping[str, Spread]) -> str:
    head = ("what", "number", "least", "median", "95%", "most", "mean")
    return markdown_table(head, [(name, *asdict(spread).values()) for name, spread in spreads.items()])


def _left_out(samples: SampleSet) -> dict[str, int]:
    """Returns what was left out on purpose, commonest first, the unexplained rest among it."""
    report, known = samples.report, set(samples.uids)
    counts = left_out(report)
    repeats = sum((found := _COPY.fullmatch(uid)) is not None and found[1] in known for uid in samples.uids)
    rest = records_read(report) - report.drops.total() - counts.total() - (len(samples) - repeats)
    if rest > 0:
        counts["not chosen by the source"] += rest
    return dict(counts.most_common())


def _what_was_left_out(facts: Facts) -> list[str]:
    report, drops, chosen = facts.report, facts.report.drops, facts.left_out
    said = f"{records_read(report):,} records read from {cell(report.source)}, {drops.total():,} could not be used."
    if chosen:
        said += f" {sum(chosen.values()):,} were left out on purpose: "
        said += ", ".join(f"{cell(reason)} {count:,}" for reason, count in chosen.items()) + "."
    if not drops:
        return [said]
    first: dict[DropReason, str] = {}
    for _, drop in report.all_dropped():
        first.setdefault(drop.reason, f"row {drop.row}: {drop.message}")
    rows = [(reason.value, count, first[reason]) for reason, count in drops.most_common()]
    return [said, markdown_table(("reason", "records", "first"), rows), f"Every one is in `{DROPS}`."]


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)
