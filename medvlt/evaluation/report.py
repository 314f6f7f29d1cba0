# SPDX-License-Identifier: Apache-2.0
"""The command `medvlt report`: stored evaluations as Markdown, CSV and a page."""

from __future__ import annotations

import logging
from pathlib import Path

from rich.table import Table
from rich.text import Text

from medvlt.console import wide_console
from medvlt.curation.card import NOTICE
from medvlt.data.files import replacing
from medvlt.errors import ConfigurationError, DataError, MissingExtraError
from medvlt.evaluation.alignment import align
from medvlt.evaluation.analysis import analyse_aligned
from medvlt.evaluation.csv_table import csv_table
from medvlt.evaluation.markdown import markdown
from medvlt.evaluation.page import write_page
from medvlt.evaluation.runs import read_run
from medvlt.evaluation.scores import ReportData
from medvlt.evaluation.wording import (
    MEAN_NAME,
    benchmark_name,
    bounds,
    difference_bounds,
    mean_mark,
    p_text,
    percent,
    points,
    summary_of_tests,
)

logger = logging.getLogger(__name__)

MARKDOWN_FILE, CSV_FILE, PAGE_FILE = "report.md", "report.csv", "report.html"


def report(
    runs: list[str],
    baseline: str | None = None,
    output: str = "report",
    training: list[str] | None = None,
    intersect: bool = False,
    title: str = "Evaluation",
    questions: int = 50,
    seed: int = 0,
) -> None:
    """Writes report.md, report.csv and report.html of stored evaluations, and prints the table.

    Files of an earlier report in the same folder are replaced.

    Args:
        runs: Folders of evaluations, one or more.
        baseline: Folder of the evaluation that the others are compared with, question by question.
        output: Folder of the report.
        training: Folders of trainings whose curves and rollouts the page is to show.
        intersect: Whether runs that were asked different questions are compared on those that all were asked.
        title: Heading of the report.
        questions: Questions of each benchmark in the rollout book of the page.
        seed: Of bootstraps and randomisation tests.

    Raises:
        DataError: If a run cannot be read, runs cannot be compared, or the report cannot be written.
        ConfigurationError: If `questions` is negative.
    """
    if questions < 0:
        raise ConfigurationError(f"expected questions of at least 0, got {questions}; 50 is usual")
    trainings = [Path(folder) for folder in training or ()]
    for folder in trainings:
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}; training takes folders of trainings")
    aligned = align(
        [read_run(run) for run in runs], baseline=None if baseline is None else read_run(baseline), intersect=intersect
    )
    data = analyse_aligned(aligned, seed=seed)
    folder = Path(output)
    texts = {MARKDOWN_FILE: markdown(data, aligned.runs, title=title), CSV_FILE: csv_table(data)}
    page = folder / PAGE_FILE
    try:
        write_page(page, data, aligned.runs, training=trainings, title=title, questions=questions)
    except MissingExtraError as error:
        page.unlink(missing_ok=True)  # one of an earlier report would not be of these numbers
        logger.warning("no %s: %s", PAGE_FILE, error)
    for name, text in texts.items():
        with replacing(folder / name, overwrite=True) as temporary:
            temporary.write_bytes(text.encode("utf-8", "replace"))  # a model may have written half a character
    print_report(data)
    print(f"report: {page if page.exists() else folder / MARKDOWN_FILE}")


def print_report(data: ReportData) -> None:
    """Prints accuracies, comparisons, controls and notes."""
    console = wide_console()
    console.print(accuracy_table(data))
    if data.comparisons:
        console.print(comparison_table(data))
        print(summary_of_tests(data.comparisons))
    for one in data.controls:
        lost = f"{points(one.difference.value)} points ({difference_bounds(one.difference)})"
        console.print(_text(f"{one.run} minus {one.control_run}, {benchmark_name(one.benchmark)}: {lost}"))
    for note in data.notes:
        console.print(_text(f"- {note}"))


def accuracy_table(data: ReportData) -> Table:
    """Returns a table with one row per run and benchmark, and the mean of each run over benchmarks."""
    shown = Table(title=f"Accuracy in percent. {NOTICE}", title_justify="left")
    for name in ("run", "benchmark"):
        shown.add_column(name, overflow="fold")
    for name in ("questions", "n", "accuracy", "95% interval", "chance", "failed"):
        shown.add_column(name, justify="right")
    for run in data.runs:
        mark = " (baseline)" if run.label == data.baseline else ""
        for number, score in enumerate(run.benchmarks):
            shown.add_row(
                _text(f"{run.label}{mark}" if number == 0 else ""),
                _text(score.benchmark),
                f"{score.questions:,}",
                str(score.n),
                percent(score.accuracy.value),
                bounds(score.accuracy),
                percent(score.chance),
                f"{score.failed:,}",
            )
        if len(run.benchmarks) > 1:
            mark = mean_mark(run, data)
            name = f"{MEAN_NAME} ({mark})" if mark else MEAN_NAME
            shown.add_row("", name, "", "", percent(run.macro.value), bounds(run.macro), "", "")
        shown.add_section()
    return shown


def comparison_table(data: ReportData) -> Table:
    """Returns a table of differences from the baseline."""
    shown = Table(title=_text(f"Difference from {data.baseline} in points"), title_justify="left")
    for name in ("run", "benchmark"):
        shown.add_column(name, overflow="fold")
    for name in ("difference", "95% interval", "p", "p (Holm)"):
        shown.add_column(name, justify="right")
    for one in data.comparisons:
        shown.add_row(
            _text(one.run),
            _text(benchmark_name(one.benchmark)),
            points(one.difference.value),
            difference_bounds(one.difference),
            p_text(one.p_value),
            p_text(one.p_adjusted),
        )
    return shown


def _text(words: str) -> Text:
    """Returns words as they are, without markup; what a terminal would obey or cannot show is replaced."""
    return Text("".join(letter if letter.isprintable() else "\ufffd" for letter in words))
