# SPDX-License-Identifier: Apache-2.0
"""Pass counts of a predict run, into a ledger."""

from __future__ import annotations

import datetime
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from rich.text import Text

from callbacks.rollout_settings import (
    asked_uids,
    check_asked_once,
    is_limited,
    model_name,
    prompt_encoder,
    rollout_identity,
    rollout_of,
)
from medvlt.console import wide_console
from medvlt.curation.histogram import by_source, histogram_table
from medvlt.curation.ledger import Ledger, Probe, update_ledger
from medvlt.data.batches import PromptBatch
from medvlt.distributed import gather, together
from medvlt.errors import ConfigurationError, DataError
from medvlt.rewards.grade import GRADER_VERSION, grade
from medvlt.types import RolloutGroup

logger = logging.getLogger(__name__)


class PassCountLedger(Callback):
    """Counts how often each question of a predict run is answered right, and writes the counts into a ledger.

    Every completion is graded twice, whatever the module's own grader: by `reference_eval`, which gives the reference's
    pass counts ("strict"), and by `robust`, whose rules also say which completions are in the asked format. Completions
    that failed are no attempts: `n` counts the others, `errors` these; running again asks for them once more.

    At the end the ranks put their counts together. Each question of the data module must have been asked once, with the
    completions that were asked for, else nothing is written. The ledger may be there already: other probes, other
    questions and marks stay. Whether the probe fits it is checked before anything is sampled.

    Hooks used: `setup`, `on_predict_epoch_start`, `on_predict_batch_end`, `on_predict_end`.

    Args:
        path: The ledger, a Parquet file; made if it is not there. Several jobs may add to one file.
        probe: Name of the probe, which heads its columns; letters, digits, `_`, `-`, `.`.
    """

    def __init__(self, path: str, probe: str) -> None:
        self.path = Path(path)
        self.probe = probe
        self._rows: dict[str, dict[str, Any]] = {}
        self._questions: dict[str, tuple[str, int | str]] = {}
        self._described: Probe | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a run that cannot give whole counts, before a model is loaded."""
        if stage != "predict":
            return
        if is_limited(trainer):
            raise ConfigurationError(
                f"limit_predict_batches={trainer.limit_predict_batches} asks only a part of the questions, which the "
                "ledger would not show; take a part in the data (Subset with limit), or leave PassCountLedger out"
            )
        sampling = rollout_of(trainer, "PassCountLedger").sampling
        if sampling.n > 1 and sampling.temperature == 0:
            raise ConfigurationError(
                f"sampling: {sampling.n} completions at temperature 0 are {sampling.n} times the same; set temperature "
                "(the reference has 1.0)"
            )

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that the ledger can take the probe; the engine has started by now, wherever its callback stands."""
        self._rows, self._questions = {}, {}
        check_asked_once(trainer, "PassCountLedger")
        self._described = together(lambda: self._describe(trainer, pl_module))
        together(lambda: self._check_ledger(trainer) if trainer.is_global_zero else None)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Counts the completions of a batch."""
        if not isinstance(batch, PromptBatch):
            return
        for group in batch.groups or ():
            sample = group.sample
            if sample.uid in self._rows:
                raise DataError(f"question {sample.uid} was asked twice; this is a defect, please report it")
            self._rows[sample.uid] = count_group(group)
            self._questions[sample.uid] = (sample.dataset_name, sample.dataset_index)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the ranks together, checks that nothing is missing, and writes."""
        shares = gather((self._rows, self._questions))
        rows = {uid: row for share, _ in shares for uid, row in share.items()}
        questions = {uid: question for _, share in shares for uid, question in share.items()}
        times = Counter(uid for share, _ in shares for uid in share)
        check_coverage(times, asked_uids(trainer), rows, n=rollout_of(trainer, "PassCountLedger").sampling.n)
        together(lambda: self._write(rows, questions) if trainer.is_global_zero else None)

    def _describe(self, trainer: Trainer, pl_module: LightningModule) -> Probe:
        rollout = rollout_of(trainer, "PassCountLedger")
        encoder = prompt_encoder(trainer)
        identity, _ = rollout_identity(rollout, trainer, pl_module)
        return Probe(
            name=self.probe,
            model=model_name(rollout, trainer, pl_module),
            prompt=encoder.template if isinstance(encoder.template, str) else "custom",
            sampling=asdict(rollout.sampling),
            seed=rollout.seed,
            details={name: value for name, value in identity.items() if name not in ("sampling", "seed")},
            grader_version=GRADER_VERSION,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        )

    def _check_ledger(self, trainer: Trainer) -> None:
        if self.path.exists() and self._described is not None:
            Ledger.read(self.path).check_probe(self._described, asked_uids(trainer))

    def _write(self, rows: Mapping[str, Mapping[str, Any]], questions: Mapping[str, tuple[str, int | str]]) -> None:
        assert self._described is not None
        described = self._described
        ledger = update_ledger(self.path, lambda ledger: ledger.with_probe(described, rows, questions))
        print_counts(described, rows, {uid: name for uid, (name, _) in questions.items()})
        print(
            f"{self.path}: {len(rows)} questions counted for probe {self.probe!r}; probes: {', '.join(ledger.probes)}"
        )
        if failed := sum(row["errors"] > 0 for row in rows.values()):
            logger.warning(
                "%d questions have completions that failed, and count as not measured; the same command with the same "
                "store asks for these once more", failed,
            )  # fmt: skip


