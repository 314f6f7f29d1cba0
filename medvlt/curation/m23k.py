# SPDX-License-Identifier: Apache-2.0
"""m23k, the recipe's text questions: exam questions that Qwen2.5 got wrong and DeepSeek-R1 got right, with R1's traces.

Two forms are published: the rows of m1 (UCSC-VLAA/m1, open to all), which hold question and options as one text, and
those of MedVLThinker (gated), which are records as everywhere here. Both are read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from medvlt.curation.card import announce, refuse_existing, write_dataset
from medvlt.curation.distill import TEACHER_REPLY
from medvlt.curation.selection import Selection, SelectionReport
from medvlt.curation.stored import Place, stored
from medvlt.data.drops import DropReason, RecordError
from medvlt.data.fields import int_field, text_field
from medvlt.data.readers import ReadChecks, RecordReader
from medvlt.data.samples import SampleSet, Source
from medvlt.data.schema import Record
from medvlt.data.sources import HubDataset, JSONLines, Parquet, SavedDataset, json_records
from medvlt.rewards.grade import grade

logger = logging.getLogger(__name__)

M1_ROWS = "UCSC-VLAA/m23k-tokenized"
"""The rows of m1 on the Hub: 23,493."""

EXPECTED = {
    "openlifescienceai/medmcqa": 21_628,
    "GBaker/MedQA-USMLE-4-options": 1_628,
    "openlifescienceai/headqa": 209,
}
"""Questions of the set by source: 23,465."""

LEFT_OUT = "qiaojin/PubMedQA:pqa_labeled"
"""Source of the 28 rows of m1, numbers 1628 to 1655, that MedVLThinker left out: 23,493 - 28 = 23,465."""

_M1_COLUMNS = {"prompt", "answer_letter", "answer_string"}
_M1_ONLY = ("prompt", "answer_idx", "metadata", "text")  # `metadata` is the source's row as Python, `text` m1's chat
_FIRST_ROWS = 100  # of a file of lines, which tell its columns: one of them may be broken
_FIRST_LETTER = "A"
_OPTION = re.compile(r"([A-Z])\.(?: (.*))?", re.DOTALL)


@dataclass(frozen=True)
class M23k(Source):
    """Text questions with traces of DeepSeek-R1, the recipe's text set; in the published form of m1 or MedVLThinker.

    Args:
        source: A name on the Hub, a folder that `medvlt data build m23k` wrote, a file, or a source. The published
            default is gated; "UCSC-VLAA/m23k-tokenized" has the same questions and is open.
        selection: Which questions to keep by difficulty, in which order; null keeps all.
        revision: Commit, branch or tag of a name on the Hub.
    """

    source: str | Path | Source = "UCSC-VLAA/MedVLThinker-m23k-tokenized"
    selection: Selection | None = None
    revision: str | None = None

    def load(self) -> SampleSet:
        """Reads the stored set, then selects. Rows of m1 are turned into records and held in memory, about 200 MB.

        Raises:
            DataError: If it cannot be read, or nothing is left.
        """
        samples = read(self.source, revision=self.revision)
        return samples if self.selection is None else self.selection.apply(samples)


def build_m23k(
    output: str | Path,
    *,
    source: str | Path | Source = M1_ROWS,
    revision: str | None = None,
    max_drop_share: float = 0.05,
    drop_log: str | Path | None = None,
    overwrite: bool = False,
) -> None:
    """Builds the text set from the published rows, into a folder that `M23k` reads.

    Rows of m1 become records; `dataset_index` is the row's number there, 0 to 23,492, as in the published set, and
    PubMedQA is left out as there. Where the counts are not those of the paper (23,465 questions), the card says so.

    Args:
        output: Folder to write.
        source: The rows: a name on the Hub, a file or folder, or a source.
        revision: Commit, branch or tag of a name on the Hub.
        max_drop_share: Share of the rows that may be unusable, in [0, 1]; beyond it the build fails. A source has its
            own.
        drop_log: JSON Lines file that lists every row left out, written even if the build fails. A source has its own.
        overwrite: Whether a saved data set at `output` may be replaced.

    Raises:
        ConfigurationError: If `max_drop_share` or `drop_log` is given for a source, which has its own.
        DataError: If the rows cannot be read, or too many cannot be used.
    """
    refuse_existing(Path(output), overwrite=overwrite)
    checks = ReadChecks(max_drop_share=max_drop_share, drop_log=drop_log)
    samples = read(source, revision=revision, checks=None if checks == ReadChecks() else checks)
    notes = unexpected(samples)
    for note in notes:
        logger.warning("%s", note)
    replies = [sample for sample in samples if TEACHER_REPLY in sample.extra]
    doubtful = sum(not grade(str(sample.extra[TEACHER_REPLY]), sample).correct for sample in replies)
    if replies:
        notes.append(
            f"In {doubtful:,} of {len(replies):,} traces this package's grader does not find the right answer in the "
            "teacher's reply; m1 also took a reply for right if its first character was the letter."
        )
    facts = write_dataset(
        samples,
        output,
        title="m23k",
        provenance={
            "command": "medvlt data build m23k",
            "source": str(source),
            "revision": revision,
            "expected": EXPECTED,
            "teacher": "DeepSeek-R1",
            "replies_not_graded_right": doubtful,
        },
        notes=notes,
        overwrite=overwrite,
    )
    announce(facts, output)


def read(place: Place, *, revision: str | None = None, checks: ReadChecks | None = None) -> SampleSet:
    """Reads m23k in whichever form it is stored.

    Args:
        place: See `medvlt.curation.stored`. What a source gives is taken as it is; anything else may hold either form.
        revision: Of a name on the Hub.
        checks: What is checked; by default what every source checks. None for a source, which has its own.

    Raises:
        ConfigurationError: If checks are given for a source.
        DataError: If it cannot be read.
    """
    source = stored(place, revision=revision, checks=checks)
    if isinstance(place, Source):
        return source.load()
    rows: Iterable[Record | RecordError]
    if isinstance(source, JSONLines):
        path = Path(source.path)
        try:
            first = [row for row in islice(json_records(path), _FIRST_ROWS) if not isinstance(row, RecordError)]
            columns, total = {name for row in first for name in row}, sum(1 for _ in json_records(path))
        except OSError:
            return source.load()  # says it
        rows = json_records(path)
    elif isinstance(source, HubDataset | Parquet | SavedDataset):
        table = source.table()
        rows, columns, total = table, set(table.column_names), len(table)
    else:
        return source.load()
    return _read_m1(rows, total, str(place), checks or ReadChecks()) if columns >= _M1_COLUMNS else source.load()


def unexpected(samples: SampleSet) -> list[str]:
    """Returns in words where the counts differ from the published set's."""
    found = dict.fromkeys(EXPECTED, 0)
    for index in range(len(samples)):
        name = samples.light(index).dataset_name
        found[name] = found.get(name, 0) + 1
    return [
        f"{name}: {count:,} questions, the published set has {EXPECTED.get(name, 0):,}."
        for name, count in found.items()
        if count != EXPECTED.get(name, 0)
    ]


