# SPDX-License-Identifier: Apache-2.0
"""PMC-VQA, the recipe's picture questions: read from where it is stored, or built from the original CSV and figures."""

from __future__ import annotations

import csv as csv_format
import os
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from medvlt.curation.card import announce, refuse_existing, write_dataset
from medvlt.curation.figures import MAX_SIDE, MIN_SIDE, FigureShop, ResizeRule
from medvlt.curation.selection import Selection
from medvlt.curation.stored import stored
from medvlt.data.drops import Drop, DropReason, ReadReport, RecordError
from medvlt.data.files import file_sha256
from medvlt.data.readers import ReadChecks, RecordReader
from medvlt.data.samples import SampleSet, Source
from medvlt.data.schema import Record
from medvlt.errors import DataError
from medvlt.types import Sample

DATASET_NAME = "pmc_vqa"

LETTERS = "ABCD"

COLUMNS = ("Figure_path", "Question", "Answer", *(f"Choice {letter}" for letter in LETTERS), "Answer_label")
"""Of the original `train.csv`."""

PUBLISHED_ROWS = 176_948
"""Of that file; 176,896 to 176,917 of them are in the published set."""

FIGURE = "pmc_figure"
"""Key in `Sample.extra`: name of the figure's file, by which questions about the same figure are found."""

STRIPPED = string.whitespace + "'\"\xa0\u200a"
"""Cut from both ends of every text: white space, quotes, no-break space, hair space."""


@dataclass(frozen=True)
class PMCVQA(Source):
    """Questions about figures of medical papers, the recipe's picture set.

    Of stored pictures only the headers are looked at: `build_pmc_vqa` has decoded each. Name a source to change that.

    Args:
        source: A name on the Hub, a folder that `medvlt data build pmc-vqa` wrote, a file, or a source.
        selection: Which questions to keep by difficulty, in which order; null keeps all.
        revision: Commit, branch or tag of a name on the Hub.
    """

    source: str | Path | Source = "UCSC-VLAA/MedVLThinker-pmc_vqa"
    selection: Selection | None = None
    revision: str | None = None

    def load(self) -> SampleSet:
        """Reads the stored set, then selects.

        Raises:
            DataError: If it cannot be read, or nothing is left.
        """
        checks = None if isinstance(self.source, Source) else ReadChecks(check_images="header")
        samples = stored(self.source, revision=self.revision, checks=checks).load()
        return samples if self.selection is None else self.selection.apply(samples)


def build_pmc_vqa(
    csv: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    resize: ResizeRule = "bounded",
    max_drop_share: float = 0.05,
    drop_log: str | Path | None = None,
    max_decoded_pixels: int = 64_000_000,
    threads: int | None = None,
    overwrite: bool = False,
) -> None:
    """Builds the picture set from the original `train.csv` and its figures, into a folder that `PMCVQA` reads.

    Rows are cleaned and numbered by the rules of the published set: `dataset_index` counts the rows that they keep.
    What they keep and cannot be used (two equal options, a missing or damaged figure) is left out without changing the
    numbers. Everything left out is counted and listed in `drops.jsonl`. It is intended, and has
    not been measured, that uids and pass counts of both fit: the uid and texts of each published row would have to be
    compared with those of the row built under its number.

    An interrupted build goes on where it was when the same command runs again: figures done are kept in
    `{output}.work` until the set is written. A folder of that name that holds anything else is refused.

    Args:
        csv: The original file; `train_2.csv` has another format.
        images: Folder with the figures, in the published archive `images/images`.
        output: Folder to write.
        resize: "bounded" gives every figure a shorter side of at least 28 pixels and a longer one of at most 1024,
            where its shape allows both; "reference" sizes as the published set, where long thin figures end below 28.
        max_drop_share: Share of the rows that may be left out, in [0, 1]; beyond it the build fails.
        drop_log: JSON Lines file that lists every row left out, written even if the build fails.
        max_decoded_pixels: Largest figure that is decoded, in pixels.
        threads: Figures prepared at the same time; by default one per core, at most 16.
        overwrite: Whether a saved data set at `output` may be replaced.

    Raises:
        DataError: If the CSV is another one or its columns are shifted, too much is left out, or nothing can be
            written.
    """
    output, figures_in, table = Path(output), Path(images), Path(csv)
    refuse_existing(output, overwrite=overwrite)
    if not figures_in.is_dir():
        raise DataError(f"expected the folder of figures at {figures_in}, there is none; correct `images`")
    checks = ReadChecks(max_drop_share=max_drop_share, drop_log=drop_log)
    shop = FigureShop(
        figures_in,
        output.with_name(f"{output.name}.work"),
        rule=resize,
        max_decoded_pixels=max_decoded_pixels,
        threads=min(16, os.cpu_count() or 1) if threads is None else threads,
    )
    rows, report = _read(table, checks)
    provenance = {
        "command": "medvlt data build pmc-vqa",
        "csv": str(table),
        "csv_sha256": file_sha256(table),
        "images": str(figures_in),
        "resize": resize,
        "side_pixels": [MIN_SIDE, MAX_SIDE],
    }
    with shop.locked() as journal:
        figures = shop.prepare(dict.fromkeys(str(sample.extra[FIGURE]) for _, sample in rows), journal)
        resized = sum(isinstance(path, Path) and path.is_relative_to(shop.work) for path in figures.values())
        facts = write_dataset(
            _with_figures(rows, figures, report, checks),
            output,
            title="PMC-VQA",
            provenance=provenance | {"figures": len(figures), "figures_resized": resized},
            notes=_notes(report.read, resize),
            overwrite=overwrite,
        )
        shop.clear()
    announce(facts, output)


