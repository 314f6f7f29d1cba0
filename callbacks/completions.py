# SPDX-License-Identifier: Apache-2.0
"""Every completion of training, written down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medvlt.data.files import replacing
from medvlt.errors import ConfigurationError
from medvlt.evaluation.records import completion_record, picture_id
from medvlt.rollout.iteration import Iteration


class CompletionLogger(Callback):
    """Writes the graded completions of each training iteration to a JSON Lines file.

    One file per iteration, written by one rank when the update begins, `completions-train/{iteration:06d}.jsonl`; an
    iteration that is repeated after a resume replaces its file. Evaluations are written by
    `callbacks.EvaluationRecorder`.

    One line per completion: the iteration, the columns of `medvlt.evaluation.records.completion_record`, the rewards
    and the advantage.

    Hooks used: `on_train_batch_start`.

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
            temporary.write_text("".join(lines), encoding="utf-8", errors="surrogatepass")
        if self.rows:
            Console().print(completion_table(records, self.rows))


def iteration_records(iteration: Iteration) -> Iterator[dict[str, Any]]:
    """Yields one record per completion of an iteration, group by group."""
    assert iteration.advantages is not None
    for scored, advantages in zip(iteration.groups, iteration.advantages.tolist(), strict=True):
        picture_ids = [picture_id(picture) for picture in scored.group.sample.images]
        columns = zip(scored.group.completions, scored.verdicts, scored.rewards, advantages, strict=True)
        for number, (completion, verdict, reward, advantage) in enumerate(columns):
            yield {
                "iteration": iteration.number,
                **completion_record(scored.group, number, completion, verdict, picture_ids),
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
