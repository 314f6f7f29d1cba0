# SPDX-License-Identifier: Apache-2.0
"""`medvlt import`: the stored outputs of another harness as an evaluation of our own form, graded by our grader."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import medvlt.evaluation.benchmarks  # noqa: F401  the command line finds sources by their short names once imported
from medvlt import __version__
from medvlt.console import wide_console
from medvlt.curation.card import NOTICE
from medvlt.data.files import file_sha256, replacing
from medvlt.data.samples import Source, uids_fingerprint
from medvlt.errors import DataError, listed
from medvlt.evaluation.records import completion_record
from medvlt.evaluation.regrade import check_policy
from medvlt.evaluation.regrade_report import printed_table
from medvlt.evaluation.runs import check_free, iterate_records, utc_now, write_run
from medvlt.evaluation.third_party.agreement import Agreement, agreement_of, reason_rows, summary, to_markdown
from medvlt.evaluation.third_party.asked import Asked, as_asked, as_stored
from medvlt.evaluation.third_party.options import label_of
from medvlt.evaluation.third_party.reading import (
    FORMS,
    Findings,
    OutputForm,
    check_numbers,
    check_repeats,
    read_outputs,
)
from medvlt.rewards.grade import GRADER_VERSION, GradePolicy, grade
from medvlt.types import Completion, RolloutGroup

AGREEMENT_FILE, DISAGREEMENTS_FILE = "agreement.md", "disagreements.jsonl"


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
        lm_eval_filter: Which filter's verdicts to take where lm-evaluation-harness stored several; null for each task's
            first.
        repair: Go on where lines cannot be used (they are left out), are repeated (the first counts), or are lost or of
            another question than that of `benchmarks` (these count as failed, so as wrong; what no file and no
            benchmark tells is left out); what was done is written to run.json.
        overwrite: Whether an evaluation in `output` may be replaced.

    Raises:
        DataError: If there is nothing to read, or something is wrong with it and `repair` is false.
    """
    check_policy(policy)
    source, target = Path(path), Path(output)
    name = label or (source.resolve().name if source.is_dir() else source.stem)
    check_free(target, overwrite=overwrite)
    paths = FORMS[form].files(source)
    if not paths:
        raise DataError(f"expected outputs of the form {form} at {source}, found no file of theirs; name another path")
    folders = sorted({str(file.parent) for file in paths})
    if len(folders) > 1:
        raise DataError(
            f"expected the outputs of one model, found files in {listed(folders)}; name one of these folders"
        )
    findings = Findings()
    questions = read_outputs(paths, form, findings, lm_eval_filter)
    if not findings.bad and not any(question.outputs for question in questions):
        raise DataError(f"expected outputs in {listed([str(file) for file in paths])}, found none; name another path")
    questions = check_repeats(questions, findings)
    advice = "nothing is left to import"
    if not any(question.outputs for question in questions):
        asked = []
    elif benchmarks is None:
        check_numbers(questions, form, findings)
        asked = as_stored(questions, findings)
    else:
        asked = as_asked(questions, benchmarks, findings)
        advice = "most outputs are of other questions; give the benchmark as it was asked"
    complaints = findings.complaints()
    if not asked or (complaints and not repair):
        advice = "correct the files, or set repair=true (its help says what becomes of them)" if asked else advice
        raise DataError(f"{source}: {'. '.join(complaints)}; {advice}")
    now = utc_now()
    about = {
        "label": name,
        "model": name,
        "checkpoint": "",
        "stage": "import",
        "identity": {"form": form, "files": {_relative(file, source): file_sha256(file) for file in paths}},
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
        title = f"Verdicts stored with {name} against our grader ({policy}, version {GRADER_VERSION})"
        temporary.write_text(to_markdown(agreement, title), encoding="utf-8", errors="backslashreplace")
    _print(about, agreement, findings)


def _relative(file: Path, source: Path) -> str:
    return file.relative_to(source).as_posix() if source.is_dir() else file.name


def _records(asked: Sequence[Asked], policy: GradePolicy) -> Iterator[dict[str, Any]]:
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
                "stated_label": label_of(output.stated_answer, sample.options),
            }


def _described(asked: Sequence[Asked], source: str) -> dict[str, Any]:
    uids: dict[str, list[str]] = {}
    for benchmark, sample, _ in asked:
        uids.setdefault(benchmark, []).append(sample.uid)
    return {
        name: {"questions": len(names), "uids": uids_fingerprint(names), "source": source, "expected": None}
        for name, names in uids.items()
    }


def _print(about: dict[str, Any], agreement: Agreement, findings: Findings) -> None:
    console = wide_console()
    sizes = ", ".join(f"{name} {kept['questions']:,}" for name, kept in about["benchmarks"].items())
    messages = [f"{about['label']}: {sizes}; {about['sampling']['n']} outputs each. {NOTICE}"]
    messages += [f"Repaired: {complaint}." for complaint in about["repaired"]]
    messages += [f"Left out: {count:,} lines of the filter {name!r}." for name, count in findings.variants.items()]
    for message in messages:
        console.print(message, markup=False, highlight=False)
    if agreement.compared:
        console.print(printed_table("Verdicts by our reason", *reason_rows(agreement)))
    console.print(summary(agreement), markup=False, highlight=False)