def count_group(group: RolloutGroup) -> dict[str, Any]:
    """Returns the counts of a question, the columns of `medvlt.curation.probe.COLUMNS` apart from the grader."""
    attempts = [completion for completion in group.completions if completion.finish_reason != "error"]
    cut = [completion.finish_reason == "length" for completion in attempts]
    strict = [grade(completion.text, group.sample, policy="reference_eval") for completion in attempts]
    robust = [
        grade(completion.text, group.sample, policy="robust", truncated=truncated)
        for completion, truncated in zip(attempts, cut, strict=True)
    ]
    return {
        "n": len(attempts),
        "strict": sum(verdict.correct for verdict in strict),
        "robust": sum(verdict.correct for verdict in robust),
        "format": sum(verdict.format_ok for verdict in robust),
        "truncated": sum(cut),
        "errors": len(group.completions) - len(attempts),
        "mean_tokens": sum(completion.length for completion in attempts) / len(attempts) if attempts else 0.0,
        "pictures": len(group.sample.images),
    }


def check_coverage(
    times: Mapping[str, int], asked: Mapping[str, int], rows: Mapping[str, Mapping[str, Any]], *, n: int
) -> None:
    """Raises DataError unless each question was counted once, and with as many completions as were asked for.

    Args:
        times: Uid to how often it was counted, over all ranks.
        asked: Uids of the data module.
        rows: Uid to counts.
        n: Completions of each question.
    """
    faults = {
        "never counted": [uid for uid in asked if uid not in times],
        "counted twice": [uid for uid, number in times.items() if number > 1],
        "counted but not in the data": [uid for uid in times if uid not in asked],
        f"without their {n} completions": [uid for uid, row in rows.items() if row["n"] + row["errors"] != n],
    }
    found = [f"{len(uids)} {fault}, such as {', '.join(uids[:3])}" for fault, uids in faults.items() if uids]
    if found:
        raise DataError(
            f"the counts are not whole, and no ledger is written: of {len(asked)} questions {'; '.join(found)}. What "
            "the store has is kept; run again, and report it if it stays"
        )


def print_counts(probe: Probe, rows: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> None:
    """Prints accuracy and format rate per source, and the histogram of strict counts.

    Args:
        probe: The probe.
        rows: Uid to counts.
        names: Uid to the name of its data set.
    """
    grouped: dict[str, Counter[str]] = {}
    for uid, row in rows.items():
        counts = {name: row[name] for name in ("n", "strict", "robust", "format", "truncated", "errors")}
        grouped.setdefault(names[uid], Counter()).update({"questions": 1, **counts})
    table = Table(
        title=f"{probe.name}: {probe.model}, {probe.n} answers each. Research software, not for clinical use.",
        title_justify="left",
    )
    for heading in ("source", "questions", "answers", "strict", "robust", "format", "cut", "failed"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for name, counts in grouped.items():
        shares = (counts[column] / max(counts["n"], 1) for column in ("strict", "robust", "format", "truncated"))
        table.add_row(
            Text(name or "(no name)"), f"{counts['questions']:,}", f"{counts['n']:,}",
            *(f"{share:.1%}" for share in shares), f"{counts['errors']:,}",
        )  # fmt: skip
    console = wide_console()
    console.print(table)
    if whole := {uid: int(row["strict"]) for uid, row in rows.items() if not row["errors"]}:
        bins = by_source(whole, {uid: name or "(no name)" for uid, name in names.items()}, probe.n)
        console.print(histogram_table(bins, f"{probe.name}, strict count."))
