# SPDX-License-Identifier: Apache-2.0
"""The result of a benchmark, and a table of several."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.measure import Measurement
from rich.table import Table

from medvlt.console import wide_console
from medvlt.curation.card import NOTICE
from medvlt.errors import DataError
from medvlt.evaluation.statistics.intervals import wilson_of_share
from medvlt.evaluation.wording import MEAN_NAME
from medvlt.metrics.macro import macro_average

COLUMNS = ("questions", "right", "of", "accuracy", "95% interval", "format", "cut", "failed", "tokens")
SEVERAL = ("majority", "pass@n")


@dataclass(frozen=True)
class BenchmarkResult:
    """Counts of one benchmark.

    Attributes:
        benchmark: Its name.
        questions: Questions asked.
        correct: Completions graded right.
        count: Completions graded; several per question if more than one was sampled.
        format_rate: Share in the asked format, in [0, 1].
        truncation_rate: Share cut at the token limit, in [0, 1].
        mean_tokens: Mean length of a completion that came.
        failed: Completions that never came; they are wrong and counted.
        majority: Share of questions whose most frequent answer is right; None with one completion of each.
        pass_at_n: Share of questions with a right completion, pass@n; None with one completion of each.
        effective_questions: As how many independent questions the accuracy is sure; None with one completion of each,
            when it is as many as there are.
    """

    benchmark: str
    questions: int
    correct: int
    count: int
    format_rate: float
    truncation_rate: float
    mean_tokens: float
    failed: int = 0
    majority: float | None = None
    pass_at_n: float | None = None
    effective_questions: float | None = None

    @property
    def accuracy(self) -> float:
        """Share that is right, in [0, 1]; 0 of an empty benchmark."""
        return self.correct / self.count if self.count else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson interval of the accuracy at 95% confidence, with the effective number of questions.

        Several completions of a question are not independent. Which questions share pictures is not known here; the
        report of the stored run counts that.
        """
        total = self.questions if self.effective_questions is None else self.effective_questions
        return wilson_of_share(self.accuracy, total)

    def to_json(self) -> dict[str, Any]:
        """Returns a record that JSON can hold, accuracy and interval included."""
        return {**asdict(self), "accuracy": self.accuracy, "interval_95": list(self.interval)}


def read_results(path: Path) -> list[BenchmarkResult]:
    """Reads the file that `callbacks.ResultsTable` wrote.

    Raises:
        DataError: If it is missing or not such a file.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        names = BenchmarkResult.__dataclass_fields__
        return [BenchmarkResult(**{name: row[name] for name in names}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"expected a results file written by callbacks.ResultsTable at {path}, got: {error!r}"
        ) from error


def print_results(runs: Mapping[str, Sequence[BenchmarkResult]]) -> None:
    """Prints `results_table`; where the output is a file and has no width, wide enough that nothing is cut."""
    console, table = wide_console(), results_table(runs)
    if not console.is_terminal:
        needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
        console.width = max(console.width, needed)
    console.print(table)


def results_table(runs: Mapping[str, Sequence[BenchmarkResult]]) -> Table:
    """Returns a table with one row per run and benchmark, and each run's unweighted mean over benchmarks.

    Majority and pass@n have columns where some run has several completions of a question.
    """
    several = any(result.majority is not None for results in runs.values() for result in results)
    columns = COLUMNS + SEVERAL if several else COLUMNS
    table = Table(title=f"Accuracy with 95% Wilson interval. {NOTICE}", title_justify="left")
    for column in ("model", "benchmark"):
        table.add_column(column, overflow="fold")  # a long name is never cut
    for column in columns:
        table.add_column(column, justify="right")
    for label, results in runs.items():
        for number, result in enumerate(results):
            low, high = result.interval
            cells = {
                "questions": str(result.questions),
                "right": str(result.correct),
                "of": str(result.count),
                "accuracy": f"{result.accuracy:.1%}",
                "95% interval": f"{low:.1%} to {high:.1%}",
                "format": f"{result.format_rate:.0%}",
                "cut": f"{result.truncation_rate:.0%}",
                "failed": str(result.failed),
                "tokens": f"{result.mean_tokens:.0f}",
                "majority": "" if result.majority is None else f"{result.majority:.1%}",
                "pass@n": "" if result.pass_at_n is None else f"{result.pass_at_n:.1%}",
            }
            table.add_row(label if number == 0 else "", result.benchmark, *(cells[column] for column in columns))
        if len(results) > 1:
            mean = macro_average({result.benchmark: result.accuracy for result in results})
            empty = columns.index("accuracy")
            table.add_row("", MEAN_NAME, *[""] * empty, f"{mean:.1%}")
        table.add_section()
    return table
