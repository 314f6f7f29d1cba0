# SPDX-License-Identifier: Apache-2.0
"""A teacher's reasoning, kept where its answer is right: a data set for supervised fine-tuning."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from callbacks.rollout import RolloutCallback
from callbacks.rollout_settings import rollout_identity
from medvlt.curation.card import PROVENANCE, write_dataset
from medvlt.curation.distill import TraceChoice, TracedSamples, TraceStatus, choose_trace
from medvlt.curation.selection import SelectionReport
from medvlt.data.batches import PromptBatch
from medvlt.data.files import replacing
from medvlt.data.samples import Chain, SampleSet
from medvlt.distributed import gather, together
from medvlt.errors import ConfigurationError, DataError
from medvlt.rewards.grade import GRADER_VERSION

logger = logging.getLogger(__name__)

KIND = "teacher traces"
"""Value of `kind` in the provenance of a set written here; only such a set is replaced."""

_MEANING = {
    TraceStatus.TRACE: "traces kept",
    TraceStatus.ALL_WRONG: "every completion wrong",
    TraceStatus.NO_REASONING: "right, without reasoning",
    TraceStatus.UNREADABLE: "right, reasoning with tags or control tokens",
    TraceStatus.FAILED: "no trace, requests failed",
}


class TeacherTraces(Callback):
    """Keeps, of the n completions of each question, the first that grades right, and writes its reasoning as data.

    For `medvlt predict`. The module's grader decides what is right. Only what was kept travels between ranks. At the
    end rank 0 writes

    - `output`: a saved data set of the questions that have a trace, in the order of the sources, with `reasoning` and
      the columns `teacher` and `teacher_sample`, its data card and provenance: what `SFTDataModule` trains on;
    - `{output}.status.jsonl`: one line for every question asked, with what became of it and the messages of requests
      that failed. It is written also if no trace was found.

    Failed requests stay in every denominator. The set is written although some failed, since a provider may refuse a
    few questions for ever; its card and the terminal then call it incomplete. Run the same command again: with a
    `store` on the RolloutCallback only what is missing is asked for, and the set is written anew. What lies at `output`
    and was not written here is never replaced, nor is a complete set by a part; that is found out before anything is
    sampled.

    Hooks used: `setup`, `on_predict_start`, `on_predict_batch_end`, `on_predict_end`.

    Args:
        output: Folder of the data set.
        teacher: Name of the model in the column `teacher`; None takes the engine's own.
        max_failed_share: Share of the requests that may fail, in [0, 1]. Beyond it the run ends with an error, with
            everything written all the same.

    Raises:
        ConfigurationError: If a setting is out of range, or `output` holds something else.
        DataError: At the end: if a question was lost or asked twice, no trace was found, or too many requests failed.
    """

    def __init__(self, output: str | Path, teacher: str | None = None, max_failed_share: float = 0.05) -> None:
        if not 0 <= max_failed_share <= 1:
            raise ConfigurationError(f"max_failed_share must be in [0, 1], got {max_failed_share}")
        self.output = Path(output)
        self.teacher = teacher
        self.max_failed_share = max_failed_share
        self._choices: list[TraceChoice] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks whether `output` may be written, before a request is paid for."""
        if stage == "predict":
            _rollout(trainer)
            check_replaceable(self.output, partial=is_limited(trainer))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        self._choices = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Chooses among the completions of a batch."""
        if not isinstance(batch, PromptBatch) or batch.groups is None or batch.verdicts is None:
            return
        for group, verdicts in zip(batch.groups, batch.verdicts, strict=True):
            self._choices.append(choose_trace(batch.benchmark, group, verdicts))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers what all ranks chose, checks that no question is missing, writes and reports."""
        choices = list(chain.from_iterable(gather(self._choices)))
        self._choices = []
        together(lambda: self._finish(trainer, pl_module, choices) if trainer.is_global_zero else None)

    def _finish(self, trainer: Trainer, pl_module: LightningModule, found: Sequence[TraceChoice]) -> None:
        sets = asked_sets(trainer)
        expected = {name: samples.uids for name, samples in sets.items()}
        choices, missing = in_order(found, expected, partial=is_limited(trainer))
        status = self.output.with_name(f"{self.output.name}.status.jsonl")
        with replacing(status, overwrite=True) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(choice.to_json()) + "\n" for choice in choices)
        counts = trace_counts(choices) | {"questions_not_asked": missing}
        self._report(trainer, counts)
        kept = [choice for choice in choices if choice.status is TraceStatus.TRACE]
        if not kept:
            raise DataError(
                f"no trace for any of {counts['questions']} questions, so {self.output} is not written: "
                + ", ".join(f"{_MEANING[status]} {counts[status.value]}" for status in _MEANING if counts[status.value])
                + f"; {status} has every question with what became of it"
                + (f". {again(trainer)}" if counts["requests_failed"] else "")
            )
        self._write(trainer, pl_module, sets, kept, counts)
        logger.info("traces written to %s, what became of each question to %s", self.output, status)
        share = counts["requests_failed"] / counts["requests"]
        if share > self.max_failed_share:
            raise DataError(
                f"{counts['requests_failed']} of {counts['requests']} requests ({share:.1%}) failed, and "
                f"max_failed_share={self.max_failed_share} allows {self.max_failed_share:.1%}. {self.output} holds the "
                f"{len(kept)} traces there are, marked as incomplete. {again(trainer)}"
            )

    def _write(
        self, trainer: Trainer, pl_module: LightningModule, sets: Mapping[str, SampleSet],
        kept: Sequence[TraceChoice], counts: Mapping[str, int],
    ) -> None:  # fmt: skip
        complete = not (counts["requests_failed"] or counts["questions_not_asked"])
        rollout = _rollout(trainer)
        identity, about = rollout_identity(rollout, trainer, pl_module)
        teacher = self.teacher or getattr(rollout.engine, "model", None) or about["model"]
        questions = SampleSet(Chain([*sets.values()]))
        position = {uid: index for index, uid in reversed(list(enumerate(questions.uids)))}  # of repeats the first
        chosen = {choice.uid: choice for choice in reversed(kept)}
        order = sorted(chosen, key=position.__getitem__)
        base = questions.select(position[uid] for uid in order)
        reports = tuple(samples.report for samples in sets.values())
        left_out = {_MEANING[status]: counts[status.value] for status in _MEANING if status is not TraceStatus.TRACE}
        left_out |= {"not asked": counts["questions_not_asked"], "asked under two names": len(kept) - len(base)}
        report = SelectionReport(
            f"answers of {teacher}", sum(part.kept for part in reports), len(base), parts=reports,
            left_out={reason: number for reason, number in left_out.items() if number},
        )  # fmt: skip
        traced = TracedSamples(base, [chosen[uid] for uid in order], teacher)
        provenance = {
            "kind": KIND,
            "teacher": teacher,
            "complete": complete,
            "completions": {**identity, "n": rollout.sampling.n},
            "grader": getattr(pl_module, "grader", None),
            "grader_version": GRADER_VERSION,
            "rule": "first completion that grades right and gives a reason; reasoning of its first think block",
            "counts": dict(counts),
        }
        notes = ["`reasoning` is the teacher's, of the first of its completions that grades right."]
        if not complete:
            notes.append(
                f"Incomplete: {counts['requests_failed']} of {counts['requests']} requests failed, and "
                f"{counts['questions_not_asked']} questions were not asked. Run the same command again."
            )
        write_dataset(
            SampleSet(traced, report, uids=order),
            self.output,
            title=f"Reasoning of {teacher}" + ("" if complete else " (incomplete)"),
            provenance=provenance,
            notes=notes,
            overwrite=True,
        )

    def _report(self, trainer: Trainer, counts: Mapping[str, int]) -> None:
        console = Console(width=None if sys.stdout.isatty() else 120)
        console.print(counts_table(counts))
        if counts["requests_failed"]:
            console.print(
                f"{counts['requests_failed']} of {counts['requests']} requests failed: the set is incomplete. "
                f"{again(trainer)}",
                markup=False,
            )
        if counts["questions_not_asked"]:
            console.print(
                f"{counts['questions_not_asked']} questions were not asked (limit_predict_batches): the set is "
                "incomplete.",
                markup=False,
            )


