# SPDX-License-Identifier: Apache-2.0
"""Puts runs side by side: distinct labels, the same questions in the same order, and a note of what still differs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medvlt.errors import DataError, listed
from medvlt.evaluation.runs import SHOWN, BenchmarkAnswers, EvaluationRun
from medvlt.evaluation.scores import MEAN

WARNING = "Warning: "
"""Begins a note that a reader must not miss."""

UNKNOWN = "not stored"
"""Shown for what the outputs of another harness do not say."""


@dataclass(frozen=True)
class AlignedRuns:
    """Runs that may be compared question by question.

    Attributes:
        runs: In the order of the report, the baseline last. Of a benchmark, all that were asked it have the same
            questions in the same order.
        labels: Of the runs, all different.
        baseline: Whether the last run is a baseline.
        notes: What was left out and what differs.
    """

    runs: tuple[EvaluationRun, ...]
    labels: tuple[str, ...]
    baseline: bool
    notes: tuple[str, ...]

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Names of all benchmarks, in order of first appearance."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.benchmarks))

    def asked(self, benchmark: str) -> list[int]:
        """Returns the positions of the runs that were asked a benchmark."""
        return [number for number, run in enumerate(self.runs) if benchmark in run.benchmarks]


def align(
    runs: Sequence[EvaluationRun], *, baseline: EvaluationRun | None = None, intersect: bool = False
) -> AlignedRuns:
    """Makes runs comparable, or says why they are not.

    Args:
        runs: At least one, or a baseline. One that is there twice counts once.
        baseline: What the others are compared with; may be one of them.
        intersect: Whether questions that some runs were not asked are left out, with a note; otherwise an error.

    Raises:
        DataError: If there is no run, a benchmark is named as the mean is, runs were asked different questions (and not
            `intersect`), share none of a benchmark, or mean different ones by the same uid.
    """
    chosen = {run.folder.resolve(): run for run in runs}
    if baseline is not None:
        chosen.pop(baseline.folder.resolve(), None)
        chosen[baseline.folder.resolve()] = baseline  # the last
    if not chosen:
        raise DataError("expected at least one evaluation, got none; give the folder of a run")
    together = list(chosen.values())
    labels = distinct_labels(together)
    whole = AlignedRuns(tuple(together), labels, baseline is not None, ())
    if MEAN in whole.benchmarks:
        raise DataError(f"a benchmark is named {MEAN!r}, as is the mean over benchmarks in a report; rename it")
    notes: list[str] = []
    shared: list[dict[str, BenchmarkAnswers]] = [{} for _ in together]
    for name in whole.benchmarks:
        asked = whole.asked(name)
        answers, note = _same_questions(
            name, [together[i].benchmarks[name] for i in asked], [labels[i] for i in asked], intersect=intersect
        )
        notes += note
        for position, kept in zip(asked, answers, strict=True):
            shared[position][name] = kept
    aligned = tuple(
        replace(run, benchmarks={name: mine[name] for name in run.benchmarks})
        for run, mine in zip(together, shared, strict=True)
    )
    notes += _check_same_content(aligned, labels)
    return AlignedRuns(aligned, labels, baseline is not None, (*_protocol_notes(aligned, labels), *notes))


def distinct_labels(runs: Sequence[EvaluationRun]) -> tuple[str, ...]:
    """Returns a name for each run; those with the same label get as much of their folder as tells them apart."""
    labels = [f"{run.label} [{control}]" if (control := control_name(run)) else run.label for run in runs]
    alike = {label for label in labels if labels.count(label) > 1}
    parts = [run.folder.resolve().parts for run in runs]
    named = labels
    for depth in range(1, max(map(len, parts)) + 1):
        if len(set(named)) == len(named):
            break
        tails = ["/".join(path[-depth:]) for path in parts]
        named = [f"{label} ({tail})" if label in alike else label for label, tail in zip(labels, tails, strict=True)]
    return tuple(named)


def control_name(run: EvaluationRun) -> str | None:
    """Returns the name of the control under which a run was made, None if there was none."""
    control = run.about.get("control")
    return str(control["name"]) if control else None


def _same_questions(
    benchmark: str, answers: Sequence[BenchmarkAnswers], labels: Sequence[str], *, intersect: bool
) -> tuple[list[BenchmarkAnswers], list[str]]:
    everyone = dict.fromkeys(uid for one in answers for uid in one.uids)
    own = [frozenset(one.uids) for one in answers]
    missing = [[uid for uid in everyone if uid not in mine] for mine in own]
    lacking = {uid for uids in missing for uid in uids}
    common = [uid for uid in everyone if uid not in lacking]
    lacks = "; ".join(
        f"{label} lacks {len(uids):,} of {len(everyone):,}{f' ({listed(uids, SHOWN)})' if uids else ''}"
        for label, uids in zip(labels, missing, strict=True)
    )
    if lacking and not intersect:
        raise DataError(
            f"the runs were asked different questions of {benchmark}: {lacks}; evaluate them on the same questions, or "
            "set intersect=true to compare only those that all were asked"
        )
    if not common:
        raise DataError(f"the runs share no question of {benchmark}: {lacks}; give runs of the same benchmark")
    notes = []
    if lacking:
        notes.append(
            f"{WARNING}{benchmark} is compared on {len(common):,} of {len(everyone):,} questions, those that every run "
            f"of it was asked: {lacks}."
        )
    return [one if list(one.uids) == common else one.select(common) for one in answers], notes


def _check_same_content(runs: Sequence[EvaluationRun], labels: Sequence[str]) -> list[str]:
    """Refuses runs that mean different questions by the same uid; returns a note where only the pictures differ.

    What a run stored of a question is compared with what the first run that stored it has, field by field: a run
    without options must not keep two others from being compared.
    """
    notes = []
    for name in dict.fromkeys(name for run in runs for name in run.benchmarks):
        known: dict[tuple[object, ...], tuple[object, str]] = {}
        for run, label in zip(runs, labels, strict=True):
            wrong: dict[str, dict[str, bool]] = {}
            others: dict[str, int] = {}
            for uid, field, value in _content(run, name):
                first, giver = known.setdefault((uid, *field), (value, label))
                if value == first:
                    continue
                if field[0] == "pictures":
                    others[giver] = others.get(giver, 0) + 1
                else:
                    wrong.setdefault(giver, {})[uid] = True
            for giver, uids in wrong.items():
                raise DataError(
                    f"{giver} and {label} have other options or another right answer for {len(uids):,} questions of "
                    f"{name}, such as {listed(list(uids), SHOWN)}; they are not the same questions: give runs of one "
                    "version of the benchmark"
                )
            notes += [
                f"{WARNING}{giver} and {label} have different pictures (by their bytes) in {count:,} of "
                f"{run.benchmarks[name].questions:,} questions of {name}."
                for giver, count in others.items()
            ]
    return notes


def _content(run: EvaluationRun, name: str) -> Iterator[tuple[str, tuple[object, ...], object]]:
    """Yields uid, field and value of what a run stored of each question and others must have too.

    Letters and pictures are those of runs under the same control, which may put options in another order; texts are
    those of all.
    """
    if name not in run.benchmarks:
        return
    answers, control = run.benchmarks[name], control_name(run)
    table = zip(answers.uids, answers.options, answers.answer_labels, answers.pictures, strict=True)
    for uid, options, letter, pictures in table:
        stored = (
            (("letters", control), dict(options)),
            (("right letter", control), letter),
            (("texts",), sorted(options.values())),
            (("right text",), options.get(letter or "")),
            (("pictures", control), pictures),
        )
        yield from ((uid, field, value) for field, value in stored if value)


def _protocol_notes(runs: Sequence[EvaluationRun], labels: Sequence[str]) -> list[str]:
    """Returns what differs between runs, or keeps one from being a whole evaluation; the runs as they are stored."""
    notes = []
    for what, remark, of in (
        (
            f"{WARNING}the runs were graded by different rules",
            "Differences may come from the grader; `medvlt regrade` grades stored completions by one rule.",
            grader_text,
        ),
        ("The runs used different prompts", "This is a part of what is compared.", prompt_text),
        ("The runs sampled differently", "A question counts once, however many completions it has.", sampling_text),
    ):
        if len({of(run) for run in runs}) > 1:
            notes.append(f"{what}: {_grouped(runs, labels, of)}. {remark}")
    for run, label in zip(runs, labels, strict=True):
        if limit := run.about.get("limited_to"):
            notes.append(f"{WARNING}{label} was limited to {json.dumps(limit, sort_keys=True)}, not whole benchmarks.")
        for name, kept in run.about.get("benchmarks", {}).items():
            expected = kept.get("expected")
            if expected is not None and expected != kept["questions"]:
                notes.append(f"{WARNING}{label} was asked {kept['questions']:,} of {expected:,} questions of {name}.")
    return notes


def _grouped(runs: Iterable[EvaluationRun], labels: Iterable[str], of: Callable[[EvaluationRun], str]) -> str:
    groups: dict[str, list[str]] = {}
    for run, label in zip(runs, labels, strict=True):
        groups.setdefault(of(run), []).append(label)
    return "; ".join(f"{value} ({', '.join(members)})" for value, members in groups.items())


def grader_text(run: EvaluationRun) -> str:
    """Returns policy and version of the grader."""
    grader = run.about.get("grader") or {}
    return f"{grader.get('policy') or UNKNOWN}, version {grader.get('version') or UNKNOWN}"


def prompt_text(run: EvaluationRun) -> str:
    """Returns the name of the prompt template."""
    prompt = run.about.get("prompt")
    if prompt is None:
        return UNKNOWN
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)


def sampling_text(run: EvaluationRun) -> str:
    """Returns how completions were drawn, in words."""
    sampling: Mapping[str, Any] = run.about.get("sampling") or {}
    n, temperature = f"n={sampling.get('n', 1)}", sampling.get("temperature")
    if temperature is None:
        return f"{n}, temperature {UNKNOWN}"
    if temperature == 0:
        return f"{n}, greedy"
    every = {"top_p": (None, 1), "top_k": (None, 0)}
    cut = [f"{name} {sampling.get(name)}" for name, keeps_all in every.items() if sampling.get(name) not in keeps_all]
    return ", ".join([n, f"temperature {temperature}", *cut])
