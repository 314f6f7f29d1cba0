# SPDX-License-Identifier: Apache-2.0
"""An evaluation, written down so that every number can be computed from it again."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks.rollout_settings import batch_limit, check_distinct, control_settings, describe_rollout, rollout_of
from medvlt.data.batches import PromptBatch
from medvlt.data.samples import SampleSet, uids_fingerprint
from medvlt.distributed import gather, gather_to_first, together
from medvlt.errors import ConfigurationError, DataError
from medvlt.evaluation.parts import Entry, RunPart, check_entries, merged_lines, merged_pictures, new_parts
from medvlt.evaluation.runs import (
    RUN_FILE,
    check_replaceable,
    read_about,
    shown_questions,
    utc_now,
    write_lines,
)
from medvlt.rewards.grade import GRADER_VERSION

logger = logging.getLogger(__name__)


class EvaluationRecorder(Callback):
    """Writes the run folder of a validate, test or predict: every graded completion, and what it was made with.

    `medvlt report` and `medvlt regrade` read it; `medvlt.evaluation.runs` describes it. Its content does not depend on
    the number of ranks, nor on how often the run was killed and started again: each rank writes a part, and rank 0
    puts the parts together when the last question is answered, in the order of the data and before anything is done
    with the results. A question that was lost, or was answered twice, ends the run with an error and nothing is
    written. The run that lies in the folder is replaced once the new one is whole; files of the user's own never are.
    What a killed run has sampled is kept by the `store` of the rollout callback, not here.

    A completion that failed counts as wrong and stays in the denominator; its line has the message. With a store, the
    same command asks again for those alone.

    Under a control, `picture_ids` and the thumbnails are those of the pictures that the question is about, not of what
    the control puts in their place, so that questions about one picture are known as such in every run.

    The validations inside `fit` are not written.

    Hooks used: `setup`, `on_{validation,test,predict}_epoch_start`, `on_{validation,test,predict}_batch_end`,
    `on_{validation,test,predict}_epoch_end`, `on_exception`.

    Args:
        folder: Where to, a folder that all ranks see; None for the Trainer's `default_root_dir`.
        label: Name of the run in reports; "" takes the name of the model.
        pictures: So many questions of each benchmark are shown in reports and get thumbnails of their pictures.
        overwrite: Whether a run that lies in the folder may be replaced. By default (null) it may by the same
            evaluation asked again: the same questions, control, sampling and grader, whichever model answers. A limited
            run gives way to any other run of its benchmarks and replaces no whole one. True replaces any run, False
            none. Found out before a model is loaded.

    Raises:
        ConfigurationError: If a setting is out of range, no completions are sampled, the data module has no
            benchmarks, nothing is asked, a question is there twice, or two recorders write to one folder.
        DataError: If something lies in the folder that may not be replaced, or not all ranks see the folder; at the
            end: if the run is not whole or cannot be written.
    """

    def __init__(
        self, folder: str | None = None, label: str = "", pictures: int = 50, overwrite: bool | None = None
    ) -> None:
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
        for name, samples in asked_sets(trainer).items():
            check_distinct(Counter(samples.uids), f"data.benchmarks.{name}", "EvaluationRecorder")
        if batch_limit(trainer, stage) == 0:
            raise ConfigurationError(
                "the Trainer's limit of 0 batches (limit_val_batches, limit_test_batches, limit_predict_batches) "
                "leaves nothing to ask; set it to 1 batch or more, or leave it out"
            )
        callbacks: Sequence[object] = trainer.callbacks  # type: ignore[attr-defined]
        folders = [found._folder(trainer) for found in callbacks if isinstance(found, EvaluationRecorder)]
        if folders.count(self._folder(trainer)) > 1:
            raise ConfigurationError(
                f"two EvaluationRecorders write to {self._folder(trainer)}; leave one out, or give them a folder each"
            )
        together(lambda: self._check_folder(trainer, stage) if trainer.is_global_zero else None)

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

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the run of the parts."""
        self._finish(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the run of the parts."""
        self._finish(trainer)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the run of the parts."""
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Removes the part of this rank."""
        if self._part is not None:
            self._part.discard()
            self._part = None

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.folder or trainer.default_root_dir).absolute()

    def _check_folder(self, trainer: Trainer, stage: str) -> None:
        """Refuses to replace what should stay."""
        folder = self._folder(trainer)
        check_replaceable(folder)
        if self.overwrite or not (folder / RUN_FILE).exists():
            return
        if self.overwrite is None and asks_again(trainer, stage, folder):
            return
        other = " with other or more questions, another control, sampling or grader" if self.overwrite is None else ""
        raise DataError(
            f"{folder} has an evaluation already{other}; choose another EvaluationRecorder.folder (or "
            "default_root_dir), or set its overwrite=true to replace it"
        )

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage = trainer.state.fn
        if stage is None or stage == "fit":
            return
        self._about = together(lambda: self._describe(trainer, pl_module, stage.value))
        sets = asked_sets(trainer)
        shown = {name: frozenset(shown_questions(found.uids, self.pictures)) for name, found in sets.items()}
        parts = gather(together(lambda: new_parts(self._folder(trainer)) if trainer.is_global_zero else Path()))[0]

        def begin() -> None:  # keeps it also if another rank fails, so that it is removed
            self._part = RunPart(parts, trainer.global_rank, shown)

        together(begin)

    def _describe(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> dict[str, Any]:
        """Returns what is known of the run before it is asked."""
        about = describe_rollout(rollout_of(trainer, "EvaluationRecorder"), trainer, pl_module)
        return {
            "label": self.label or about["model"],
            **about,
            "stage": stage,
            "control": control_settings(trainer),
            "grader": {"policy": getattr(pl_module, "grader", None), "version": GRADER_VERSION},
            "limited_to": batch_limit(trainer, stage),
            "started": utc_now(),
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
        part = self._part
        if part is None:
            return
        together(part.close)
        entries = gather_to_first(part.entries)
        self._part = None  # from here on all parts are those of rank 0
        together(lambda: self._write(trainer, part.folder.parent, entries) if trainer.is_global_zero else None)

    def _write(self, trainer: Trainer, place: Path, parts: Sequence[Sequence[Entry]]) -> None:
        folder, sets = self._folder(trainer), asked_sets(trainer)
        asked = {name: found.uids for name, found in sets.items()}
        if self._about["limited_to"] is not None:
            answered = {(entry.benchmark, entry.uid) for part in parts for entry in part}
            asked = {name: tuple(uid for uid in uids if (name, uid) in answered) for name, uids in asked.items()}
        try:
            check_entries(parts, asked, self._about["sampling"]["n"])
        except DataError:
            shutil.rmtree(place, ignore_errors=True)
            raise
        try:
            self._check_folder(trainer, self._about["stage"])  # hours may have passed
            about = self._about | {"benchmarks": described(trainer, sets, asked), "finished": utc_now()}
            pictures = merged_pictures(place, len(parts))
            write_lines(folder, about, merged_lines(place, parts, asked), overwrite=True, pictures=pictures)
        except DataError as error:
            raise DataError(f"{error}. What was answered stays in {place} until the next evaluation there") from error
        shutil.rmtree(place, ignore_errors=True)
        log_run(folder, parts)


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


def asks_again(trainer: Trainer, stage: str, folder: Path) -> bool:
    """Returns whether a run asks what the stored one was asked, or all of what that one, a limited one, asked in part.

    Args:
        trainer: The Trainer.
        stage: "validate", "test" or "predict".
        folder: Of the stored run.
    """
    try:
        about = read_about(folder)
        stored = {name: kept["uids"] for name, kept in about["benchmarks"].items()}
        limited = about["limited_to"] is not None
        protocol = about["control"], about["sampling"], about["grader"]["policy"]
    except (DataError, KeyError, TypeError, AttributeError):  # imported, say, or no run at all
        return False
    sets = asked_sets(trainer)
    sampling = asdict(rollout_of(trainer, "EvaluationRecorder").sampling)
    now_asked = control_settings(trainer), sampling, getattr(trainer.lightning_module, "grader", None)
    if stored.keys() != sets.keys() or list(protocol) != json.loads(json.dumps(now_asked)):
        return False
    whole = {name: uids_fingerprint(samples.uids) for name, samples in sets.items()}
    return limited or (batch_limit(trainer, stage) is None and stored == whole)


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


def log_run(folder: Path, parts: Sequence[Sequence[Entry]]) -> None:
    """Says where the run is, and how many completions failed."""
    entries = [entry for part in parts for entry in part]
    completions, failed = sum(entry.completions for entry in entries), sum(entry.failed for entry in entries)
    rank_zero_info(f"{folder}: {completions} completions of {len(entries)} questions; `medvlt report {folder}`")
    if failed:
        logger.warning(
            "%d of %d completions never came; they count as wrong, and %s lists them with their messages. With a "
            "store, the same command asks again for them alone", failed, completions, folder / "completions.jsonl",
        )  # fmt: skip
