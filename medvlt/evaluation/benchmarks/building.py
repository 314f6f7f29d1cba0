# SPDX-License-Identifier: Apache-2.0
"""`medvlt data build benchmark`: a benchmark out of its original source, into a folder with a data card."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from medvlt.curation.card import announce, refuse_existing, write_dataset
from medvlt.data.samples import SampleSet, Source
from medvlt.errors import ConfigurationError
from medvlt.evaluation.benchmarks.closed import OPTIONS_FROM, PathVQAClosed, PMCVQATest, SLAKEClosed, VQARADClosed
from medvlt.evaluation.benchmarks.medxpertqa import MedXpertQAMM
from medvlt.evaluation.benchmarks.mmmu import MMMUMedical
from medvlt.evaluation.benchmarks.originals import OriginalBenchmark
from medvlt.evaluation.benchmarks.text_only import MedMCQAValidation, MedQATest, MMLUMedical, PubMedQALabeled

BenchmarkName: TypeAlias = Literal[
    "pmc_vqa",
    "MMMU-medical",
    "MedXpertQA-MM",
    "pathvqa_closed",
    "slake_closed",
    "vqa_rad_closed",
    "medqa",
    "medmcqa",
    "pubmedqa",
    "mmlu_medical",
]

ORIGINALS: dict[str, type[OriginalBenchmark]] = {
    kind.name: kind
    for kind in (
        PMCVQATest,
        MMMUMedical,
        MedXpertQAMM,
        PathVQAClosed,
        SLAKEClosed,
        VQARADClosed,
        MedQATest,
        MedMCQAValidation,
        PubMedQALabeled,
        MMLUMedical,
    )
}
"""Name of a benchmark to the class that reads its original source."""


def build_benchmark(
    benchmark: BenchmarkName,
    output: str | Path,
    *,
    source: str | Path | Source | None = None,
    revision: str | None = None,
    expected: int | None = None,
    max_lost: int = 0,
    max_open: int | None = None,
    options_file: str | Path | None = None,
    images: str | Path | None = None,
    only: str | Path | None = None,
    overwrite: bool = False,
) -> None:
    """Builds a benchmark from its original source, into a folder that `Benchmark` and its own class read.

    Args:
        benchmark: Which.
        output: Folder to write.
        source: The rows; null takes them from the Hub.
        revision: Commit, branch or tag of a name on the Hub.
        expected: How many questions there must be; null stands for the published number.
        max_lost: How many may be missing.
        max_open: How many may stay without options; null stands for the known number.
        options_file: Options of closed questions; see `SLAKEClosed`.
        images: Pictures of MedXpertQA-MM; see `MedXpertQAMM`.
        only: Identifiers of PubMedQA; see `PubMedQALabeled`.
        overwrite: Whether a saved data set at `output` may be replaced.

    Raises:
        ConfigurationError: If an option is not one of this benchmark's.
        DataError: If the rows cannot be read, or are not all there.
    """
    refuse_existing(Path(output), overwrite=overwrite)
    given = {"source": source, "revision": revision, "expected": expected, "max_open": max_open}
    given |= {"options_file": options_file, "images": images, "only": only}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    kind = ORIGINALS[benchmark]
    if unknown := sorted(settings.keys() - {field.name for field in fields(kind)}):
        raise ConfigurationError(f"{benchmark} has no option {', '.join(unknown)}; leave it out")
    reader = kind(max_lost=max_lost, **settings)
    samples = reader.load()
    facts = write_dataset(
        samples,
        output,
        title=benchmark,
        provenance={
            "command": "medvlt data build benchmark",
            "benchmark": benchmark,
            **{field.name: getattr(reader, field.name) for field in fields(reader)},
        },
        notes=_notes(samples),
        overwrite=overwrite,
    )
    announce(facts, output)


def _notes(samples: SampleSet) -> list[str]:
    """Returns where options come from, and which questions have none."""
    origins: Counter[str] = Counter()
    opened = []
    for index, uid in enumerate(samples.uids):
        sample = samples.light(index)
        if OPTIONS_FROM in sample.extra:
            origins[str(sample.extra[OPTIONS_FROM])] += 1
        if not sample.options:
            opened.append(uid)
    notes = ["A benchmark: not to be trained on."]
    if origins:
        counts = ", ".join(f"{name} {count:,}" for name, count in origins.most_common())
        notes.append(f"The source has no options. Where they come from, without sight of the answers: {counts}.")
    if opened:
        notes.append(
            f"{len(opened):,} questions stay open, since their options are not known or do not hold the annotated "
            f"answer; the robust grader never calls them right: {', '.join(opened[:20])}."
        )
    return notes