def from_m1(row: Mapping[str, object], number: int) -> Record:
    """Returns the record of a row of m1.

    Columns of m1 (UCSC-VLAA/m1, `src/tokenize_data/upload_data.ipynb`): `prompt`, `answer_letter`, `answer_string`,
    `source`, `reasoning`, `distilled_answer_string` (R1's reply behind the reasoning), and others, of which
    `answer_idx`, `metadata` and `text` are left behind.

    Args:
        row: The row.
        number: Its number, from 0; the record's `dataset_index`, unless the row has one.

    Raises:
        RecordError: If question and options cannot be told apart.
    """
    prompt, letter = text_field(row, "prompt"), text_field(row, "answer_letter")
    if prompt is None or letter is None:
        raise RecordError(DropReason.NO_QUESTION, "expected texts in `prompt` and `answer_letter`, got none")
    answer = text_field(row, "answer_string")
    question, options = split_prompt(prompt, letter, answer)
    named = (*_M1_ONLY, *_M1_COLUMNS, "source", "distilled_answer_string")
    reply = text_field(row, "distilled_answer_string")
    return {key: value for key, value in row.items() if key not in named} | {
        "question": question,
        "options": options,
        "answer_label": letter,
        "answer": answer,
        "reasoning": text_field(row, "reasoning"),
        "dataset_name": text_field(row, "source"),
        "dataset_index": int_field(row, "dataset_index", default=number),
        **({TEACHER_REPLY: reply} if reply else {}),
    }