def in_order(
    found: Sequence[TraceChoice], expected: Mapping[str, Sequence[str]], *, partial: bool
) -> tuple[list[TraceChoice], int]:
    """Returns the choices in the order of the questions, and how many questions were not asked.

    Args:
        found: Choices of all ranks, in any order.
        expected: Uids of each benchmark.
        partial: Whether questions may be missing.

    Raises:
        DataError: If a question was asked twice, is not of these benchmarks, or is missing and may not be.
    """
    by_question = {(choice.benchmark, choice.uid): choice for choice in found}
    wanted = [(name, uid) for name, names in expected.items() for uid in names]
    twice = [question for question, number in Counter((c.benchmark, c.uid) for c in found).items() if number > 1]
    strange = sorted(by_question.keys() - set(wanted))
    missing = [question for question in wanted if question not in by_question]
    for what, questions in (
        ("asked twice", twice),
        ("not of the data module", strange),
        ("lost on the way", [] if partial else missing),
    ):
        if questions:
            examples = ", ".join(f"{uid} ({name})" for name, uid in questions[:3])
            raise DataError(
                f"{len(questions)} of {len(wanted)} questions were {what}, such as {examples}; no data set is written. "
                "Run the same command again; if it comes again, please report it"
            )
    return [by_question[question] for question in wanted if question in by_question], len(missing)


