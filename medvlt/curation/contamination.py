# SPDX-License-Identifier: Apache-2.0
"""Training questions that are in evaluation sets: found, reported, and left out on request."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from rich.console import Console
from rich.progress import track

from medvlt.curation.card import announce, fingerprint, refuse_existing, write_dataset
from medvlt.curation.selection import SelectionReport
from medvlt.curation.text_matching import TextRule, match_texts, words
from medvlt.data.readers import PROGRESS_FROM
from medvlt.data.samples import SampleSet, Source
from medvlt.errors import ConfigurationError
from medvlt.imports import require
from medvlt.types import Sample

if TYPE_CHECKING:
    from medvlt.curation.image_matching import PictureRule

logger = logging.getLogger(__name__)

Kind: TypeAlias = Literal[
    "exact_text", "near_text", "same_picture_bytes", "same_picture_pixels", "near_picture", "same_wording"
]
"""How a training and an evaluation question match.

- `exact_text`, `near_text`: two questions without pictures, by their texts alone (see `text_matching`).
- `same_picture_bytes`, `same_picture_pixels`, `near_picture`: a picture of the one is a picture of the other, whatever
  is asked of it (see `image_matching`).
- `same_wording`: the texts match, but one of the questions has a picture: "Is there a fracture?" is asked of thousands.
"""

CONTAMINATION: tuple[Kind, ...] = (
    "exact_text",
    "near_text",
    "same_picture_bytes",
    "same_picture_pixels",
    "near_picture",
)
"""Kinds for which a training question is left out by default: all but `same_wording`."""

_NAMED = 20  # further evaluation questions that a pair names

_Place: TypeAlias = tuple[str, int]  # evaluation set, position in it


@dataclass(frozen=True)
class Pair:
    """A training question, and what it matches in one evaluation set in one way.

    Attributes:
        train_uid: The training question.
        evaluation_set: Name of the evaluation set.
        evaluation_uid: The question of that set that is most like it.
        kind: How they match.
        scores: Of texts: similarity, containment, phrases, letters. Of pictures: agreement, and wording, the likeness
            of the two texts. All in [0, 1].
        train_text: What the training question asks.
        evaluation_text: What the evaluation question asks.
        others: How many further questions of the set it matches in this way.
        other_uids: The first 20 of these.
    """

    train_uid: str
    evaluation_set: str
    evaluation_uid: str
    kind: Kind
    scores: Mapping[str, float]
    train_text: str
    evaluation_text: str
    others: int = 0
    other_uids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pictures:
    """What became of the pictures of one side.

    Attributes:
        read: Pictures read, repeats included.
        different: Different ones among them, by their bytes.
        unreadable: (uid, why) of each that could not be read, and so was not compared.
    """

    read: int
    different: int
    unreadable: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Contamination:
    """What two sides share.

    Attributes:
        pairs: In the order of the training set.
        train_questions: Questions of the training set.
        evaluation_questions: Questions of each evaluation set.
        touched: (evaluation set, kind) to how many of its questions some training question matches.
        wordless: Questions without a single word, which texts cannot find; both sides together.
        train_pictures: The training set's pictures; None if pictures were not compared.
        evaluation_pictures: Those of all evaluation sets together.
    """

    pairs: tuple[Pair, ...]
    train_questions: int
    evaluation_questions: Mapping[str, int]
    touched: Mapping[tuple[str, Kind], int]
    wordless: int = 0
    train_pictures: Pictures | None = None
    evaluation_pictures: Pictures | None = None

    def matched(self, kinds: Iterable[Kind] = CONTAMINATION) -> dict[str, Kind]:
        """Returns the uid of each training question that matches in one of these ways, with the first such way."""
        found: dict[str, Kind] = {}
        for kind in kinds:
            for pair in self.pairs:
                if pair.kind == kind:
                    found.setdefault(pair.train_uid, kind)
        return found

    def rows(self) -> list[tuple[str, Kind, int, int]]:
        """Returns (evaluation set, kind, training questions, evaluation questions) of what was found."""
        counts: dict[tuple[str, Kind], int] = {}
        for pair in self.pairs:  # one for each training question, set and kind
            counts[pair.evaluation_set, pair.kind] = counts.get((pair.evaluation_set, pair.kind), 0) + 1
        return [
            (name, kind, counts[name, kind], self.touched[name, kind])
            for name in self.evaluation_questions
            for kind in get_args(Kind)
            if (name, kind) in counts
        ]


def find_contamination(
    train: SampleSet,
    evaluation: Mapping[str, SampleSet],
    *,
    text: TextRule | None = None,
    picture: PictureRule | None = None,
    compare_pictures: bool = True,
) -> Contamination:
    """Compares every training question with every evaluation question, without going through all pairs.

    Training pictures are read one after the other, and only the digests of most are kept.

    Args:
        train: The training questions.
        evaluation: The evaluation sets by name.
        text: When texts match; by default, the measured rule.
        picture: When pictures match; by default, the measured rule.
        compare_pictures: Whether pictures are compared at all.

    Raises:
        ConfigurationError: If there is no evaluation set.
        MissingExtraError: If rapidfuzz or scipy is not installed.
    """
    if not evaluation:
        raise ConfigurationError("expected at least one evaluation set to compare with, got none; name one")
    found = _Found(train, evaluation)
    looked = found.compare_pictures(picture) if compare_pictures else found.only_look()
    wordless = found.compare_texts(text or TextRule())
    return Contamination(
        found.pairs(),
        len(train),
        {name: len(samples) for name, samples in evaluation.items()},
        {key: len(places) for key, places in found.touched.items()},
        wordless,
        *looked,
    )


def decontaminate(
    train: Source,
    evaluation: dict[str, Source],
    report: Path,
    output: Path | None = None,
    drop: list[Kind] | None = None,
    text: TextRule | None = None,
    picture: PictureRule | None = None,
    compare_pictures: bool = True,
    title: str | None = None,
    overwrite: bool = False,
) -> None:
    """Finds training questions that are in evaluation sets, and writes the training set without them if asked.

    Args:
        train: The training questions.
        evaluation: The evaluation sets by name, such as `{medqa: {class_path: JSONLines, ...}}`.
        report: Markdown file to write; all pairs go to the `.jsonl` file beside it.
        output: Folder for the training set without the questions found; by default none is written.
        drop: Kinds of match for which a question is left out; by default all but `same_wording`, which says only that a
            question about another picture is worded alike.
        text: When texts match.
        picture: When pictures match.
        compare_pictures: Whether pictures are compared at all.
        title: Name of the written set; by default the folder's.
        overwrite: Whether files and a saved data set that lie there may be replaced.
    """
    from medvlt.curation.contamination_report import summary, write_report
    from medvlt.curation.image_matching import PictureRule

    kinds = tuple(CONTAMINATION if drop is None else dict.fromkeys(drop))
    if unknown := [kind for kind in kinds if kind not in get_args(Kind)]:
        raise ConfigurationError(f"drop: expected kinds out of {', '.join(get_args(Kind))}; got {', '.join(unknown)}")
    report = Path(report)
    if report.suffix != ".md":
        raise ConfigurationError(f"report: expected the name of a Markdown file, ending in .md, got {report}")
    for path in (report, report.with_suffix(".jsonl"), *([] if output is None else [output])):
        refuse_existing(Path(path), overwrite=overwrite)
    text, picture = text or TextRule(), picture or PictureRule()
    samples = train.load()
    sets = {name: source.load() for name, source in evaluation.items()}
    found = find_contamination(samples, sets, text=text, picture=picture, compare_pictures=compare_pictures)
    rules = {"text": asdict(text), "picture": asdict(picture) if compare_pictures else None}
    write_report(found, report, kinds, rules, source=samples.report.source)
    print(summary(found, kinds))
    print(f"report {report}, all pairs {report.with_suffix('.jsonl')}")
    if output is not None:
        _write_clean(samples, sets, found, kinds, rules, output, title=title, overwrite=overwrite)


def _write_clean(
    samples: SampleSet,
    sets: Mapping[str, SampleSet],
    found: Contamination,
    kinds: Sequence[Kind],
    rules: Mapping[str, Any],
    output: Path,
    *,
    title: str | None,
    overwrite: bool,
) -> None:
    matched = found.matched(kinds)
    left_out: dict[str, int] = {}
    for kind in matched.values():
        left_out[kind] = left_out.get(kind, 0) + 1
    kept = [index for index, uid in enumerate(samples.uids) if uid not in matched]
    source = samples.report.source
    report = SelectionReport(
        f"{source}, without contamination", len(samples), len(kept), parts=(samples.report,), left_out=left_out
    )
    provenance = {
        "source": source,
        "source_fingerprint": fingerprint(samples.uids),
        "evaluation": {
            name: {"source": part.report.source, "questions": len(part), "fingerprint": fingerprint(part.uids)}
            for name, part in sets.items()
        },
        "dropped_kinds": list(kinds),
        "rules": dict(rules),
        "matches": [
            {"evaluation_set": name, "kind": kind, "train_questions": ours, "evaluation_questions": theirs}
            for name, kind, ours, theirs in found.rows()
        ],
        "unreadable_pictures": {
            side: len(looked.unreadable)
            for side, looked in (("train", found.train_pictures), ("evaluation", found.evaluation_pictures))
            if looked is not None
        },
    }
    notes = [f"{len(matched):,} of {len(samples):,} questions were left out, as they match one of {', '.join(sets)}."]
    facts = write_dataset(
        samples.select(kept, report),
        output,
        title=title or output.resolve().name,
        provenance=provenance,
        notes=notes,
        overwrite=overwrite,
    )
    announce(facts, output)


class _Found:
    """Collects matches: for each (training position, evaluation set, kind) the best one, and how many there are."""

    def __init__(self, train: SampleSet, evaluation: Mapping[str, SampleSet]) -> None:
        self.train, self.evaluation = train, evaluation
        self.touched: dict[tuple[str, Kind], set[int]] = {}
        self.best: dict[tuple[int, str, Kind], dict[int, tuple[float, Mapping[str, float]]]] = {}
        self.pictured: set[int | _Place] = set()  # questions with pictures; only a full sample tells

    def add(self, index: int, place: _Place, kind: Kind, rank: float, scores: Mapping[str, float]) -> None:
        name, position = place
        self.touched.setdefault((name, kind), set()).add(position)
        matches = self.best.setdefault((index, name, kind), {})
        if position not in matches or matches[position][0] < rank:
            matches[position] = rank, scores

    def only_look(self) -> tuple[None, None]:
        """Finds out which questions have pictures."""
        for _ in chain(self._read_train(), self._read_evaluation()):
            pass
        return None, None

    def compare_pictures(self, rule: PictureRule | None) -> tuple[Pictures, Pictures]:
        from medvlt.curation.picture_pairs import Seen, match_pictures

        ours, theirs, matches = match_pictures(self._read_train(), self._read_evaluation(), rule)
        likeness = require("rapidfuzz.fuzz", extra="curation").token_sort_ratio
        for match in matches:
            for index in ours.questions[match.train]:
                question = " ".join(words(self.train.light(index).question))
                for place in theirs.questions[match.evaluation]:
                    other = " ".join(words(self._at(place).question))
                    wording = likeness(question, other) / 100
                    scores = {"agreement": match.agreement, "wording": wording}
                    self.add(index, place, match.kind, wording, scores)

        def told(side: str, seen: Seen[Any]) -> Pictures:
            if seen.unreadable:
                uid, why = seen.unreadable[0]
                logger.warning(
                    "%d pictures of the %s cannot be read and were not compared; the first is of %s: %s",
                    *(len(seen.unreadable), side, uid, why),
                )
            return Pictures(seen.read, len(seen.questions), tuple(seen.unreadable))

        return told("training set", ours), told("evaluation sets", theirs)

    def compare_texts(self, rule: TextRule) -> int:
        """Returns how many questions have no words."""
        ours: dict[str, list[int]] = {}
        theirs: dict[str, list[_Place]] = {}
        for index in range(len(self.train)):
            ours.setdefault(" ".join(words(self.train.light(index).question)), []).append(index)
        for name, samples in self.evaluation.items():
            for position in range(len(samples)):
                theirs.setdefault(" ".join(words(samples.light(position).question)), []).append((name, position))
        wordless = len(ours.pop("", ())) + len(theirs.pop("", ()))
        groups, others = list(ours.values()), list(theirs.values())
        for match in match_texts(list(ours), list(theirs), rule):
            scores = {name: getattr(match, name) for name in ("similarity", "containment", "phrases", "letters")}
            rank = max(match.similarity, match.containment if match.phrases >= rule.phrases else 0.0)
            for index in groups[match.train]:
                for place in others[match.evaluation]:
                    kind: Kind = "exact_text" if match.exact else "near_text"
                    if index in self.pictured or place in self.pictured:
                        kind = "same_wording"
                    self.add(index, place, kind, rank, scores)
        return wordless

    def pairs(self) -> tuple[Pair, ...]:
        order = {kind: place for place, kind in enumerate(get_args(Kind))}
        names = {name: place for place, name in enumerate(self.evaluation)}
        keys = sorted(self.best, key=lambda key: (key[0], names[key[1]], order[key[2]]))
        return tuple(self._pair(*key) for key in keys)

    def _pair(self, index: int, name: str, kind: Kind) -> Pair:
        matches = self.best[index, name, kind]
        first, *further = sorted(matches, key=lambda position: (-matches[position][0], position))
        question, other = self.train.light(index), self._at((name, first))
        return Pair(
            train_uid=self.train.uids[index],
            evaluation_set=name,
            evaluation_uid=other.uid,
            kind=kind,
            scores={score: round(value, 4) for score, value in matches[first][1].items()},
            train_text=question.question,
            evaluation_text=other.question,
            others=len(further),
            other_uids=tuple(self._at((name, position)).uid for position in further[:_NAMED]),
        )

    def _read_train(self) -> Iterator[tuple[int, Sample]]:
        for index in _progress(range(len(self.train)), "reading the training set", len(self.train)):
            sample = self.train[index]
            if sample.images:
                self.pictured.add(index)
            yield index, sample

    def _read_evaluation(self) -> Iterator[tuple[_Place, Sample]]:
        for name, samples in self.evaluation.items():
            for position in _progress(range(len(samples)), f"reading {name}", len(samples)):
                sample = samples[position]
                if sample.images:
                    self.pictured.add((name, position))
                yield (name, position), sample

    def _at(self, place: _Place) -> Sample:
        return self.evaluation[place[0]].light(place[1])


def _progress(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    return track(
        items,
        description=description,
        total=total,
        transient=True,
        console=Console(stderr=True),
        disable=total <= PROGRESS_FROM,
    )
