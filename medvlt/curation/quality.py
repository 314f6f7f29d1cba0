# SPDX-License-Identifier: Apache-2.0
"""Questions that teach the wrong thing: found, marked in the ledger and reported.

A mark is a reason to look, or to leave a question out (`Selection.without_marks`); none proves a question wrong. The
marks, each true, false, or not examined:

- `blind` (picture questions): right without the picture significantly more often than guessing, in a probe over
  `WithoutPictures`. A model that always makes the same guess is right in all of its samples on 1 question in `options`:
  the mark cannot tell such luck from a leak, so the report says how many to expect.
- `duplicate`: an earlier question has the same wording, pictures, options and right answer.
- `contradictory`: another question has the same wording and pictures, and what is right in one is wrong in the other.
- `caption_leak`: the question gives its answer away, holding all content words of the right option and of no other; or,
  where the record brings the figure's caption, the question or the right option quotes it.
- `length_bias`: the right option is by far the longest or the shortest.
- `low_agreement`: one or several strong probes are right significantly less often than guessing, in answers that can be
  read. They prefer an option that the key calls wrong. The ledger has no counts by option, so this cannot tell a wrong
  key from a hard question with an attractive wrong option: read these questions.

Pictures are the same if their files are, byte by byte; `medvlt data decontaminate` finds what only looks alike.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medvlt import __version__
from medvlt.console import tracked
from medvlt.curation.biases import BiasCounts
from medvlt.curation.findings import MARKS, Findings
from medvlt.curation.marks import (
    Wording,
    above_chance,
    answers_needed,
    below_chance,
    gives_answer_away,
    length_outlier,
    quotes,
    repeats,
    wording,
)
from medvlt.curation.probe import accepted_graders
from medvlt.data.samples import SampleSet, Source
from medvlt.data.writers import encoded
from medvlt.errors import ConfigurationError, DataError
from medvlt.types import ImageSource, Sample

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QualityRules:
    """Where a mark begins.

    Args:
        blind_alpha: Level of the one-sided binomial test for `blind`, chance 1 / options: with 16 samples and four
            options 8 right answers at 0.05. Of questions guessed anew in every sample at most this share is marked.
        blind_at_least: Right answers from which `blind` is given instead, whatever the number of options; null tests.
        agreement_alpha: Level of the test for `low_agreement`: of 16 answers with four options 0 at 0.05.
        caption_words: Words in a row that count as quoting a caption.
        length_ratio: How many times as long as every other option, or as short, the right one is for `length_bias`.
        length_gap: By how many characters it must differ besides.
    """

    blind_alpha: float = 0.05
    blind_at_least: int | None = None
    agreement_alpha: float = 0.05
    caption_words: int = 8
    length_ratio: float = 2.0
    length_gap: int = 15

    def __post_init__(self) -> None:
        for name, valid, rule in (
            ("blind_alpha", 0 < self.blind_alpha < 1, "in (0, 1)"),
            ("blind_at_least", self.blind_at_least is None or self.blind_at_least >= 1, "at least 1, or null"),
            ("agreement_alpha", 0 < self.agreement_alpha < 1, "in (0, 1)"),
            ("caption_words", self.caption_words >= 1, "at least 1"),
            ("length_ratio", self.length_ratio >= 1, "at least 1"),
            ("length_gap", self.length_gap >= 0, "0 or above"),
        ):
            if not valid:
                raise ConfigurationError(f"rules.{name} must be {rule}, got {getattr(self, name)}")


def quality(
    source: Source,
    report: Path,
    ledger: Path | None = None,
    blind_probe: str | None = None,
    strong_probes: list[str] | None = None,
    caption_column: str | None = None,
    rules: QualityRules = QualityRules(),
    accept_grader_version: str | None = None,
    overwrite: bool = False,
) -> None:
    """Marks questions that teach the wrong thing, and reports them. Research software, not for clinical use.

    Marks: blind, duplicate, contradictory, caption_leak, length_bias, low_agreement; see the report for what each
    means. They are written into the ledger, where `medvlt data select --selection.without_marks` finds them. Of these
    questions, what an earlier run wrote is replaced, or taken back where a question counts as not examined now; `blind`
    and `low_agreement` stay as they are if their probes are not named.

    Args:
        source: The questions.
        report: Markdown file to write, `.md` added if it is not there; a `.json` file with all numbers and uids goes
            beside it.
        ledger: Ledger that the marks go into, made if there is none; null only reports.
        blind_probe: Probe in the ledger that was asked these questions without their pictures; null leaves `blind` out.
        strong_probes: Probes in the ledger that saw the pictures, of models strong enough to be believed; all of them
            must disagree with the key. Null leaves `low_agreement` out.
        caption_column: Column of the records with the caption of the figure; null if there is none.
        rules: Where each mark begins.
        accept_grader_version: Version of older grading rules whose counts are good enough.
        overwrite: Whether the report may replace another.

    Raises:
        ConfigurationError: If a probe is named without a ledger.
        DataError: If the report exists, or a probe does not fit the questions, was graded by other rules, or is too
            small to tell anything.
    """
    from medvlt.curation.ledger import Ledger, update_ledger
    from medvlt.curation.quality_report import print_findings, report_paths, write_report

    if ledger is None and (blind_probe or strong_probes):
        raise ConfigurationError("blind_probe and strong_probes are read from a ledger: give ledger")
    markdown, numbers = report_paths(report)
    if found := [path for path in (markdown, numbers) if path.exists() and not overwrite]:
        raise DataError(f"expected a new report, but {found[0]} exists; choose another path or set overwrite=true")
    probes = [name for name in (blind_probe, *(strong_probes or [])) if name]
    rows = {} if ledger is None or not probes else _probe_rows(Ledger.read(ledger), probes)
    samples = source.load()
    graders = {
        name: accepted_graders(
            f"counts of probe {name!r} in {ledger}",
            (str(found[uid]["grader"]) for uid in samples.uids if uid in found),
            accept_grader_version,
        )
        for name, found in rows.items()
    }
    findings = examine(
        samples,
        rules,
        blind=rows.get(blind_probe or ""),
        strong={name: rows[name] for name in strong_probes or []},
        caption_column=caption_column,
    )
    about = {
        "rules": asdict(rules),
        "blind_probe": blind_probe,
        "strong_probes": strong_probes,
        "caption_column": caption_column,
        "grader_versions": graders,
        "medvlt": __version__,
    }
    print_findings(findings)
    if ledger is not None:  # before the report, which a second try would find in its way
        given = [name for name, probe in (("blind", blind_probe), ("low_agreement", strong_probes)) if probe]
        tried = [name for name in MARKS if name in given or name not in ("blind", "low_agreement")]
        questions = {uid: (findings.names[uid], findings.indices[uid]) for uid in findings.names}
        update_ledger(
            ledger, lambda present: present.with_marks(findings.for_ledger(tried, present.marks), about, questions)
        )
        print(f"marks written to {ledger}: {', '.join(f'mark/{name}' for name in tried if findings.marks[name])}")
    write_report(findings, samples, about, markdown, numbers)
    print(f"report written to {markdown} and {numbers}")


def examine(
    samples: SampleSet,
    rules: QualityRules,
    *,
    blind: Mapping[str, Mapping[str, Any]] | None = None,
    strong: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    caption_column: str | None = None,
) -> Findings:
    """Returns the marks and biases of a set. Reads each picture at most twice and holds none.

    Args:
        samples: The questions.
        rules: Where each mark begins.
        blind: Counts by uid of a probe without pictures, as `Ledger.rows` gives them.
        strong: The same of probes with pictures, by name.
        caption_column: Key in `Sample.extra` of the figure's caption.

    Raises:
        DataError: If a probe does not fit the questions or is too small, no record has a caption, or a picture cannot
            be read.
    """
    findings = Findings()
    wordings: list[Wording] = []
    with_pictures: list[bool] = []
    captions = 0
    too_few: dict[str, list[tuple[int, int, int]]] = {"blind": [], "low_agreement": []}
    for sample in _tracked(samples, range(len(samples)), "examining questions"):
        findings.names[sample.uid] = sample.dataset_name
        findings.indices[sample.uid] = sample.dataset_index
        wordings.append(wording(sample))
        with_pictures.append(bool(sample.images))
        if sample.answer_label is None:
            continue
        findings.biases.setdefault(sample.dataset_name, BiasCounts()).add(dict(sample.options), sample.answer_label)
        caption = sample.extra.get(caption_column) if caption_column else None
        captions += bool(caption)
        _mark_texts(findings, sample, str(caption or ""), rules)
        _mark_probes(findings, sample, rules, blind, strong or {}, too_few)
    if caption_column and not captions:
        raise DataError(f"none of {len(samples)} records has a caption in {caption_column!r}; correct caption_column")
    for what, name, rows in [
        ("blind", "blind_probe", blind),
        *(("low_agreement", n, r) for n, r in (strong or {}).items()),
    ]:
        if rows is not None and not any(uid in rows for uid in findings.names):
            raise DataError(
                f"{name} has no counts of these {len(samples)} questions, so {what} cannot be told; "
                "name a ledger and a probe of this data set"
            )
    for name, probes in (("blind", blind), ("low_agreement", strong)):
        if probes and not findings.marks[name]:
            raise DataError(_untested(name, too_few[name]))
    _mark_repeats(findings, samples, wordings, with_pictures)
    return findings


def _untested(mark: str, too_few: Sequence[tuple[int, int, int]]) -> str:
    """Returns why no question could be examined; `too_few` are answers, answers needed and options, by question."""
    if not too_few:
        what = {"blind": "with a picture has counts of blind_probe", "low_agreement": "was asked of all strong_probes"}
        return f"{mark} cannot be told of any question: none with options {what[mark]}; name probes of this data set"
    n, needed, options = min(too_few, key=lambda counts: counts[1] - counts[0])
    return (
        f"{mark} cannot be told of any question: with {options} options at least {needed} readable answers are needed, "
        f"and there are {n}; probe with more answers (sampling.n), or change rules"
    )


def _mark_texts(findings: Findings, sample: Sample, caption: str, rules: QualityRules) -> None:
    answer, others = _split(sample)
    outlier = length_outlier(answer, others, ratio=rules.length_ratio, gap=rules.length_gap)
    findings.marks["length_bias"][sample.uid] = outlier is not None
    found = {
        f"right option is the {outlier}": outlier is not None,
        "answer in the question": gives_answer_away(sample.question, answer, others),
        "question quotes the caption": quotes(sample.question, caption, rules.caption_words),
        "right option alone quotes the caption": quotes(answer, caption, rules.caption_words)
        and not any(quotes(other, caption, rules.caption_words) for other in others),
    }
    findings.rules.update([name for name, holds in found.items() if holds])
    findings.marks["caption_leak"][sample.uid] = any(list(found.values())[1:])


def _mark_probes(
    findings: Findings,
    sample: Sample,
    rules: QualityRules,
    blind: Mapping[str, Mapping[str, Any]] | None,
    strong: Mapping[str, Mapping[str, Mapping[str, Any]]],
    too_few: Mapping[str, list[tuple[int, int, int]]],
) -> None:
    options = len(sample.options)
    if sample.images and blind is not None and (row := blind.get(sample.uid)) is not None:
        if row["pictures"]:
            raise DataError(
                f"blind_probe was shown {row['pictures']} pictures with question {sample.uid}; name a probe over "
                "WithoutPictures"
            )
        needed = rules.blind_at_least or answers_needed(options, alpha=rules.blind_alpha, all_right=True)
        if rules.blind_at_least is not None:
            seen_through = row["robust"] >= rules.blind_at_least if row["n"] >= needed else None
        else:
            seen_through = above_chance(row["robust"], row["n"], options, alpha=rules.blind_alpha)
        if seen_through is None:
            too_few["blind"].append((row["n"], needed, options))
        else:
            findings.marks["blind"][sample.uid] = seen_through
            findings.lucky_guesses += 1 / options
    verdicts: list[bool | None] = []
    for name, rows in strong.items():
        row = rows.get(sample.uid)
        if row is not None and row["pictures"] != len(sample.images):
            raise DataError(
                f"probe {name!r} was shown {row['pictures']} of {len(sample.images)} pictures with question "
                f"{sample.uid}; strong_probes must have seen what the key was made from"
            )
        if row is None:
            verdicts.append(None)
            continue
        # answers outside the format say little about what a model believes; those that are right count all the same
        verdicts.append(below_chance(row["robust"], row["format"], options, alpha=rules.agreement_alpha))
        if verdicts[-1] is None:
            needed = answers_needed(options, alpha=rules.agreement_alpha, all_right=False)
            too_few["low_agreement"].append((row["format"], needed, options))
    if verdicts and None not in verdicts:
        findings.marks["low_agreement"][sample.uid] = all(verdicts)


def _mark_repeats(
    findings: Findings, samples: SampleSet, wordings: list[Wording], with_pictures: Sequence[bool]
) -> None:
    """Pictures are read only where their questions are worded alike."""
    stems = Counter(one.stem for one in wordings)
    unsure = [i for i, one in enumerate(wordings) if with_pictures[i] and stems[one.stem] > 1]
    digest = picture_digests()
    for index, sample in zip(unsure, _tracked(samples, unsure, "comparing pictures"), strict=True):
        wordings[index] = wording(sample, [digest(picture) for picture in sample.images])
    duplicate, contradictory = repeats(wordings)
    findings.marks["duplicate"] = dict(zip(findings.names, duplicate, strict=True))
    findings.marks["contradictory"] = dict(zip(findings.names, contradictory, strict=True))


def picture_digests() -> Callable[[ImageSource], bytes]:
    """Returns a function from a picture to a digest of its file, which reads a file once however often it is named."""
    known: dict[Path, bytes] = {}

    def digest(picture: ImageSource) -> bytes:
        if isinstance(picture, Path):
            if picture not in known:
                known[picture] = _digest(encoded(picture))
            return known[picture]
        return _digest(encoded(picture))

    return digest


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _split(sample: Sample) -> tuple[str, list[str]]:
    """Returns the text of the right option, and those of the others."""
    return (
        sample.options[str(sample.answer_label)],
        [text for letter, text in sample.options.items() if letter != sample.answer_label],
    )


def _probe_rows(ledger: Any, probes: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    if unknown := [name for name in probes if name not in ledger.probes]:
        raise DataError(f"the ledger has no probe {unknown[0]!r}; its probes: {', '.join(ledger.probes) or 'none'}")
    return {name: ledger.rows(name) for name in probes}


def _tracked(samples: SampleSet, indices: Sequence[int], description: str) -> Iterable[Sample]:
    return (samples[index] for index in tracked(indices, description, len(indices)))
