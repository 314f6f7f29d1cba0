# SPDX-License-Identifier: Apache-2.0
"""A teacher's reasoning, kept where its answer is right: a data set for supervised fine-tuning."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.table import Table

from callbacks.rollout_settings import (
    asked_uids,
    check_asked_once,
    is_limited,
    model_name,
    predict_sets,
    rollout_identity,
    rollout_of,
)
from medvlt.console import wide_console
from medvlt.curation.card import PROVENANCE, write_dataset
from medvlt.curation.distill import TraceChoice, TracedSamples, TraceStatus, choose_trace
from medvlt.curation.selection import SelectionReport
from medvlt.data.batches import PromptBatch
from medvlt.data.files import replacing
from medvlt.data.samples import Chain, SampleSet, uids_fingerprint
from medvlt.distributed import gather_to_first, together
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
    `store` on the RolloutCallback only what is missing is asked for, and the set is written anew.

    What lies at `output` is never replaced if it was not written here, or has another teacher or other questions; that
    is found out before anything is sampled. Nor is a complete set replaced by an incomplete one, or an incomplete set
    by one that has fewer traces; then nothing is written and the run ends with an error.

    Hooks used: `setup`, `on_predict_start`, `on_predict_batch_end`, `on_predict_end`.

    Args:
        output: Folder of the data set.
        teacher: Name of the model in the column `teacher`; None takes the engine's own.
        max_failed_share: Share of the requests that may fail, in [0, 1]. Beyond it the run ends with an error, with
            everything written all the same.

    Raises:
        ConfigurationError: If a setting is out of range, a question is there twice, or `output` holds something else.
        DataError: At the end: if a question was lost or asked twice, no trace was found, too many requests failed, or
            what lies at `output` is worth more.
    """

    def __init__(self, output: str | Path, teacher: str | None = None, max_failed_share: float = 0.05) -> None:
        if not 0 <= max_failed_share <= 1:
            raise ConfigurationError(f"max_failed_share must be in [0, 1], got {max_failed_share}")
        self.output = Path(output)
        self.status = self.output.with_name(f"{self.output.name}.status.jsonl")
        self.teacher = teacher
        self.max_failed_share = max_failed_share
        self._choices: list[TraceChoice] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks whether `output` may be written, before a model is loaded or a request is paid for."""
        if stage != "predict":
            return
        rollout_of(trainer, "TeacherTraces")
        before = written_before(self.output)
        if is_limited(trainer) and before is not None and before["complete"]:
            raise ConfigurationError(
                f"TeacherTraces.output: {self.output} is complete, and limit_predict_batches asks only a part of the "
                "questions; choose another path"
            )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew, once the questions and the teacher are known to be those of what lies at `output`."""
        self._choices = []
        check_asked_once(trainer, "TeacherTraces")
        together(lambda: self._check_origin(trainer, pl_module) if trainer.is_global_zero else None)

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
        """Gathers what all ranks chose on rank 0, checks that no question is missing, writes and reports."""
        choices = list(chain.from_iterable(gather_to_first(self._choices)))
        self._choices = []
        together(lambda: self._finish(trainer, pl_module, choices) if trainer.is_global_zero else None)

    def _check_origin(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Returns what a run starts from: its teacher, and the fingerprint of all its questions.

        Raises:
            ConfigurationError: If a set lies at `output` that starts from something else.
        """
        teacher = self.teacher or model_name(rollout_of(trainer, "TeacherTraces"), trainer, pl_module)
        origin = {"teacher": teacher, "questions": uids_fingerprint(asked_uids(trainer))}
        before = written_before(self.output)
        for name, value in origin.items():
            if before is not None and before.get(name) != value:
                raise ConfigurationError(
                    f"TeacherTraces.output: {self.output} was written with {name} {before.get(name)!r}, and this run "
                    f"has {value!r}; choose another output, or delete that set"
                )
        return origin

    def _finish(self, trainer: Trainer, pl_module: LightningModule, found: Sequence[TraceChoice]) -> None:
        origin = self._check_origin(trainer, pl_module)  # once more: another run may have written since
        questions = SampleSet(Chain(predict_sets(trainer)))
        choices, missing = in_order(found, questions.uids, partial=is_limited(trainer))
        counts = trace_counts(choices) | {"questions_not_asked": missing}
        self._report(trainer, counts)
        kept = [choice for choice in choices if choice.status is TraceStatus.TRACE]
        self._check_nothing_lost(trainer, counts)
        if not kept:
            self._write_status(choices)
            raise DataError(
                f"no trace for any of {counts['questions']} questions, so {self.output} is not written: "
                + ", ".join(f"{_MEANING[status]} {counts[status.value]}" for status in _MEANING if counts[status.value])
                + f"; {self.status} has every question with what became of it"
                + (f". {again(trainer)}" if counts["requests_failed"] else "")
            )
        self._write(trainer, pl_module, questions, kept, counts, origin)
        self._write_status(choices)
        logger.info("traces written to %s, what became of each question to %s", self.output, self.status)
        share = counts["requests_failed"] / counts["requests"]
        if share > self.max_failed_share:
            raise DataError(
                f"{counts['requests_failed']} of {counts['requests']} requests ({share:.1%}) failed, and "
                f"max_failed_share={self.max_failed_share} allows {self.max_failed_share:.1%}. {self.output} holds the "
                f"{len(kept)} traces there are, marked as incomplete. {again(trainer)}"
            )

    def _check_nothing_lost(self, trainer: Trainer, counts: Mapping[str, int]) -> None:
        """Raises DataError if a set lies at `output` that is worth more than what this run would put in its place."""
        before = written_before(self.output)
        if before is None:
            return
        trace = TraceStatus.TRACE.value
        had = before["counts"][trace]
        if not counts[trace] or (is_incomplete(counts) and (before["complete"] or counts[trace] < had)):
            raise DataError(
                f"this run has {counts[trace]} traces, {counts['requests_failed']} of {counts['requests']} requests "
                f"failed and {counts['questions_not_asked']} questions were not asked; {self.output} holds "
                f"{'all' if before['complete'] else 'a part'} of an earlier run with {had} traces, and stays as it is, "
                f"with its status file. To keep this run apart, choose another output. "
                + (again(trainer) if counts["requests_failed"] else "")
            )

    def _write_status(self, choices: Sequence[TraceChoice]) -> None:
        with replacing(self.status, overwrite=True) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(choice.to_json()) + "\n" for choice in choices)

    def _write(
        self, trainer: Trainer, pl_module: LightningModule, questions: SampleSet, kept: Sequence[TraceChoice],
        counts: Mapping[str, int], origin: Mapping[str, str],
    ) -> None:  # fmt: skip
        complete, teacher = not is_incomplete(counts), origin["teacher"]
        rollout = rollout_of(trainer, "TeacherTraces")
        identity, _ = rollout_identity(rollout, trainer, pl_module)
        chosen = {choice.uid for choice in kept}
        base = questions.select(index for index, uid in enumerate(questions.uids) if uid in chosen)
        reports = tuple(samples.report for samples in predict_sets(trainer))
        left_out = {_MEANING[status]: counts[status.value] for status in _MEANING if status is not TraceStatus.TRACE}
        left_out["not asked"] = counts["questions_not_asked"]
        report = SelectionReport(
            f"answers of {teacher}", sum(part.kept for part in reports), len(base), parts=reports,
            left_out={reason: number for reason, number in left_out.items() if number},
        )  # fmt: skip
        provenance = {
            "kind": KIND,
            **origin,
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
            SampleSet(TracedSamples(base, kept, teacher), report, uids=base.uids),
            self.output,
            title=f"Reasoning of {teacher}" + ("" if complete else " (incomplete)"),
            provenance=provenance,
            notes=notes,
            overwrite=True,
        )

    def _report(self, trainer: Trainer, counts: Mapping[str, int]) -> None:
        console = wide_console()
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


def in_order(found: Sequence[TraceChoice], expected: Sequence[str], *, partial: bool) -> tuple[list[TraceChoice], int]:
    """Returns the choices in the order of the questions, and how many questions were not asked.

    Args:
        found: Choices of all ranks, in any order.
        expected: Uids of the questions, each once.
        partial: Whether questions may be missing.

    Raises:
        DataError: If a question was asked twice, is not of this data module, or is missing and may not be.
    """
    by_uid = {choice.uid: choice for choice in found}
    missing = [uid for uid in expected if uid not in by_uid]
    for what, uids in (
        ("asked twice", [uid for uid, number in Counter(choice.uid for choice in found).items() if number > 1]),
        ("not of the data module", sorted(by_uid.keys() - set(expected))),
        ("lost on the way", [] if partial else missing),
    ):
        if uids:
            raise DataError(
                f"{len(uids)} of {len(expected)} questions were {what}, such as {', '.join(uids[:3])}; no data set is "
                "written. Run the same command again; if it comes again, please report it"
            )
    return [by_uid[uid] for uid in expected if uid in by_uid], len(missing)


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


def is_incomplete(counts: Mapping[str, int]) -> bool:
    """Returns whether another run may find traces for questions that have none yet."""
    return bool(counts["requests_failed"] or counts["questions_not_asked"])


def written_before(output: Path) -> dict[str, Any] | None:
    """Returns what the provenance of the set at `output` says, None if nothing lies there.

    Raises:
        ConfigurationError: If something lies there that `TeacherTraces` did not write.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        facts: dict[str, Any] = json.loads((output / PROVENANCE).read_text(encoding="utf-8"))["provenance"]
        ours = facts["kind"] == KIND and isinstance(facts["complete"], bool)
        ours = ours and isinstance(facts["counts"][TraceStatus.TRACE.value], int)
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise ConfigurationError(
            f"TeacherTraces.output: {output} exists and was not written by TeacherTraces, so it is not replaced; "
            "choose another path"
        )
    return facts


def again(trainer: Trainer) -> str:
    """Returns how to ask once more for what failed."""
    if rollout_of(trainer, "TeacherTraces").store is not None:
        return "Run the same command again: what was answered is in the store, only the rest is asked for."
    return (
        "Running the same command again asks for everything, since the RolloutCallback has no `store`; give it a "
        "folder, and the next run asks only for what is missing."
    )
