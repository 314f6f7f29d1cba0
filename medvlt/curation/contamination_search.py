# SPDX-License-Identifier: Apache-2.0
"""Matches of two sides, kept by groups of questions of one text or one picture, and worked out question by question."""

from __future__ import annotations

import heapq
import logging
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from typing import Any, Generic, TypeAlias, TypeVar, get_args

from medvlt.console import tracked
from medvlt.curation.contamination import Kind, Pair, Pictures
from medvlt.curation.image_matching import PictureMatch, PictureRule
from medvlt.curation.picture_pairs import Seen, match_pictures
from medvlt.curation.text_matching import TextMatch, TextRule, match_texts, words
from medvlt.data.samples import SampleSet
from medvlt.imports import require
from medvlt.types import Sample

Place = TypeVar("Place", bound=Hashable)

logger = logging.getLogger(__name__)

_NAMED = 20  # further evaluation questions that a pair names

_Place: TypeAlias = tuple[str, int]  # evaluation set, position in it
_Scores: TypeAlias = Mapping[str, float]
_Match: TypeAlias = tuple[Kind, _Place, float, _Scores]  # the number: by what the best is chosen


class Search:
    """Finds what the questions of a training set match.

    1,000 equal questions on each side are one match of two groups, not a million pairs: a training question's own
    matches are worked out when its turn comes, once for all that are like it, and only the best are kept.

    Args:
        train: The training questions.
        evaluation: The evaluation sets by name.

    Attributes:
        touched: (evaluation set, kind) to the positions that match; complete once `pairs` has run.
        wordless: Questions without a word, of both sides.
    """

    def __init__(self, train: SampleSet, evaluation: Mapping[str, SampleSet]) -> None:
        self.train, self.evaluation = train, evaluation
        self.touched: dict[tuple[str, Kind], set[int]] = {}
        self.pictured: set[int | _Place] = set()  # questions with pictures; only a full sample tells
        self.ours, self.theirs = _Texts[int](), _Texts[_Place]()
        for index in range(len(train)):
            self.ours.add(index, train.light(index))
        for name, samples in evaluation.items():
            for position in range(len(samples)):
                self.theirs.add((name, position), samples.light(position))
        self.wordless = self.ours.wordless + self.theirs.wordless
        self._of_text: dict[tuple[int, bool], list[Pair]] = {}  # by training text, and whether there is a picture
        self._of_picture: dict[int, list[PictureMatch]] = defaultdict(list)  # by training picture
        self._pictures: dict[int, list[int]] = defaultdict(list)  # matched pictures of a training question
        self._about: list[list[_Place]] = []  # questions about an evaluation picture

    def only_look(self) -> None:
        """Finds out which questions have pictures."""
        for _ in chain(self._read_train(), self._read_evaluation()):
            pass

    def compare_pictures(self, rule: PictureRule | None) -> tuple[Pictures, Pictures]:
        """Compares the pictures, and returns what became of those of the training and of the evaluation side."""
        ours, theirs, matches = match_pictures(self._read_train(), self._read_evaluation(), rule)
        for match in matches:
            self._of_picture[match.train].append(match)
        for picture in self._of_picture:
            for index in ours.questions[picture]:
                self._pictures[index].append(picture)
        self._about = theirs.questions
        return _told("training set", ours), _told("evaluation sets", theirs)

    def compare_texts(self, rule: TextRule) -> None:
        """Compares the texts; whether a question has a picture must be known by then."""
        matches = match_texts(list(self.ours.numbers), list(self.theirs.numbers), rule)
        for text, group in groupby(matches, key=lambda match: match.train):
            alike = list(group)
            for pictured in {index in self.pictured for index in self.ours.holders[text]}:
                self._of_text[text, pictured] = self._best(self._by_text(alike, pictured, rule))

    def pairs(self) -> Iterator[Pair]:
        """Yields what each training question matches, in order: by question, evaluation set and kind."""
        found: dict[tuple[int, tuple[int, ...]], list[Pair]] = {}  # by text and pictures
        names, kinds = list(self.evaluation), get_args(Kind)
        for index in range(len(self.train)):
            text, pictures = self.ours.of[index], tuple(self._pictures.get(index, ()))
            if pictures and (text, pictures) not in found:
                found[text, pictures] = self._best(self._by_picture(text, pictures))
            pairs = [*self._of_text.get((text, index in self.pictured), ()), *found.get((text, pictures), ())]
            if not pairs:
                continue
            question = self.train.light(index)
            for pair in sorted(pairs, key=lambda pair: (names.index(pair.evaluation_set), kinds.index(pair.kind))):
                yield replace(
                    pair,
                    train_uid=question.uid,
                    train_text=question.question,
                    train_answer=question.answer,
                )

    def _best(self, matches: Iterable[_Match]) -> list[Pair]:
        """Returns the best match for each set and kind, without what is the training question's own."""
        found: dict[tuple[str, Kind], dict[int, tuple[float, _Scores]]] = defaultdict(dict)
        for kind, (name, position), rank, scores in matches:
            known = found[name, kind].get(position)
            if known is None or known[0] < rank:
                found[name, kind][position] = rank, scores
        pairs = []
        for (name, kind), ranked in found.items():
            self.touched.setdefault((name, kind), set()).update(ranked)
            order = heapq.nsmallest(_NAMED + 1, ((-rank, position) for position, (rank, _) in ranked.items()))
            first, *further = (self._at((name, position)) for _, position in order)
            pair = Pair(
                train_uid="",
                evaluation_set=name,
                evaluation_uid=first.uid,
                kind=kind,
                scores={score: round(value, 4) for score, value in ranked[order[0][1]][1].items()},
                train_text="",
                evaluation_text=first.question,
                train_answer="",
                evaluation_answer=first.answer,
                others=len(ranked) - 1,
                other_uids=tuple(other.uid for other in further),
            )
            pairs.append(pair)
        return pairs

    def _by_text(self, matches: Iterable[TextMatch], pictured: bool, rule: TextRule) -> Iterator[_Match]:
        for match in matches:
            scores = {name: getattr(match, name) for name in ("similarity", "containment", "phrases", "letters")}
            rank = max(match.similarity, match.containment if match.phrases >= rule.phrases else 0.0)
            alone: Kind = "exact_text" if match.exact else "same_but_numbers" if match.numbers_only else "near_text"
            for place in self.theirs.holders[match.evaluation]:
                yield "same_wording" if pictured or place in self.pictured else alone, place, rank, scores

    def _by_picture(self, text: int, pictures: Iterable[int]) -> Iterator[_Match]:
        ratio = require("rapidfuzz.fuzz", extra="curation").ratio  # of sorted words: `token_sort_ratio`, sorted once
        mine, wording = self.ours.sorted(text), dict[int, float]()  # by evaluation text
        for match in chain.from_iterable(self._of_picture[picture] for picture in pictures):
            for place in self._about[match.evaluation]:
                other = self.theirs.of[place]
                if other not in wording:
                    wording[other] = ratio(mine, self.theirs.sorted(other)) / 100
                scores = {"agreement": match.agreement, "wording": wording[other]}
                yield match.kind, place, wording[other], scores

    def _read_train(self) -> Iterator[tuple[int, Sample]]:
        for index in tracked(range(len(self.train)), "reading the training set", len(self.train)):
            sample = self.train[index]
            if sample.images:
                self.pictured.add(index)
            yield index, sample

    def _read_evaluation(self) -> Iterator[tuple[_Place, Sample]]:
        for name, samples in self.evaluation.items():
            for position in tracked(range(len(samples)), f"reading {name}", len(samples)):
                sample = samples[position]
                if sample.images:
                    self.pictured.add((name, position))
                yield (name, position), sample

    def _at(self, place: _Place) -> Sample:
        return self.evaluation[place[0]].light(place[1])


