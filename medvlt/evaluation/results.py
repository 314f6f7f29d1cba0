# SPDX-License-Identifier: Apache-2.0
"""The result of a benchmark, and a table of several."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from medvlt.console import wide_console
from medvlt.errors import DataError
from medvlt.evaluation.statistics import wilson_interval
from medvlt.metrics.macro import macro_average


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
        mean_tokens: Mean length of a completion.
    """

    benchmark: str
    questions: int
    correct: int
    count: int
    format_rate: float
    truncation_rate: float
    mean_tokens: float

    @property
    def accuracy(self) -> float:
        """Share that is right, in [0, 1]; 0 of an empty benchmark."""
        return self.correct / self.count if self.count else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson interval of the accuracy at 95% confidence.

        Of several completions of a question only their mean counts, as one observation: they are not independent. This
        is wide rather than narrow.
        """
        return wilson_interval(round(self.accuracy * self.questions), self.questions)

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


def read_correct(path: Path) -> dict[tuple[str, str], bool]:
    """Reads which questions were answered right from the file that `callbacks.CompletionLogger` wrote.

    Args:
        path: JSON Lines, one completion per question.

    Returns:
        (benchmark, uid) to right or wrong.

    Raises:
        DataError: If it is missing, not such a file, or has several completions of a question.
    """
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        correct = {(record["benchmark"], record["uid"]): bool(record["correct"]) for record in records}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"expected completions written by callbacks.CompletionLogger at {path}, got: {error!r}"
        ) from error
    if not records or len(correct) != len(records):
        raise DataError(
            f"expected one completion per question in {path}, got {len(records)} of {len(correct)} questions"
        )
    return correct


def print_results(runs: Mapping[str, Sequence[BenchmarkResult]]) -> None:
    """Prints `results_table`; where the output is a file and has no width, wide enough that nothing is cut."""
    wide_console().print(results_table(runs))


def results_table(runs: Mapping[str, Sequence[BenchmarkResult]]) -> Table:
    """Returns a table with one row per run and benchmark, and each run's unweighted mean over benchmarks."""
    table = Table(
        title="Accuracy with 95% Wilson interval. Research software, not for clinical use.", title_justify="left"
    )
    for column in ("model", "benchmark"):
        table.add_column(column)
    for column in ("questions", "right", "of", "accuracy", "95% interval", "format", "cut", "tokens"):
        table.add_column(column, justify="right")
    for label, results in runs.items():
        for number, result in enumerate(results):
            low, high = result.interval
            table.add_row(
                label if number == 0 else "",
                result.benchmark,
                str(result.questions),
                str(result.correct),
                str(result.count),
                f"{result.accuracy:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{result.format_rate:.0%}",
                f"{result.truncation_rate:.0%}",
                f"{result.mean_tokens:.0f}",
            )
        if len(results) > 1:
            mean = macro_average({result.benchmark: result.accuracy for result in results})
            table.add_row("", "mean of benchmarks", "", "", "", f"{mean:.1%}", "", "", "", "")
        table.add_section()
    return table
