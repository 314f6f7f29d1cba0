# SPDX-License-Identifier: Apache-2.0
"""Runs against a baseline and against their controls, question by question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medvlt.evaluation.alignment import AlignedRuns, control_name, grader_text, prompt_text, sampling_text
from medvlt.evaluation.runs import BenchmarkAnswers, EvaluationRun
from medvlt.evaluation.scores import MEAN, Comparison, ControlResult
from medvlt.evaluation.statistics.intervals import effective_questions, picture_clusters
from medvlt.evaluation.statistics.multiplicity import holm
from medvlt.evaluation.statistics.paired import mcnemar, paired_bootstrap, paired_macro, sign_flip
from medvlt.evaluation.statistics.power import detectable_paired_difference

MCNEMAR, SIGN_FLIP, SIGN_FLIP_PICTURES = "McNemar, exact", "sign flip", "sign flip by picture"
"""Names of the tests."""

_FLIPS = 10
"""Draws of a test per draw of an interval: no p-value is below one over their number, and Holm multiplies it."""

_LEAST = 6
"""Clusters below which a sign flip at 0.05 finds nothing, whatever the differences: 2 / 2^5 is above."""

Clusters = Mapping[str, npt.NDArray[np.int64]]
"""Benchmark to the cluster of each question; questions that share a picture share a cluster."""


def shared_pictures(aligned: AlignedRuns) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Returns the pictures of each question, by benchmark.

    They are those of the first run that has any, of runs without a control if possible: outputs of another harness
    name none, yet their questions are resampled like those of the others.
    """
    found: dict[str, tuple[tuple[str, ...], ...]] = {}
    for name in aligned.benchmarks:
        runs = sorted((aligned.runs[i] for i in aligned.asked(name)), key=lambda run: control_name(run) is not None)
        tables = [run.benchmarks[name].pictures for run in runs]
        found[name] = next((table for table in tables if any(table)), tables[0])
    return found


def compare_with_baseline(
    aligned: AlignedRuns, clusters: Clusters, *, seed: int, samples: int
) -> tuple[tuple[Comparison, ...], list[str]]:
    """Compares each run with the baseline: on each benchmark that both were asked, and on their mean.

    A run under a control is compared only with a baseline under the same one; its own row is among the controls.

    Args:
        aligned: The runs, the baseline last.
        clusters: Questions that are drawn, and whose signs are flipped, together.
        seed: Of all draws.
        samples: Number of draws.

    Returns:
        The comparisons, p-values adjusted over all of them, and notes on what was not compared.
    """
    if not aligned.baseline:
        return (), []
    baseline, name = aligned.runs[-1], aligned.labels[-1]
    found: list[Comparison] = []
    notes: list[str] = []
    for run, label in zip(aligned.runs[:-1], aligned.labels[:-1], strict=True):
        both = [benchmark for benchmark in run.benchmarks if benchmark in baseline.benchmarks]
        if control_name(run) != control_name(baseline):
            if control_name(run) is None:  # of a run under a control the table of controls tells
                notes.append(f"{label} is not compared with the baseline {name}, which ran under a control.")
            continue
        if len(both) < len(set(run.benchmarks) | set(baseline.benchmarks)):
            notes.append(
                f"{label} and the baseline {name} are compared on what both were asked: "
                f"{', '.join(both) or 'no benchmark'}."
            )
        found += [
            _on_benchmark(
                (label, name), run.benchmarks[benchmark], baseline.benchmarks[benchmark], clusters[benchmark],
                seed=seed, samples=samples,
            )
            for benchmark in both
        ]  # fmt: skip
        if len(both) > 1:
            pairs = {benchmark: (run.benchmarks[benchmark], baseline.benchmarks[benchmark]) for benchmark in both}
            found.append(_on_mean((label, name), pairs, clusters, seed=seed, samples=samples))
    adjusted = holm([comparison.p_value for comparison in found])
    return tuple(replace(one, p_adjusted=float(p)) for one, p in zip(found, adjusted, strict=True)), notes


def compare_with_controls(
    aligned: AlignedRuns, clusters: Clusters, *, seed: int, samples: int
) -> tuple[tuple[ControlResult, ...], list[str]]:
    """Compares each run under a control with the run of the same model, checkpoint, prompt and grader without one.

    Of several such runs it is the first that sampled alike, else the first.

    Args:
        aligned: The runs.
        clusters: Questions that are drawn together.
        seed: Of all draws.
        samples: Number of draws.

    Returns:
        The results, and notes on controls without such a run.
    """
    found: list[ControlResult] = []
    notes: list[str] = []
    for number, run in enumerate(aligned.runs):
        control = control_name(run)
        if control is None:
            continue
        partner = _uncontrolled(aligned.runs, run)
        if partner is None:
            notes.append(
                f"{aligned.labels[number]} ran under the control {control}, and no run of the same model, checkpoint, "
                "prompt and grader without a control is in this report."
            )
            continue
        plain = aligned.runs[partner]
        for name in (benchmark for benchmark in plain.benchmarks if benchmark in run.benchmarks):
            one, two = plain.benchmarks[name], run.benchmarks[name]
            difference = paired_bootstrap(one.scores, two.scores, clusters=clusters[name], seed=seed, samples=samples)
            found.append(
                ControlResult(
                    run=aligned.labels[partner],
                    control_run=aligned.labels[number],
                    control=control,
                    benchmark=name,
                    questions=one.questions,
                    difference=difference,
                    consistency=consistency(one, two),
                )
            )
    return tuple(found), notes


