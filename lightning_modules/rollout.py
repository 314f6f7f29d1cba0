# SPDX-License-Identifier: Apache-2.0
"""The base of all modules: score completions that a callback attached to the batch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule

from medvlt.data.batches import PromptBatch
from medvlt.errors import MissingRolloutError
from medvlt.metrics.benchmark import BenchmarkMetrics
from medvlt.metrics.macro import macro_average
from medvlt.rewards.grade import GradePolicy, grade
from medvlt.types import RolloutGroup, Verdict


class RolloutModule(LightningModule):
    """Grades completions and reports them per benchmark. Needs no backbone: the engine may be anything.

    `callbacks.RolloutCallback` has put the completions on the batch before a step runs. A truncated completion is
    never right. Every completion counts once, over all ranks.

    Hooks used: `on_validation_epoch_start`, `validation_step`, `on_validation_epoch_end`, the same for test, and
    `predict_step`.
    Logs, with `val` or `test` in front and per benchmark: `accuracy`, `correct`, `count`, `questions`,
    `format_rate`, `truncation_rate`, `mean_tokens`, and `failed`, the completions that never came, which are wrong and
    counted; with n > 1 completions of each question also `majority`, the accuracy of the most frequent answer,
    `pass_at_{n}`, the share of questions with a right one, and `effective_questions`, for intervals. `val/accuracy` is
    the unweighted mean over benchmarks.

    Args:
        grader: Rules for right and wrong: "robust", or one that reproduces the reference.
    """

    def __init__(self, grader: GradePolicy = "robust") -> None:
        super().__init__()
        self.grader: GradePolicy = grader
        self.benchmarks: dict[str, BenchmarkMetrics] = {}  # not submodules: they belong in no checkpoint

    def grade_batch(self, batch: PromptBatch) -> list[list[Verdict]]:
        """Attaches the verdicts of all completions, one list per question, and returns them.

        Raises:
            MissingRolloutError: If no callback attached completions.
        """
        if batch.groups is None:
            raise MissingRolloutError(
                "the batch has no completions: add callbacks.RolloutCallback to trainer.callbacks (in YAML: "
                "`- class_path: RolloutCallback`)"
            )
        batch.verdicts = [self.grade_group(group) for group in batch.groups]
        return batch.verdicts

    def grade_group(self, group: RolloutGroup) -> list[Verdict]:
        """Returns the verdict of each completion of a question."""
        return [
            grade(c.text, group.sample, policy=self.grader, truncated=c.finish_reason == "length")
            for c in group.completions
        ]

    def on_validation_epoch_start(self) -> None:
        """Clears the counts."""
        self._start_benchmarks()

    def on_test_epoch_start(self) -> None:
        """Clears the counts."""
        self._start_benchmarks()

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Counts the verdicts of one batch."""
        self._count(batch)

    def test_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Counts the verdicts of one batch."""
        self._count(batch)

    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> PromptBatch:
        """Returns the batch with its completions and their verdicts."""
        self.grade_batch(batch)
        return batch

    def on_validation_epoch_end(self) -> None:
        """Logs the counts of all ranks."""
        self._log_benchmarks("val")

    def on_test_epoch_end(self) -> None:
        """Logs the counts of all ranks."""
        self._log_benchmarks("test")

    def _start_benchmarks(self) -> None:
        # by name and in one order on every rank, also on a rank that gets no question of some benchmark
        names = getattr(getattr(self.trainer, "datamodule", None), "benchmark_names", ())
        self.benchmarks = {name: BenchmarkMetrics().to(self.device) for name in names}

    def _count(self, batch: PromptBatch) -> None:
        verdicts = self.grade_batch(batch)
        if batch.benchmark not in self.benchmarks:  # loaders given to the Trainer without a data module
            self.benchmarks[batch.benchmark] = BenchmarkMetrics().to(self.device)
        self.benchmarks[batch.benchmark].update(batch.groups or (), verdicts)

    def _log_benchmarks(self, stage: str) -> None:
        # the values are equal on all ranks, their mean (`sync_dist`) is the same; without it Lightning warns of each
        results: dict[str, dict[str, Any]] = {name: metrics.compute() for name, metrics in self.benchmarks.items()}
        for name, values in results.items():
            self.log_dict({f"{stage}/{name}/{key}": value for key, value in values.items()}, sync_dist=True)
        if results:
            accuracies = {name: float(values["accuracy"]) for name, values in results.items()}
            self.log(f"{stage}/accuracy", macro_average(accuracies), prog_bar=True, sync_dist=True)
