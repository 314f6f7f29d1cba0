# SPDX-License-Identifier: Apache-2.0
"""An evaluation, written down so that every number can be computed from it again."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks.ledger import PACKAGES
from callbacks.rollout_settings import (
    batch_limit,
    control_settings,
    model_name,
    prompt_encoder,
    rollout_identity,
    rollout_of,
)
from medvlt.data.batches import PromptBatch
from medvlt.data.samples import SampleSet
from medvlt.distributed import gather_to_first, together
from medvlt.doctor import version_of
from medvlt.errors import ConfigurationError, DataError
from medvlt.evaluation.parts import Entry, RunPart, check_entries, clear_parts, merged_lines, merged_pictures
from medvlt.evaluation.runs import RUN_FILE, shown_questions, uids_fingerprint, write_lines
from medvlt.rewards.grade import GRADER_VERSION

logger = logging.getLogger(__name__)


class EvaluationRecorder(Callback):
    """Writes the run folder of a validate, test or predict: every graded completion, and what it was made with.

    `medvlt report` and `medvlt regrade` read it; `medvlt.evaluation.runs` describes it. Its content does not depend on
    the number of ranks, nor on how often the run was killed and started again: each rank writes a part, and rank 0
    puts the parts together at the end, in the order of the data. A question that was lost, or was answered twice, ends
    the run with an error and nothing is written. What lies in the folder already is replaced once the new run is whole.
    What a killed run has sampled is kept by the `store` of the rollout callback, not here.

    A completion that failed counts as wrong and stays in the denominator; its line has the message. With a store, the
    same command asks again for those alone.

    Under a control, `picture_ids` and the thumbnails are those of the pictures that the question is about, not of what
    the control puts in their place, so that questions about one picture are known as such in every run.

    The validations inside `fit` are not written.

    Hooks used: `setup`, `on_{validation,test,predict}_epoch_start`, `on_{validation,test,predict}_batch_end`,
    `on_{validation,test,predict}_end`, `on_exception`.

    Args:
        folder: Where to, a folder that all ranks see; None for the Trainer's `default_root_dir`.
        label: Name of the run in reports; "" takes the name of the model.
        pictures: So many questions of each benchmark are shown in reports and get thumbnails of their pictures.
        overwrite: Whether a run that lies in the folder may be replaced; if not, that is refused before a model is
            loaded.

    Raises:
        ConfigurationError: If a setting is out of range, no completions are sampled, the data module has no
            benchmarks, or a question is there twice.
        DataError: If there is a run that may not be replaced; at the end: if the run is not whole or cannot be written.
    """

    def __init__(self, folder: str | None = None, label: str = "", pictures: int = 50, overwrite: bool = True) -> None:
        if pictures < 0:
            raise ConfigurationError(f"EvaluationRecorder.pictures must be 0 (no thumbnails) or above, got {pictures}")
        self.folder = folder
        self.label = label
        self.pictures = pictures
        self.overwrite = overwrite
        self._about: dict[str, Any] = {}
        self._part: RunPart | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what cannot be written, before a model is loaded."""
        if stage == "fit":
            return
        rollout_of(trainer, "EvaluationRecorder")
        if not self.overwrite and (self._folder(trainer) / RUN_FILE).exists():
            raise DataError(
                f"{self._folder(trainer)} has an evaluation already; choose another EvaluationRecorder.folder (or "
                "default_root_dir), or set overwrite=true"
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a run; the engine has started by now, wherever its callback stands."""
        self._start(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a run."""
        self._start(trainer, pl_module)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a run."""
        self._start(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Writes the completions of a batch."""
        self._add(trainer, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Writes the completions of a batch."""
        self._add(trainer, batch)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Writes the completions of a batch."""
        self._add(trainer, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the run of the parts."""
        self._finish(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the run of the parts."""
        self._finish(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the run of the parts."""
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Removes the part of this rank."""
        if self._part is not None:
            self._part.discard()
            self._part = None

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.folder or trainer.default_root_dir)

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage = trainer.state.fn
        if stage is None or stage == "fit":
            return
        folder = self._folder(trainer)
        together(lambda: clear_parts(folder) if trainer.is_global_zero else None)
        self._about = together(lambda: self._describe(trainer, pl_module, stage.value))
        sets = asked_sets(trainer)
        shown = {name: frozenset(shown_questions(found.uids, self.pictures)) for name, found in sets.items()}
        self._part = together(lambda: RunPart(folder, trainer.global_rank, shown))

    def _describe(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> dict[str, Any]:
        """Returns what is known of the run before it is asked."""
        check_distinct(asked_sets(trainer))
        rollout = rollout_of(trainer, "EvaluationRecorder")
        template = prompt_encoder(trainer).template
        identity, noted = rollout_identity(rollout, trainer, pl_module)
        model = model_name(rollout, trainer, pl_module)
        return {
            "label": self.label or model,
            "model": model,
            "checkpoint": noted["checkpoint"],
            "stage": stage,
            "identity": identity,
            "control": control_settings(trainer),
            "sampling": asdict(rollout.sampling),
            "seed": rollout.seed,
            "grader": {"policy": getattr(pl_module, "grader", None), "version": GRADER_VERSION},
            "limited_to": batch_limit(trainer, stage),
            "prompt": template if isinstance(template, str) else "custom",
            "versions": {name: version for name in PACKAGES if (version := version_of(name)) is not None},
            "started": now(),
        }

    def _add(self, trainer: Trainer, batch: Any) -> None:
        if self._part is None or not isinstance(batch, PromptBatch) or batch.groups is None or batch.verdicts is None:
            return
        for _, group, verdicts in zip(batch.samples, batch.groups, batch.verdicts, strict=True):
            pictures = None
            if self._about["control"] is not None:
                pictures = trainer.datamodule.pictures_before_control(batch.benchmark, group.sample.uid)  # type: ignore[attr-defined]
            self._part.add(batch.benchmark, group, verdicts, pictures)

    def _finish(self, trainer: Trainer) -> None:
        part, self._part = self._part, None
        if part is None:
            return
        together(part.close)
        parts = gather_to_first(part.entries)
        together(lambda: self._write(trainer, parts) if trainer.is_global_zero else None)

    def _write(self, trainer: Trainer, parts: Sequence[Sequence[Entry]]) -> None:
        folder, sets = self._folder(trainer), asked_sets(trainer)
        asked = {name: found.uids for name, found in sets.items()}
        if self._about["limited_to"] is not None:
            answered = {(entry.benchmark, entry.uid) for part in parts for entry in part}
            asked = {name: tuple(uid for uid in uids if (name, uid) in answered) for name, uids in asked.items()}
        try:
            check_entries(parts, asked, self._about["sampling"]["n"])
            about = self._about | {"benchmarks": described(trainer, sets, asked), "finished": now()}
            pictures = merged_pictures(folder, len(parts))
            write_lines(folder, about, merged_lines(folder, parts, asked), overwrite=True, pictures=pictures)
        finally:
            clear_parts(folder)
        report(folder, parts)


def asked_sets(trainer: Trainer) -> dict[str, SampleSet]:
    """Returns the questions of each benchmark of the data module, whole, as every rank has them.

    Raises:
        ConfigurationError: If the data module has no benchmarks.
    """
    sets: dict[str, SampleSet] | None = getattr(getattr(trainer, "datamodule", None), "benchmark_sets", None)
    if sets is None:
        raise ConfigurationError(
            "EvaluationRecorder needs to know the questions: pass `datamodule=` (BenchmarkDataModule) to the Trainer"
        )
    return sets


def check_distinct(sets: Mapping[str, SampleSet]) -> None:
    """Raises ConfigurationError if a benchmark has a question more than once."""
    for name, samples in sets.items():
        twice = len(samples) - len(set(samples.uids))
        if twice:
            raise ConfigurationError(
                f"data.benchmarks.{name}: {twice} of {len(samples)} questions are there more than once, by their uid; "
                "EvaluationRecorder takes a question once. Name each source once, or let Mixture leave out repeats"
            )


def described(
    trainer: Trainer, sets: Mapping[str, SampleSet], asked: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Returns what `run.json` says of each benchmark: how many questions, which, and where they come from."""
    sources: Mapping[str, object] = getattr(trainer, "datamodule", None).benchmark_sources  # type: ignore[union-attr]
    return {
        name: {
            "questions": len(uids),
            "uids": uids_fingerprint(uids),
            "source": sets[name].report.source,
            "expected": getattr(sources[name], "expected_rows", None),
        }
        for name, uids in asked.items()
    }


def report(folder: Path, parts: Sequence[Sequence[Entry]]) -> None:
    """Says where the run is, and how many completions failed."""
    entries = [entry for part in parts for entry in part]
    completions, failed = sum(entry.completions for entry in entries), sum(entry.failed for entry in entries)
    rank_zero_info(f"{folder}: {completions} completions of {len(entries)} questions; `medvlt report {folder}`")
    if failed:
        logger.warning(
            "%d of %d completions never came; they count as wrong, and %s lists them with their messages. With a "
            "store, the same command asks again for them alone", failed, completions, folder / "completions.jsonl",
        )  # fmt: skip


def now() -> str:
    """Returns the time in UTC, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