def consistency(one: BenchmarkAnswers, two: BenchmarkAnswers) -> float:
    """Returns the share of questions whose chosen option has the same text in both, by the first completion.

    Texts, not letters: under rotated options the same choice has another letter. A question without a choice in
    either is inconsistent.
    """
    chosen = [
        [options.get(labels[0] or "") for options, labels in zip(answers.options, answers.labels, strict=True)]
        for answers in (one, two)
    ]
    first, second = chosen
    alike = [a is not None and a == b for a, b in zip(first, second, strict=True)]
    return sum(alike) / len(alike)


def _on_benchmark(
    labels: tuple[str, str],
    one: BenchmarkAnswers,
    two: BenchmarkAnswers,
    clusters: npt.NDArray[np.int64],
    *,
    seed: int,
    samples: int,
) -> Comparison:
    differences = one.scores - two.scores
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    exact = mcnemar(better, worse) if one.n == two.n == 1 else None
    clustered = len(set(clusters.tolist())) < one.questions
    if exact is not None and not clustered:
        test, p_value = MCNEMAR, exact
    else:
        test = SIGN_FLIP_PICTURES if clustered else SIGN_FLIP
        p_value = sign_flip(differences, clusters=clusters, seed=seed, samples=_FLIPS * samples)
    # with one completion each this is the share of questions on which they disagree, which McNemar's power rests on
    disagreement = float(np.square(differences).mean())
    independent = effective_questions(differences, clusters=clusters)
    reachable = len(set(clusters.tolist())) >= _LEAST
    return Comparison(
        run=labels[0],
        baseline=labels[1],
        benchmark=one.benchmark,
        questions=one.questions,
        difference=paired_bootstrap(one.scores, two.scores, clusters=clusters, seed=seed, samples=samples),
        only_run=better,
        only_baseline=worse,
        test=test,
        p_value=p_value,
        p_adjusted=p_value,
        minimum_detectable=detectable_paired_difference(disagreement, independent) if reachable else 1.0,
        mcnemar=exact,
    )


def _on_mean(
    labels: tuple[str, str],
    pairs: Mapping[str, tuple[BenchmarkAnswers, BenchmarkAnswers]],
    clusters: Clusters,
    *,
    seed: int,
    samples: int,
) -> Comparison:
    """Compares two runs on their unweighted mean over benchmarks.

    The test flips signs as on one benchmark, of all questions at once; each is weighted by 1 / (questions of its
    benchmark), so that the sum is the difference of the means.
    """
    differences = {name: one.scores - two.scores for name, (one, two) in pairs.items()}
    total = sum(len(values) for values in differences.values())
    weighted = np.concatenate([values * (total / len(pairs) / len(values)) for values in differences.values()])
    joined = _joined([clusters[name] for name in pairs])
    clustered = len(set(joined.tolist())) < total
    p_value = sign_flip(weighted, clusters=joined, seed=seed, samples=_FLIPS * samples)
    return Comparison(
        run=labels[0],
        baseline=labels[1],
        benchmark=MEAN,
        questions=total,
        difference=paired_macro(
            {name: one.scores for name, (one, _) in pairs.items()},
            {name: two.scores for name, (_, two) in pairs.items()},
            clusters={name: clusters[name] for name in pairs},
            seed=seed,
            samples=samples,
        ),
        only_run=sum(int((values > 0).sum()) for values in differences.values()),
        only_baseline=sum(int((values < 0).sum()) for values in differences.values()),
        test=SIGN_FLIP_PICTURES if clustered else SIGN_FLIP,
        p_value=p_value,
        p_adjusted=p_value,
        minimum_detectable=None,
    )


def _joined(parts: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Returns the clusters of all benchmarks, renumbered so that those of different ones differ."""
    starts = np.cumsum([0, *(int(part.max()) + 1 for part in parts[:-1])])
    return np.concatenate([part + start for part, start in zip(parts, starts, strict=True)])


def _uncontrolled(runs: Sequence[EvaluationRun], controlled: EvaluationRun) -> int | None:
    def protocol(run: EvaluationRun) -> tuple[object, ...]:
        return run.about.get("model"), run.about.get("checkpoint"), prompt_text(run), grader_text(run)

    alike = [
        number for number, run in enumerate(runs) if control_name(run) is None and protocol(run) == protocol(controlled)
    ]
    same_sampling = [number for number in alike if sampling_text(runs[number]) == sampling_text(controlled)]
    return next(iter(same_sampling or alike), None)


def question_clusters(aligned: AlignedRuns) -> dict[str, npt.NDArray[np.int64]]:
    """Returns the cluster of each question, by benchmark: questions that share a picture are of one."""
    return {name: picture_clusters(pictures) for name, pictures in shared_pictures(aligned).items()}
