# SPDX-License-Identifier: Apache-2.0
"""`medvlt regrade`: the stored completions of an evaluation, graded again by other rules."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from medvlt.data.files import replacing
from medvlt.errors import ConfigurationError
from medvlt.evaluation.regrade_report import print_changes, to_markdown
from medvlt.evaluation.runs import PICTURES_FOLDER, check_free, iterate_records, read_run, write_run
from medvlt.rewards.grade import GRADER_VERSION, GradePolicy, grade
from medvlt.types import Sample

CHANGES_FILE, REPORT_FILE = "changes.jsonl", "regrade.md"

EXAMPLES = 20
"""Changed items that the report shows; the file has all."""


@dataclass
class Changes:
    """What grading again changed.

    Attributes:
        verdicts: (right before, right after) to completions, those that were not graded again included.
        reasons: (reason before, reason after) to completions.
        changed: Completions with another verdict, letter, reason or format than before.
        kept: Why completions were not graded again ("failed", "open_question") to their number.
        examples: The first items of which right became wrong, or wrong right.
    """

    verdicts: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    changed: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def flipped(self) -> int:
        """Completions of which right became wrong, or wrong right."""
        return self.verdicts[True, False] + self.verdicts[False, True]


def regrade(run: str, output: str, policy: GradePolicy = "robust", overwrite: bool = False) -> None:
    """Grades the completions of an evaluation again and writes the result as an evaluation of its own.

    Nothing is sampled. Completions that never came stay failed, and questions without options keep their verdict. The
    new folder also has `changes.jsonl`, every completion whose verdict, letter, reason or format changed, and
    `regrade.md`, the confusion of the two gradings and the change of each benchmark.

    Args:
        run: Folder of the evaluation.
        output: Folder of the new one.
        policy: Rules to grade by: robust, reference_reward, reference_eval or reference_regrade.
        overwrite: Whether an evaluation in `output` may be replaced.

    Raises:
        ConfigurationError: If there is no such policy, or `output` is `run` or inside it.
        DataError: If the evaluation is not whole, or the new one cannot be written.
    """
    check_policy(policy)
    source, target = Path(run), Path(output)
    if target.resolve().is_relative_to(source.resolve()):
        raise ConfigurationError(
            f"expected another folder than {run}, outside of it, for the new evaluation, got {output}; choose another "
            "output"
        )
    check_free(target, overwrite=overwrite)
    old = read_run(source)
    label = old.label
    if "regraded_from" in old.about:
        label = label.removesuffix(f" ({old.about['grader']['policy']})")
    about = {
        **old.about,
        "label": f"{label} ({policy})",
        "grader": {"policy": policy, "version": GRADER_VERSION},
        "regraded_from": {
            "label": old.label,
            "grader": old.about.get("grader"),
            "completions": old.about.get("completions"),
        },
    }
    changes = Changes()
    with (
        replacing(target / CHANGES_FILE, overwrite=True) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogatepass") as file,
    ):
        records = graded_again(iterate_records(source), policy, changes, file)
        write_run(target, about, records, overwrite=overwrite, pictures=_copied_pictures(source, target))
    new = read_run(target)
    with replacing(target / REPORT_FILE, overwrite=True) as temporary:
        temporary.write_text(to_markdown(old, new, changes), encoding="utf-8", errors="backslashreplace")
    print_changes(old, new, changes)


def check_policy(policy: GradePolicy) -> None:
    """Refuses a policy that is none, before anything is read or written.

    Raises:
        ConfigurationError: If there is no such policy.
    """
    grade("", Sample("", "", {}, None, ""), policy=policy)


def graded_again(
    records: Iterable[Mapping[str, Any]], policy: GradePolicy, changes: Changes, file: TextIO
) -> Iterator[dict[str, Any]]:
    """Yields stored lines with their new verdict.

    Args:
        records: Lines of a run.
        policy: Rules to grade by.
        changes: Counts what changed.
        file: Receives the changed lines as JSON Lines.
    """
    for record in records:
        after = graded(record, policy)
        if after is None:
            after = dict(record)
            changes.kept["failed" if record["finish_reason"] == "error" else "open_question"] += 1
        changes.verdicts[bool(record["correct"]), bool(after["correct"])] += 1
        changes.reasons[str(record["reason"]), str(after["reason"])] += 1
        if any(record[name] != after[name] for name in ("correct", "label", "reason", "format_ok")):
            change = _change(record, after)
            changes.changed += 1
            file.write(json.dumps(change, ensure_ascii=False) + "\n")
            if record["correct"] != after["correct"] and len(changes.examples) < EXAMPLES:
                changes.examples.append(change)
        yield after


def graded(record: Mapping[str, Any], policy: GradePolicy) -> dict[str, Any] | None:
    """Returns a stored line with the verdict of `policy`; None if there is nothing to grade, or nothing to grade by."""
    if record["finish_reason"] == "error" or not record["options"]:
        return None
    truncated = record["finish_reason"] == "length"
    verdict = grade(record["completion"], stored_sample(record), policy=policy, truncated=truncated)
    return {
        **record,
        "label": verdict.label,
        "correct": verdict.correct,
        "format_ok": verdict.format_ok,
        "reason": str(verdict.reason),
        "grader_version": verdict.grader_version,
    }


def stored_sample(record: Mapping[str, Any]) -> Sample:
    """Returns the question of a stored line, without its pictures."""
    options, label = record["options"], record["answer_label"]
    return Sample(
        uid=record["uid"],
        question=record["question"],
        options=options,
        answer_label=label,
        answer=options.get(label, ""),
        dataset_name=record.get("dataset_name", ""),
        dataset_index=record.get("dataset_index", -1),
    )


def _copied_pictures(source: Path, target: Path) -> Path | None:
    """A copy of a run's thumbnails inside the folder of the new run; `write_run` gives it its name."""
    if not (source / PICTURES_FOLDER).is_dir():
        return None
    copy = target / f".{PICTURES_FOLDER}.tmp"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source / PICTURES_FOLDER, copy)
    return copy


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    same = ("benchmark", "uid", "sample", "question", "options", "answer_label", "completion", "finish_reason")
    verdict = ("correct", "label", "reason", "format_ok", "grader_version")
    return {
        **{name: before[name] for name in same},
        "before": {name: before[name] for name in verdict},
        "after": {name: after[name] for name in verdict},
    }
