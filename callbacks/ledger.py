# SPDX-License-Identifier: Apache-2.0
"""Pass counts of a predict run, into a ledger."""

from __future__ import annotations

import datetime
import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table
from rich.text import Text

from callbacks.rollout_settings import (
    asked_uids,
    check_asked_once,
    describe_rollout,
    is_limited,
    rollout_of,
)
from medvlt.console import wide_console
from medvlt.curation.histogram import NO_NAME, by_source, histogram_table
from medvlt.curation.ledger import Ledger, Probe, check_writable, update_ledger
from medvlt.curation.probe import check_name
from medvlt.data.batches import PromptBatch
from medvlt.distributed import gather, together
from medvlt.errors import ConfigurationError, DataError
from medvlt.rewards.grade import GRADER_VERSION, grade
from medvlt.types import RolloutGroup

logger = logging.getLogger(__name__)

SHOWN_FAILURES = 3
"""Messages of failed completions that are shown, the most frequent ones."""


class PassCountLedger(Callback):
    """Counts how often each question of a predict run is answered right, and writes the counts into a ledger.

    Every completion is graded twice, whatever the module's own grader: by `reference_eval`, which gives the reference's
    pass counts ("strict"), and by `robust`, whose rules also say which completions are in the asked format. Completions
    that failed are no attempts: `n` counts the others, `errors` these; running again asks for them once more.

    At the end the ranks put their counts together. Each question of the data module must have been asked once, with the
    completions that were asked for, else nothing is written. The ledger may be there already: other probes, other
    questions and marks stay. Whether it can be written and locked is found out before a model is loaded, whether the
    probe fits it before anything is sampled.

    Hooks used: `setup`, `on_predict_epoch_start`, `on_predict_batch_end`, `on_predict_end`.

    Args:
        path: The ledger, a Parquet file; made if it is not there. Several jobs may add to one file.
        probe: Name of the probe, which heads its columns; letters, digits, `_`, `-`, `.`.
        max_failed_share: Share of the questions, in [0, 1], that may end without a pass count because completions
            failed. Beyond it the run ends with an error, with the ledger written all the same.

    Raises:
        ConfigurationError: If a setting is out of range, or questions or completions would not make whole counts.
        DataError: If the name cannot head columns, or the ledger cannot take the probe; at the end: if a question was
            lost or asked twice, or too many failed.
    """

    def __init__(self, path: str, probe: str, max_failed_share: float = 0.05) -> None:
        if not path:
            raise ConfigurationError("PassCountLedger.path is empty; name the file, such as data/ledger.parquet")
        if not 0 <= max_failed_share <= 1:
            raise ConfigurationError(f"PassCountLedger.max_failed_share must be in [0, 1], got {max_failed_share}")
        check_name(probe)
        self.path = Path(path)
        self.probe = probe
        self.max_failed_share = max_failed_share
        self._rows: dict[str, dict[str, Any]] = {}
        self._questions: dict[str, tuple[str, int | str]] = {}
        self._failures: Counter[str] = Counter()
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
        together(lambda: check_writable(self.path) if trainer.is_global_zero else None)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that the ledger can take the probe; the engine has started by now, wherever its callback stands."""
        self._rows, self._questions, self._failures = {}, {}, Counter()
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
            self._failures.update(failure_messages(group))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the ranks together, checks that nothing is missing, and writes."""
        shares = gather((self._rows, self._questions, self._failures))
        rows = {uid: row for share, _, _ in shares for uid, row in share.items()}
        questions = {uid: question for _, share, _ in shares for uid, question in share.items()}
        failures: Counter[str] = sum((found for _, _, found in shares), Counter())
        times = Counter(uid for share, _, _ in shares for uid in share)
        check_coverage(times, asked_uids(trainer), rows, n=rollout_of(trainer, "PassCountLedger").sampling.n)
        together(lambda: self._write(rows, questions, failures) if trainer.is_global_zero else None)

    def _describe(self, trainer: Trainer, pl_module: LightningModule) -> Probe:
        about = describe_rollout(rollout_of(trainer, "PassCountLedger"), trainer, pl_module)
        identity = about.pop("identity")
        return Probe(
            name=self.probe,
            details={name: value for name, value in identity.items() if name not in ("sampling", "seed")},
            **about,
            grader_version=GRADER_VERSION,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        )

    def _check_ledger(self, trainer: Trainer) -> None:
        if self.path.exists() and self._described is not None:
            Ledger.read(self.path).check_probe(self._described, asked_uids(trainer))

    def _write(
        self,
        rows: Mapping[str, Mapping[str, Any]],
        questions: Mapping[str, tuple[str, int | str]],
        failures: Counter[str],
    ) -> None:
        assert self._described is not None
        described = self._described
        ledger = update_ledger(self.path, lambda ledger: ledger.with_probe(described, rows, questions))
        print_counts(described, rows, {uid: name for uid, (name, _) in questions.items()})
        print(
            f"{self.path}: {len(rows)} questions counted for probe {self.probe!r}; probes: {', '.join(ledger.probes)}"
        )
        failed = sum(row["errors"] > 0 for row in rows.values())
        if not failed:
            return
        message = (
            f"{failed} of {len(rows)} questions ({failed / len(rows):.1%}) have completions that failed, and count as "
            f"not measured: {in_words(failures)}. The same command with the same store asks for these once more; what "
            "was refused for its length or its picture is refused again unless settings or data change"
        )
        if failed / len(rows) > self.max_failed_share:
            raise DataError(
                f"{message}. max_failed_share={self.max_failed_share} allows {self.max_failed_share:.1%}; "
                f"{self.path} is written all the same, with gaps that `Selection` refuses by its min_measured"
            )
        logger.warning("%s", message)


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


def in_words(failures: Counter[str]) -> str:
    """Returns the most frequent messages of failed completions, each with the number of questions that have it."""
    words = [f"{number} times {message!r}" for message, number in failures.most_common(SHOWN_FAILURES)]
    others = len(failures) - SHOWN_FAILURES
    return "; ".join(words) + (f"; and {others} other messages" if others > 0 else "")


def failure_messages(group: RolloutGroup) -> set[str]:
    """Returns the messages of a question's failed completions, without their numbers, which differ by question."""
    failed = (completion for completion in group.completions if completion.finish_reason == "error")
    return {re.sub(r"\d[\d,.]*", "#", completion.error)[:150] or "no message" for completion in failed}


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
        title=f"{probe.name}: {probe.answered_by}, {probe.n} answers each. Research software, not for clinical use.",
        title_justify="left",
    )
    for heading in ("source", "questions", "answers", "strict", "robust", "format", "cut", "failed"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for name, counts in grouped.items():
        shares = (counts[column] / max(counts["n"], 1) for column in ("strict", "robust", "format", "truncated"))
        table.add_row(
            Text(name or NO_NAME), f"{counts['questions']:,}", f"{counts['n']:,}",
            *(f"{share:.1%}" for share in shares), f"{counts['errors']:,}",
        )  # fmt: skip
    console = wide_console()
    console.print(table)
    if whole := {uid: int(row["strict"]) for uid, row in rows.items() if not row["errors"]}:
        bins = by_source(whole, names, probe.n)
        console.print(histogram_table(bins, f"{probe.name}, strict count."))
