# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation as a table and as a file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from medvlt import __version__
from medvlt.curation.card import NOTICE
from medvlt.data.files import replacing
from medvlt.errors import DataError
from medvlt.evaluation.results import BenchmarkResult, print_results
from medvlt.metrics.benchmark import completions_each, pass_name
from medvlt.rewards.grade import GRADER_VERSION

logger = logging.getLogger(__name__)


class ResultsTable(Callback):
    """Prints accuracy per benchmark with its count and 95% interval, and writes them to a file.

    Hooks used: `on_validation_end`, `on_test_end`.

    Args:
        path: JSON file; None for `results.json` in the Trainer's `default_root_dir`. It is replaced at every
            evaluation, never left half-written.
        label: Name of the evaluated model in the file and the table.
    """

    def __init__(self, path: str | None = None, label: str = "") -> None:
        self.path = path
        self.label = label

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports a validation."""
        if not trainer.sanity_checking:
            self._report(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports a test."""
        self._report(trainer, "test")

    def _report(self, trainer: Trainer, stage: str) -> None:
        values = {name: float(torch.as_tensor(value)) for name, value in trainer.callback_metrics.items()}
        names = [name.split("/")[1] for name in values if name.startswith(f"{stage}/") and name.endswith("/count")]
        results = [read_result(values, f"{stage}/{name}") for name in names]
        limit = trainer.limit_val_batches if stage == "val" else trainer.limit_test_batches
        whole = isinstance(limit, float) and limit == 1.0  # 1 would be one batch
        if whole:
            check_coverage(results, getattr(getattr(trainer, "datamodule", None), "benchmark_sizes", {}))
        if not results or not trainer.is_global_zero:
            return
        print_results({self.label or stage: results})
        path = Path(self.path or Path(trainer.default_root_dir) / "results.json")
        backbone = getattr(trainer.lightning_module, "backbone", None)
        record = {
            "label": self.label,
            "stage": stage,
            "backbone": getattr(backbone, "name", None),
            "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "limited_to": None if whole else limit,
            "step": trainer.global_step if trainer.state.fn == "fit" else None,
            "medvlt": __version__,
            "grader": GRADER_VERSION,
            "benchmarks": [result.to_json() for result in results],
            "note": NOTICE,
        }
        with replacing(path, overwrite=True) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        logger.info("results written to %s", path)


def read_result(values: Mapping[str, float], prefix: str) -> BenchmarkResult:
    """Returns the result of a benchmark from what the module logged under `prefix`, the stage and the benchmark."""
    count, questions = (round(values[f"{prefix}/{name}"]) for name in ("count", "questions"))
    return BenchmarkResult(
        benchmark=prefix.split("/")[1],
        questions=questions,
        correct=round(values[f"{prefix}/correct"]),
        count=count,
        format_rate=values[f"{prefix}/format_rate"],
        truncation_rate=values[f"{prefix}/truncation_rate"],
        mean_tokens=values[f"{prefix}/mean_tokens"],
        failed=round(values[f"{prefix}/failed"]),
        majority=values.get(f"{prefix}/majority"),
        pass_at_n=values.get(f"{prefix}/{pass_name(completions_each(count, questions))}"),
        effective_questions=values.get(f"{prefix}/effective_questions"),
    )


def check_coverage(results: Sequence[BenchmarkResult], sizes: Mapping[str, int]) -> None:
    """Raises DataError if a benchmark was not asked whole: a lost question must not shrink a denominator unnoticed."""
    asked = {result.benchmark: result.questions for result in results}
    lost = {name: f"{asked.get(name, 0)} of {size}" for name, size in sizes.items() if asked.get(name, 0) != size}
    if lost:
        raise DataError(f"questions were lost on the way, asked were only: {lost}; this is a defect, please report it")
