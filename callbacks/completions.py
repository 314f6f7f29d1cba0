# SPDX-License-Identifier: Apache-2.0
"""Every completion, of an evaluation or of training, written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medvlt.data.batches import PromptBatch
from medvlt.data.files import replacing
from medvlt.errors import ConfigurationError
from medvlt.rollout.iteration import Iteration
from medvlt.types import Completion, ImageSource, RolloutGroup, Verdict


class CompletionLogger(Callback):
    """Writes each graded completion to JSON Lines files.

    Evaluation: appended batch by batch, so that a killed run keeps what it has; each rank writes a file of its own,
    `completions-{stage}-{rank}.jsonl`, and an evaluation starts it anew. Training: one file per iteration, written by
    one rank when the update begins, `completions-train/{iteration:06d}.jsonl`; an iteration that is repeated after a
    resume replaces its file.

    One line per completion: uid, dataset name and index, number of the completion, question, pictures, its text,
    tokens, finish reason and weights version, the right label, and the verdict with its reason and grader version; in
    evaluation the benchmark, in training the iteration, the rewards and the advantage.

    Hooks used: `on_train_batch_start`, `on_{validation,test,predict}_start` and
    `on_{validation,test,predict}_batch_end`.

    Args:
        folder: Where the files go; None for the Trainer's `default_root_dir`.
        rows: Completions of each iteration shown as a table in the terminal, one per group; 0 shows none.
    """

    def __init__(self, folder: str | None = None, rows: int = 0) -> None:
        if rows < 0:
            raise ConfigurationError(f"rows of the completion table must be 0 (no table) or above, got {rows}")
        self.folder = folder
        self.rows = rows

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Writes the iteration whose update begins."""
        buffer = getattr(getattr(trainer, "datamodule", None), "buffer", None)
        if batch_idx or buffer is None or not trainer.is_global_zero:
            return
        records = list(iteration_records(buffer.iteration))
        folder = Path(self.folder or trainer.default_root_dir) / "completions-train"
        with replacing(folder / f"{buffer.iteration.number:06d}.jsonl", overwrite=True) as temporary:
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            temporary.write_text("".join(lines), encoding="utf-8")
        if self.rows:
            Console().print(completion_table(records, self.rows))

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
                    record = {"benchmark": batch.benchmark} | completion_record(group, number, completion, verdict)
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")


def completion_record(group: RolloutGroup, number: int, completion: Completion, verdict: Verdict) -> dict[str, Any]:
    """Returns what is written of any completion."""
    sample = group.sample
    return {
        "uid": sample.uid,
        "dataset_name": sample.dataset_name,
        "dataset_index": sample.dataset_index,
        "sample": number,
        "question": sample.question,
        "options": dict(sample.options),
        "pictures": [picture_name(picture) for picture in sample.images],
        "prompt_tokens": len(group.prompt_token_ids),
        "completion": completion.text,
        "tokens": completion.length,
        "finish_reason": completion.finish_reason,
        "version": completion.version,
        "answer_label": sample.answer_label,
        "label": verdict.label,
        "correct": verdict.correct,
        "format_ok": verdict.format_ok,
        "reason": verdict.reason,
        "grader_version": verdict.grader_version,
    }


def iteration_records(iteration: Iteration) -> Iterator[dict[str, Any]]:
    """Yields one record per completion of an iteration, group by group."""
    assert iteration.advantages is not None
    for scored, advantages in zip(iteration.groups, iteration.advantages.tolist(), strict=True):
        columns = zip(scored.group.completions, scored.verdicts, scored.rewards, advantages, strict=True)
        for number, (completion, verdict, reward, advantage) in enumerate(columns):
            yield {
                "iteration": iteration.number,
                **completion_record(scored.group, number, completion, verdict),
                "reward": reward,
                "rewards": {name: values[number] for name, values in scored.parts.items()},
                "advantage": advantage,
            }


def completion_table(records: list[dict[str, Any]], rows: int) -> Table:
    """Returns the first completion of each of the first groups as a table."""
    table = Table("question", "completion", "answer", "verdict", "reward", "advantage", "tokens")
    first = [record for record in records if record["sample"] == 0]
    for record in first[:rows]:
        reward = "none" if record["reward"] is None else f"{record['reward']:.2f}"
        cells = (record["question"], record["completion"], record["answer_label"], record["reason"])
        numbers = (reward, f"{record['advantage']:+.2f}", str(record["tokens"]))
        table.add_row(*(Text(str(cell)) for cell in (*cells, *numbers)))  # Text: brackets are not markup
    return table


def picture_name(picture: ImageSource) -> str:
    """Returns the path of a picture, or a hash of its bytes where it has none."""
    if isinstance(picture, Path):
        return str(picture)
    content = picture if isinstance(picture, bytes) else picture.tobytes()
    return f"sha256:{hashlib.sha256(content).hexdigest()[:16]}"