def clean_row(row: Mapping[str, str], index: int) -> Record:
    """Returns the record of one row of the CSV (UCSC-VLAA/MedVLThinker a3163b1, `train_dataset/prepare_pmc_vqa.py`).

    Texts lose `STRIPPED` at both ends. A choice such as ` B:text ` is cut at its first colon; what stands before it
    must be the letter of its column. The label must be A to D, and its option equal the answer.

    Args:
        row: Column to text.
        index: Number of rows kept before, the record's `dataset_index`.

    Raises:
        RecordError: If the row breaks one of these rules.
    """
    options = {}
    for letter in LETTERS:
        choice = row[f"Choice {letter}"]
        prefix, colon, text = choice.strip(STRIPPED).partition(":")
        if not colon or prefix.strip(STRIPPED) != letter:
            raise RecordError(
                DropReason.BAD_OPTIONS, f"`Choice {letter}` must read '{letter}: text', got {choice!r:.80}"
            )
        options[letter] = text.strip(STRIPPED)
    label, answer = row["Answer_label"].strip(STRIPPED), row["Answer"].strip(STRIPPED)
    if label not in options:
        raise RecordError(
            DropReason.BAD_LABEL, f"`Answer_label` must be one of A to D, got {row['Answer_label']!r:.80}"
        )
    if options[label] != answer:
        raise RecordError(
            DropReason.ANSWER_MISMATCH, f"`Answer` is {answer!r:.80}, but choice {label} is {options[label]!r:.80}"
        )
    return {
        "question": row["Question"].strip(STRIPPED),
        "options": options,
        "answer_label": label,
        "answer": answer,
        "dataset_name": DATASET_NAME,
        "dataset_index": index,
        FIGURE: row["Figure_path"],
    }


def read_rows(path: Path) -> Iterator[Mapping[str, str] | RecordError]:
    """Yields each row of the CSV by column, every value as it stands: "N/A" and an empty field are texts.

    Raises:
        DataError: If it is not that CSV.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv_format.reader(file)
            head = next(reader, [])
            if missing := [name for name in COLUMNS if head.count(name) != 1]:
                raise DataError(
                    f"{path}: expected the columns {', '.join(COLUMNS)}, each once, in the first line, got "
                    f"{', '.join(head)[:300] or 'nothing'}; at fault: {', '.join(missing)}. Name the original "
                    "train.csv (train_2.csv has another format)"
                )
            for values in reader:
                if not values:
                    continue  # a blank line
                if len(values) == len(head):
                    yield dict(zip(head, values, strict=True))
                else:
                    yield RecordError(
                        DropReason.BAD_FIELD,
                        f"line {reader.line_num} has {len(values)} fields, the header {len(head)}: {values!r:.120}",
                    )
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; correct `csv`") from error
    except (UnicodeDecodeError, csv_format.Error) as error:
        raise DataError(f"{path} is not the original train.csv, a CSV file in UTF-8: {error}; fetch it anew") from error


def _records(path: Path) -> Iterator[Record | RecordError]:
    index = 0
    for row in read_rows(path):
        try:
            record: Record | RecordError = row if isinstance(row, RecordError) else clean_row(row, index)
        except RecordError as error:
            record = error
        index += not isinstance(record, RecordError)
        yield record


def _read(path: Path, checks: ReadChecks) -> tuple[list[tuple[int, Sample]], ReadReport]:
    """Returns (row, question without its figure) of every row that can be used, and the report."""
    reader = RecordReader(checks, source=str(path), dataset_name=DATASET_NAME, image_root=None)
    rows = list(reader.accept(_records(path), sum(1 for _ in read_rows(path))))
    try:
        return rows, reader.finish()
    except DataError as error:
        first = next(read_rows(path), None)
        seen = (
            first if isinstance(first, RecordError) else "; ".join(f"{k}={v!r:.60}" for k, v in (first or {}).items())
        )
        raise DataError(f"{error}. The first row reads: {seen}. Are the columns shifted?") from error


def _with_figures(
    rows: list[tuple[int, Sample]],
    figures: Mapping[str, Path | RecordError],
    report: ReadReport,
    checks: ReadChecks,
) -> SampleSet:
    samples, dropped = [], list(report.dropped)
    for row, sample in rows:
        figure = figures[str(sample.extra[FIGURE])]
        if isinstance(figure, RecordError):
            dropped.append(Drop(row, sample.uid, figure.reason, figure.message))
        else:
            samples.append(replace(sample, images=(figure,)))
    dropped.sort(key=lambda drop: drop.row)
    report = replace(report, kept=len(samples), dropped=tuple(dropped))
    if checks.drop_log is not None:
        report.write_drop_log(Path(checks.drop_log))
    share = len(dropped) / report.read
    if share > checks.max_drop_share or not samples:
        raise DataError(
            f"{report.source}: {len(dropped)} of {report.read} rows ({share:.1%}) cannot be used, and max_drop_share="
            f"{checks.max_drop_share} allows {checks.max_drop_share:.1%}. Commonest: {report.commonest()}. Put the "
            "figures in place and run it again (what is done is kept), or raise max_drop_share"
        )
    return SampleSet(samples, report, uids=[sample.uid for sample in samples])


def _notes(rows: int, resize: ResizeRule) -> list[str]:
    notes = ["The questions were written by a language model from captions; options are in the order of the source."]
    if rows != PUBLISHED_ROWS:
        notes.append(f"The CSV has {rows:,} rows; the original train.csv has {PUBLISHED_ROWS:,}.")
    if resize == "reference":
        notes.append(f"Long thin figures may have a side below {MIN_SIDE} pixels, as in the published set.")
    return notes