def split_prompt(prompt: str, letter: str, answer: str | None) -> tuple[str, dict[str, str]]:
    r"""Returns question and options of a prompt of m1, which is `{question}\nA. {text}\nB. {text}...`.

    The options are the last lines: they begin at the last line `A. ...` from which on the right letter has the right
    text, so that a list of findings inside the question does not count. A line without a letter in front belongs to the
    option above it, as does one with an earlier letter; one with a letter beyond the next shows that one is missing.

    Args:
        prompt: The text.
        letter: Letter of the right option.
        answer: Text of the right option; None if not known.

    Raises:
        RecordError: If there is no such line, or an option is missing or empty.

    Example:
        >>> split_prompt("Which is it?\nA. this\nB. that", "B", "that")
        ('Which is it?', {'A': 'this', 'B': 'that'})
    """
    lines = prompt.split("\n")
    reason, message = DropReason.BAD_OPTIONS, f"expected options as lines 'A. text' at the end, got {prompt[-80:]!r}"
    for start in range(len(lines) - 1, 0, -1):
        if not lines[start].startswith(f"{_FIRST_LETTER}. "):
            continue
        try:
            options = _options(lines[start:])
        except RecordError as error:
            reason, message = error.reason, error.message
            continue
        if answer is None or options.get(letter, "").strip() == answer.strip():
            return "\n".join(lines[:start]), options
        reason = DropReason.ANSWER_MISMATCH
        message = f"answer_letter is {letter!r:.40} and answer_string {answer!r:.80}, the options are {options!r:.160}"
    raise RecordError(reason, message)


def _options(lines: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    label = ""
    for line in lines:
        expected = chr(ord(label) + 1) if label else _FIRST_LETTER
        found = _OPTION.fullmatch(line)
        if found is not None and found[1] >= expected and (found[1] != expected or found[2] is None):
            raise RecordError(
                DropReason.BAD_OPTIONS, f"expected option {expected} with a text, got the line {line!r:.80}"
            )
        if found is not None and found[1] == expected:
            label, options[expected] = expected, found[2]
        else:
            options[label] += f"\n{line}"
    return options


def _read_m1(table: Iterable[Record | RecordError], total: int, name: str, checks: ReadChecks) -> SampleSet:
    reader = RecordReader(checks, source=name, dataset_name="m23k", image_root=None)
    rows = (_record(row, number) for number, row in enumerate(table))
    samples = [sample for _, sample in reader.accept(rows, total)]
    report = reader.finish()
    kept = [sample for sample in samples if sample.dataset_name != LEFT_OUT]
    left_out = {f"source {LEFT_OUT}": len(samples) - len(kept)} if len(kept) < len(samples) else {}
    selected = SelectionReport(report.source, report.read, len(kept), report.dropped, left_out=left_out)
    return SampleSet(kept, selected, uids=[sample.uid for sample in kept])


def _record(row: Record | RecordError, number: int) -> Record | RecordError:
    try:
        return row if isinstance(row, RecordError) else from_m1(row, number)
    except RecordError as error:
        return error
