# SPDX-License-Identifier: Apache-2.0
"""Every completion of an evaluation, written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from medvlt.data.batches import PromptBatch


class CompletionLogger(Callback):
    """Appends each graded completion to a JSON Lines file, batch by batch, so that a killed run keeps what it has.

    One line per completion: benchmark, uid, dataset name and index, number of the completion, its text, tokens, finish
    reason and weights version, the right label, and the verdict with its reason and grader version. Each rank writes a
    file of its own, `completions-{stage}-{rank}.jsonl`; an evaluation starts it anew.

    Hooks used: `on_{validation,test,predict}_start` and `on_{validation,test,predict}_batch_end`.

    Args:
        folder: Where the files go; None for the Trainer's `default_root_dir`.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the file."""
        self._start(trainer, "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the file."""
        self._start(trainer, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the file."""
        self._start(trainer, "predict")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Writes the completions of a batch."""
        self._write(trainer, "val", batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Writes the completions of a batch."""
        self._write(trainer, "test", batch)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Writes the completions of a batch."""
        self._write(trainer, "predict", batch)

    def _path(self, trainer: Trainer, stage: str) -> Path:
        return Path(self.folder or trainer.default_root_dir) / f"completions-{stage}-{trainer.global_rank}.jsonl"

    def _start(self, trainer: Trainer, stage: str) -> None:
        path = self._path(trainer, stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")

    def _write(self, trainer: Trainer, stage: str, batch: Any) -> None:
        if not isinstance(batch, PromptBatch) or batch.groups is None or batch.verdicts is None:
            return
        with self._path(trainer, stage).open("a", encoding="utf-8") as file:
            for group, verdicts in zip(batch.groups, batch.verdicts, strict=True):
                for number, (completion, verdict) in enumerate(zip(group.completions, verdicts, strict=True)):
                    record = {
                        "benchmark": batch.benchmark,
                        "uid": group.sample.uid,
                        "dataset_name": group.sample.dataset_name,
                        "dataset_index": group.sample.dataset_index,
                        "sample": number,
                        "completion": completion.text,
                        "tokens": len(completion.token_ids),
                        "finish_reason": completion.finish_reason,
                        "version": completion.version,
                        "answer_label": group.sample.answer_label,
                        "label": verdict.label,
                        "correct": verdict.correct,
                        "format_ok": verdict.format_ok,
                        "reason": verdict.reason,
                        "grader_version": verdict.grader_version,
                    }
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
