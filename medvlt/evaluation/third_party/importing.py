# SPDX-License-Identifier: Apache-2.0
"""`medvlt import`: the stored outputs of another harness as an evaluation of our own form, graded by our grader."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import medvlt.evaluation.benchmarks  # noqa: F401  the command line finds sources by their short names once imported
from medvlt import __version__
from medvlt.console import wide_console
from medvlt.data.files import file_sha256, replacing
from medvlt.data.samples import Source
from medvlt.data.schema import sample_uid
from medvlt.errors import DataError, listed
from medvlt.evaluation.records import completion_record
from medvlt.evaluation.runs import NOTE, RUN_FILE, iterate_records, uids_fingerprint, write_run
from medvlt.evaluation.third_party.agreement import Agreement, agreement_of, reason_rows, summary, to_markdown
from medvlt.evaluation.third_party.outputs import StoredOutput, StoredQuestion
from medvlt.evaluation.third_party.reading import (
    FORMS,
    LOST,
    Findings,
    OutputForm,
    check_numbers,
    check_repeats,
    read_outputs,
)
from medvlt.rewards.grade import GRADER_VERSION, GradePolicy, grade
from medvlt.types import Completion, RolloutGroup, Sample

AGREEMENT_FILE, DISAGREEMENTS_FILE = "agreement.md", "disagreements.jsonl"

_NO_QUESTION = Sample("", "", {}, None, "")


def import_outputs(
    path: str,
    output: str,
    form: OutputForm,
    benchmarks: Source | None = None,
    policy: GradePolicy = "robust",
    label: str = "",
    lm_eval_filter: str | None = None,
    repair: bool = False,
    overwrite: bool = False,
) -> None:
    """Turns stored outputs of another harness into an evaluation, and compares its verdicts with those of our grader.

    Beside the evaluation the folder gets `agreement.md` and `disagreements.jsonl`. Lengths that are not stored count as
    0 tokens, and completions that were cut without notice cannot be told from others.

    Args:
        path: A file, or the folder of one run of the harness.
        output: Folder of the new evaluation.
        form: Whose outputs: reference (MedVLThinker's eval_results.jsonl or shards), lm_eval, lmms_eval or mmmu_pro.
        benchmarks: The questions as they were asked, found by data set and number: needed where the outputs do not hold
            the options, and to be sure that none is missing.
        policy: Rules to grade by: robust, reference_reward, reference_eval or reference_regrade.
        label: Name of the evaluation in tables; by default that of the file or folder.
        lm_eval_filter: Which filter's verdicts to take where lm-evaluation-harness stored several; null for the first.
        repair: Go on where lines cannot be used, are repeated (the first counts) or are lost (they count as failed if
            `benchmarks` tells that they were asked); what was done is written to run.json.
        overwrite: Whether an evaluation in `output` may be replaced.

    Raises:
        DataError: If there is nothing to read, or something is wrong with it and `repair` is false.
    """
    grade("", _NO_QUESTION, policy=policy)  # refuses an unknown policy before anything is read
    source, target = Path(path), Path(output)
    if (target / RUN_FILE).exists() and not overwrite:
        raise DataError(f"{target} has an evaluation already; choose another folder or set overwrite=true")
    paths = FORMS[form].files(source)
    if not paths:
        raise DataError(f"expected outputs of the form {form} at {source}, found no file of theirs; name another path")
    findings = Findings()
    questions = read_outputs(paths, form, findings, lm_eval_filter)
    if not questions and not findings.bad:
        raise DataError(f"expected outputs in {listed([str(file) for file in paths])}, found none; name another path")
    questions = check_repeats(questions, findings)
    if benchmarks is None:
        check_numbers(questions, form, findings)
        asked = _as_stored(questions, findings)
    else:
        asked = _as_asked(questions, benchmarks, findings)
    complaints = findings.complaints()
    if not asked or (complaints and not repair):
        advice = "correct the files, or set repair=true to go on without them" if asked else "nothing is left to import"
        raise DataError(f"{source}: {'. '.join(complaints)}; {advice}")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    about = {
        "label": label or source.stem,
        "model": label or source.stem,
        "checkpoint": "",
        "stage": "import",
        "identity": {"form": form, "files": {file.name: file_sha256(file) for file in paths}},
        "control": None,
        "sampling": {
            "n": len(asked[0][2]),
            "temperature": None,
            "top_p": None,
            "top_k": None,
            "max_tokens": None,
        },
        "seed": None,
        "grader": {"policy": policy, "version": GRADER_VERSION},
        "benchmarks": _described(asked, form if benchmarks is None else repr(benchmarks)),
        "limited_to": None,
        "prompt": None,
        "lengths": any(output.tokens for _, _, outputs in asked for output in outputs),
        "repaired": complaints,
        "left_out_filters": findings.variants,
        "versions": {"medvlt": __version__},
        "started": now,
        "finished": now,
    }
    write_run(target, about, _records(asked, policy), overwrite=overwrite)
    agreement = agreement_of(iterate_records(target))
    with replacing(target / DISAGREEMENTS_FILE, overwrite=True) as temporary:
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in agreement.disagreements)
        temporary.write_text("".join(lines), encoding="utf-8", errors="surrogatepass")
    with replacing(target / AGREEMENT_FILE, overwrite=True) as temporary:
        title = f"Verdicts stored with {label or source.stem} against our grader ({policy}, version {GRADER_VERSION})"
        temporary.write_text(to_markdown(agreement, title), encoding="utf-8", errors="backslashreplace")
    _print(about, agreement, findings)


_Asked = tuple[str, Sample, tuple[StoredOutput, ...]]
"""Benchmark, question and its outputs."""


def _as_stored(questions: Sequence[StoredQuestion], findings: Findings) -> list[_Asked]:
    """The questions as far as the outputs tell them."""
    asked: list[_Asked] = []
    for question in questions:
        if len(question.options) < 2 or question.answer_label is None:
            lacks = "options" if len(question.options) < 2 else "right letter"
            findings.bad.append(
                f"{question.benchmark} {question.key} (no {lacks} are stored with it; give the benchmark itself)"
            )
            continue
        name, answer = question.dataset_name or question.benchmark, question.options[question.answer_label]
        uid = sample_uid(name, question.key, question.question, question.options, answer)
        sample = Sample(
            uid=uid,
            question=question.question,
            options=question.options,
            answer_label=question.answer_label,
            answer=answer,
            dataset_name=name,
            dataset_index=question.key,
        )
        asked.append((question.benchmark, sample, question.outputs))
    return asked


def _as_asked(questions: Sequence[StoredQuestion], benchmarks: Source, findings: Findings) -> list[_Asked]:
    """The questions of the benchmark in its order, each with its outputs or with lost ones."""
    stored = {(question.dataset_name or question.benchmark, str(question.key)): question for question in questions}
    n = max((len(question.outputs) for question in questions), default=1)
    asked: list[_Asked] = []
    for sample in benchmarks.load():
        question = stored.pop((sample.dataset_name, str(sample.dataset_index)), None)
        outputs = (StoredOutput("", error=LOST),) * n
        if question is None:
            findings.lost.append(sample.uid)
        elif question.answer_label not in (None, sample.answer_label):
            findings.extra.append(f"{sample.uid} (right is {question.answer_label} there, {sample.answer_label} here)")
        else:
            outputs = question.outputs
        asked.append((sample.dataset_name, sample, outputs))
    findings.extra += [f"{name} {key}" for name, key in stored]
    order = {name: place for place, name in enumerate(dict.fromkeys(name for name, _, _ in asked))}
    return sorted(asked, key=lambda item: order[item[0]])


def _records(asked: Sequence[_Asked], policy: GradePolicy) -> Iterator[dict[str, Any]]:
    for benchmark, sample, outputs in asked:
        group = RolloutGroup(sample, (), ())
        for number, output in enumerate(outputs):
            verdict = grade(output.text, sample, policy=policy)
            completion = Completion(
                token_ids=(),
                text=output.text,
                sampler_logprobs=(),
                finish_reason="error" if output.error else "stop",
                error=output.error,
                reported_tokens=output.tokens,
            )
            yield {
                "benchmark": benchmark,
                **completion_record(group, number, completion, verdict),
                "stated_correct": output.stated_correct,
                "stated_label": output.stated_label,
            }


def _described(asked: Sequence[_Asked], source: str) -> dict[str, Any]:
    uids: dict[str, list[str]] = {}
    for benchmark, sample, _ in asked:
        uids.setdefault(benchmark, []).append(sample.uid)
    return {
        name: {"questions": len(names), "uids": uids_fingerprint(names), "source": source, "expected": None}
        for name, names in uids.items()
    }


def _print(about: dict[str, Any], agreement: Agreement, findings: Findings) -> None:
    from rich.table import Table
    from rich.text import Text

    console = wide_console()
    sizes = ", ".join(f"{name} {kept['questions']:,}" for name, kept in about["benchmarks"].items())
    messages = [f"{about['label']}: {sizes}; {about['sampling']['n']} outputs each. {NOTE}"]
    messages += [f"Repaired: {complaint}." for complaint in about["repaired"]]
    messages += [f"Left out: {count:,} lines of the filter {name!r}." for name, count in findings.variants.items()]
    for message in messages:
        console.print(message, markup=False, highlight=False)
    if agreement.compared:
        header, rows = reason_rows(agreement)
        table = Table(*header, title="Verdicts by our reason", title_justify="left")
        for row in rows:
            table.add_row(*(Text(f"{value:,}" if isinstance(value, int) else str(value)) for value in row))
        console.print(table)
    console.print(summary(agreement), markup=False, highlight=False)