def trace_counts(choices: Sequence[TraceChoice]) -> dict[str, int]:
    """Returns questions by what became of them, and their completions: asked for, right, failed, passed over."""
    statuses = Counter(choice.status for choice in choices)
    skipped: Counter[str] = sum((Counter(choice.skipped) for choice in choices), Counter())
    return {
        "questions": len(choices),
        **{status.value: statuses[status] for status in TraceStatus},
        "untagged": sum(choice.untagged for choice in choices),
        "requests": sum(choice.n for choice in choices),
        "requests_right": sum(choice.right for choice in choices),
        "requests_failed": sum(choice.failed for choice in choices),
        "passed_over": skipped.total(),
    }


def counts_table(counts: Mapping[str, int]) -> Table:
    """Returns what became of the questions as a table, with shares of all questions."""
    table = Table(title="Traces of a teacher. Research software, not for clinical use.", title_justify="left")
    table.add_column("")
    table.add_column("questions", justify="right")
    table.add_column("share", justify="right")
    whole = max(counts["questions"], 1)
    rows = [("all", counts["questions"])] + [(text, counts[status.value]) for status, text in _MEANING.items()]
    rows.append(("kept, of these without think tags", counts["untagged"]))
    for text, number in rows:
        table.add_row(text, str(number), f"{number / whole:.1%}")
    table.caption = (
        f"{counts['requests']} completions: {counts['requests_right']} right, {counts['requests_failed']} failed, "
        f"{counts['passed_over']} right and passed over"
    )
    table.caption_justify = "left"
    return table


def check_replaceable(output: Path, *, partial: bool) -> None:
    """Raises ConfigurationError unless `output` is free or holds a set that `TeacherTraces` wrote.

    Args:
        output: The folder.
        partial: Whether only a part of the questions will be asked; a complete set is not replaced by a part.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        facts = json.loads((output / PROVENANCE).read_text(encoding="utf-8"))["provenance"]
        ours, complete = facts["kind"] == KIND, facts["complete"]
    except (OSError, ValueError, KeyError, TypeError):
        ours, complete = False, False
    if not ours:
        raise ConfigurationError(
            f"TeacherTraces.output: {output} exists and was not written by TeacherTraces, so it is not replaced; "
            "choose another path"
        )
    if partial and complete:
        raise ConfigurationError(
            f"TeacherTraces.output: {output} is complete, and limit_predict_batches asks only a part of the questions; "
            "choose another path"
        )


def is_limited(trainer: Trainer) -> bool:
    """Returns whether only a part of the questions is asked: a limit of 1 is one batch, 1.0 is all of them."""
    limit = trainer.limit_predict_batches
    return isinstance(limit, int) or limit != 1.0


def again(trainer: Trainer) -> str:
    """Returns how to ask once more for what failed."""
    if _rollout(trainer).store is not None:
        return "Run the same command again: what was answered is in the store, only the rest is asked for."
    return (
        "Running the same command again asks for everything, since the RolloutCallback has no `store`; give it a "
        "folder, and the next run asks only for what is missing."
    )


def asked_sets(trainer: Trainer) -> dict[str, SampleSet]:
    """Returns the questions of each benchmark, whole, as every rank has them.

    Raises:
        ConfigurationError: If there is no data module that names them.
    """
    names: Sequence[str] = getattr(getattr(trainer, "datamodule", None), "benchmark_names", ())
    loaders: Any = trainer.predict_dataloaders
    if not names:
        raise ConfigurationError(
            "TeacherTraces needs the questions of a data module: pass `datamodule=` (BenchmarkDataModule) to the "
            "Trainer"
        )
    sets = [loader.dataset for loader in loaders]
    return {
        name: samples if isinstance(samples, SampleSet) else SampleSet(samples)
        for name, samples in zip(names, sets, strict=True)
    }


def _rollout(trainer: Trainer) -> RolloutCallback:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    found = [callback for callback in callbacks if isinstance(callback, RolloutCallback)]
    if not found:
        raise ConfigurationError("TeacherTraces needs a RolloutCallback, whose engine is the teacher; add one")
    return found[0]