@dataclass
class _Texts(Generic[Place]):
    """The different texts of one side.

    Attributes:
        numbers: Normalised text to its number, in order.
        holders: Text to the questions that have it.
        of: Question to its text.
    """

    numbers: dict[str, int] = field(default_factory=dict)
    holders: list[list[Place]] = field(default_factory=list)
    of: dict[Place, int] = field(default_factory=dict)
    _sorted: dict[int, str] = field(default_factory=dict)

    def add(self, place: Place, sample: Sample) -> None:
        number = self.numbers.setdefault(" ".join(words(sample.question)), len(self.numbers))
        if number == len(self.holders):
            self.holders.append([])
        self.holders[number].append(place)
        self.of[place] = number

    @property
    def wordless(self) -> int:
        return len(self.holders[self.numbers[""]]) if "" in self.numbers else 0

    def sorted(self, number: int) -> str:
        """Returns the words of a text in their order."""
        if not self._sorted:
            self._sorted = {place: " ".join(sorted(text.split())) for text, place in self.numbers.items()}
        return self._sorted[number]


def _told(side: str, seen: Seen[Any]) -> Pictures:
    if seen.unreadable:
        uid, why = seen.unreadable[0]
        logger.warning(
            "%d pictures of the %s cannot be read and were not compared; the first is of %s: %s",
            *(len(seen.unreadable), side, uid, why),
        )
    return Pictures(seen.read, len(seen.questions), tuple(seen.unreadable))
