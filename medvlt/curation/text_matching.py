# SPDX-License-Identifier: Apache-2.0
"""Questions that two sets share: equal or nearly equal texts, found without comparing every pair.

A question is its words, normalised: compatibility forms, accents, case, punctuation and blanks do not count, and every
number, in digits or in words, is the same word, `#`. A word weighs w = ln(1 + N / d), where d of the N different texts
of both sides hold it, so that "which of the following" weighs little and a diagnosis much.

1. Candidates. A text is the set of its words and of its pairs of neighbours. Those that few evaluation texts hold, and
   the 8 rarest of each text, are looked up in an index (a product of sparse matrices). Texts that share 20% of the
   weight looked up go on: of the heavier text, or of the lighter one if it is long enough to be looked for in others.
2. Confirmation. Words pair up if they are equal, or if one typing error lies between them (a letter more, less or
   changed, or two exchanged; 5 letters or more). With W(x) the weight of the words of x, W(a, b) that of the paired:

       similarity  = W(a, b) / (W(a) + W(b) - W(a, b))         (weighted Jaccard)
       containment = W(a, b) / min(W(a), W(b))                 (the lighter text inside the other)
       phrases     = share of the pairs of neighbours of the text with fewer of them that the other one has, too
       letters     = 1 - (letters to insert or leave out to turn a into b) / (letters of both)     (rapidfuzz ratio)

Words are compared as sets, so the order of clauses does not count. Questions that differ in their numbers alone match
and are told apart (`TextMatch.numbers_only`): a template filled in anew is another question. If it is filled in with
other words as well ("male", "female"), it is not told apart. In scripts without blanks between words, only equal texts
are found.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvlt.console import tracked
from medvlt.errors import ConfigurationError
from medvlt.imports import require

NUMBER = "#"
"""The word that stands for every number."""

_WORD = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W\d_]+")
_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: Decimal(value) for value, word in enumerate(_ONES)}
_VALUES |= {word: Decimal(10 * value) for value, word in enumerate(_TENS, start=2)}
_SCALES = {"hundred": Decimal(100), "thousand": Decimal(1_000), "million": Decimal(1_000_000)}
_NUMBER_WORDS = _VALUES.keys() | _SCALES.keys()
_SIGNS = re.compile("[.,:/]")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")

_RARE = 400  # a feature in more evaluation texts than this finds nothing by itself
_FEWEST = 8  # but the rarest features of a text are always looked up
_CHUNK = 2_000  # training texts whose candidates are in memory together
_CANDIDATE = 0.2  # share of the looked-up weight that a candidate has in common


@dataclass(frozen=True)
class TextRule:
    """When two questions count as the same text; see `medvlt.curation.text_matching` for the measures.

    Two texts match if they are alike as a whole, by words or by letters, or if one is a part of the other: cut off, or
    put behind an abstract.
    Long texts have more ways to be worded anew, and are alike by chance less often, so less likeness is asked of them.
    The defaults are measured, see `benchmarks/contamination.py`.

    Args:
        similarity: Weighted Jaccard similarity from which two texts match, in (0, 1].
        long_similarity: The same where both have `long_words` different words or more.
        long_words: See `long_similarity`.
        containment: Share of the shorter text's weight that the longer one must have to hold it, in (0, 1].
        phrases: Share of the shorter text's neighbouring words that must be neighbours there as well, in (0, 1].
        min_words: Fewest different words of a text that is looked for inside others; shorter ones are inside too many.
        letters: Likeness by letters from which two texts match, in (0, 1]: short ones with several typing errors.
    """

    similarity: float = 0.65
    long_similarity: float = 0.5
    long_words: int = 30
    containment: float = 0.85
    phrases: float = 0.8
    min_words: int = 8
    letters: float = 0.95

    def __post_init__(self) -> None:
        for name in ("similarity", "long_similarity", "containment", "phrases", "letters"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ConfigurationError(f"{name} must be in (0, 1], got {value}")
        for name in ("long_words", "min_words"):
            if (count := getattr(self, name)) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {count}")

    def accepts(self, match: TextMatch, fewest: int) -> bool:
        """Returns whether two texts match, of which the one with fewer different words has `fewest`."""
        whole = self.long_similarity if fewest >= self.long_words else self.similarity
        part = fewest >= self.min_words and match.phrases >= self.phrases
        alike = match.exact or match.similarity >= whole or match.letters >= self.letters
        return alike or (part and match.containment >= self.containment)


@dataclass(frozen=True, slots=True)
class TextMatch:
    """Two texts that match.

    Attributes:
        train: Position of the training text, from 0.
        evaluation: Position of the evaluation text, from 0.
        exact: Whether they are equal once normalised, numbers included.
        similarity: See the module; in [0, 1].
        containment: See the module; in [0, 1].
        phrases: See the module; in [0, 1].
        letters: See the module; in [0, 1].
        numbers_only: Whether the words are the same, typing errors aside, and each text has a number that the other
            one lacks. "5" and "five" are the same number, and so are "37.5" and "37 5", which lost its point; a number
            that one text has and the other one leaves out is no contradiction.
    """

    train: int
    evaluation: int
    exact: bool
    similarity: float
    containment: float
    phrases: float
    letters: float
    numbers_only: bool = False


def words(text: str) -> list[str]:
    """Returns the words of a text: no accents, no case, no punctuation; numbers are kept as they are written.

    >>> words("A 60-year-old's  BP: 125/87 (Sjögren)?")
    ['a', '60', 'year', 'old', 's', 'bp', '125/87', 'sjogren']
    """
    plain = unicodedata.normalize("NFKD", text).casefold()
    return _WORD.findall("".join(letter for letter in plain if not unicodedata.combining(letter)))


def mask_numbers(text: Sequence[str]) -> list[str]:
    """Returns the words with every number, in digits or in words, as one `#`.

    >>> mask_numbers(words("one hundred and twenty-five of 1,300"))
    ['#', 'of', '#']
    """
    masked: list[str] = []
    for place, word in enumerate(text):
        if word[0].isdecimal() or word in _NUMBER_WORDS:
            if not (masked and masked[-1] == NUMBER):
                masked.append(NUMBER)
        elif not _links(text, place):
            masked.append(word)
    return masked


def number_values(text: Sequence[str]) -> Counter[Decimal]:
    """Returns the numbers among some words and how often each is there, in digits or in words.

    A comma before three digits parts thousands, any other is a decimal one; "125/87" and "1:10" are two numbers each.

    >>> sorted(map(int, number_values(words("one hundred and twenty-five of 1,300 or 2 thousand, by 6")).elements()))
    [6, 125, 1300, 2000]
    """
    values: Counter[Decimal] = Counter()
    thousands, rest = Decimal(0), None  # of the number that is being read; no number while `rest` is None
    for place, word in enumerate(text):
        if _links(text, place):
            continue
        if word in _SCALES:
            scaled = (Decimal(1) if rest is None else rest) * _SCALES[word]
            thousands, rest = (thousands, scaled) if word == "hundred" else (thousands + scaled, Decimal(0))
            continue
        value = _VALUES.get(word)
        if value is not None and rest is not None and (rest or thousands) and 0 < value < _room(rest):
            rest += value
            continue
        if rest is not None:
            values[thousands + rest] += 1
        thousands, rest = Decimal(0), value
        if word[0].isdecimal():
            *others, rest = _in_digits(word)
            values.update(others)
            if text[place + 1 : place + 2] and text[place + 1] not in _SCALES:
                values[rest] += 1
                rest = None
    if rest is not None:
        values[thousands + rest] += 1
    return values


def _room(number: Decimal) -> int:
    """Returns what the next word must be below to go on with a number: 100 behind hundreds, 10 behind tens."""
    if number >= 1_000_000:
        return 0
    below = number % 100
    return 100 if not below else 10 if below >= 20 and not below % 10 else 0


def _in_digits(word: str) -> list[Decimal]:
    numbers = []
    for part in re.split("[:/]", word):
        plain = part.replace(",", "") if _GROUPED.fullmatch(part) else part.replace(",", ".")
        numbers += [Decimal(piece) for piece in ([plain] if plain.count(".") <= 1 else plain.split("."))]
    return numbers


def _links(text: Sequence[str], place: int) -> bool:
    """Returns whether the word is the "and" of "one hundred and five"."""
    around = text[place - 1 : place + 2] if place else ()
    return len(around) == 3 and around[1] == "and" and around[0] in _SCALES and around[2] in _NUMBER_WORDS


class Text:
    """A text as it is compared: its different words, its pairs of neighbours."""

    __slots__ = ("_numbers", "key", "pairs", "words")

    def __init__(self, text: str) -> None:
        plain = words(text)
        masked = mask_numbers(plain)
        self.key = " ".join(plain)
        self.words = frozenset(masked)
        self.pairs = frozenset(pairwise(masked))
        self._numbers: tuple[Counter[Decimal], Counter[Decimal]] | None = None

    @property
    def numbers(self) -> tuple[Counter[Decimal], Counter[Decimal]]:
        """The values of the numbers, and the same as if no number held a sign: 37 and 5 of "37.5"."""
        if self._numbers is None:
            bare = _SIGNS.sub(" ", self.key)
            self._numbers = number_values(self.key.split()), number_values(bare.split())
        return self._numbers


def match_texts(train: Sequence[str], evaluation: Sequence[str], rule: TextRule | None = None) -> Iterator[TextMatch]:
    """Yields every pair of a training and an evaluation text that match, by training position.

    Texts without any word match nothing. Held are the words of the evaluation texts, and of 2,000 training texts.

    Args:
        train: Training questions, without options; gone through twice. Give each once: 1,000 equal ones are compared
            1,000 times.
        evaluation: Evaluation questions.
        rule: When texts match.
    """
    rule = rule or TextRule()
    known = [Text(text) for text in evaluation]
    read = (Text(text) for text in tracked(train, "counting words", len(train)))
    scorer = _Scorer(word_weights(chain(known, read)))
    index = _Index(known, rule.min_words)
    for start in _chunks(len(train)):
        texts = [Text(text) for text in train[start : start + _CHUNK]]
        for row, number in index.candidates(texts):
            first, second = texts[row], known[number]
            match = scorer.compare(first, second, (start + row, number))
            if rule.accepts(match, min(len(first.words), len(second.words))):
                yield match


def word_weights(texts: Iterable[Text]) -> dict[str, float]:
    """Returns ln(1 + N / d) of each word, where d of the N different texts hold it."""
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    for text in texts:
        if text.key not in seen:
            seen.add(text.key)
            counts.update(text.words)
    return {word: math.log1p(len(seen) / count) for word, count in counts.items()}


class _Scorer:
    """Compares two texts at a time."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = weights
        distance = require("rapidfuzz.distance", extra="curation")
        self.osa, self.indel = distance.OSA.distance, distance.Indel.normalized_similarity

    def weight(self, found: Iterable[str]) -> float:
        return math.fsum(self.weights[word] for word in found)  # whatever the order of the words

    def compare(self, a: Text, b: Text, places: tuple[int, int]) -> TextMatch:
        left, right = self.weight(a.words), self.weight(b.words)
        shared = self.weight(a.words & b.words)
        mine, theirs = a.words - b.words, b.words - a.words
        unpaired = len(mine) + len(theirs)
        for word, other in self._typing_errors(mine, theirs):
            unpaired -= 2
            light = min(self.weights[word], self.weights[other])
            left += light - self.weights[word]  # a misspelt word is rare, and would weigh too much
            right += light - self.weights[other]
            shared += light
        pairs = min(a.pairs, b.pairs, key=len)
        return TextMatch(
            *places,
            exact=a.key == b.key,
            similarity=min(1.0, shared / (left + right - shared)),
            containment=min(1.0, shared / min(left, right)),
            phrases=len(a.pairs & b.pairs) / len(pairs) if pairs else 0.0,
            letters=self.indel(a.key, b.key),
            numbers_only=not unpaired and a.key != b.key and _contradict(a, b),
        )

    def _typing_errors(self, left: frozenset[str], right: frozenset[str]) -> Iterator[tuple[str, str]]:
        """Yields words of the two sides that one typing error separates; each word once."""
        free = sorted(word for word in right if len(word) >= 5)
        for word in sorted(word for word in left if len(word) >= 5):
            for other in free:
                if abs(len(word) - len(other)) <= 1 and self.osa(word, other, score_cutoff=1) <= 1:
                    free.remove(other)
                    yield word, other
                    break


class _Index:
    """Finds evaluation texts that may match: those with a good part of the looked-up features in common."""

    def __init__(self, texts: Sequence[Text], min_words: int) -> None:
        self.sparse: Any = require("scipy.sparse", extra="curation")
        self.min_words = min_words
        counts: Counter[Any] = Counter(feature for text in texts for feature in _features(text))
        self.columns = {feature: column for column, feature in enumerate(counts)}
        self.weights = np.log1p(len(texts) / np.fromiter(counts.values(), dtype=np.float32, count=len(counts)))
        self.rare = math.log1p(len(texts) / _RARE)
        matrix, self.totals, self.sizes = self._matrix(texts)
        matrix.data[:] = 1.0
        self.matrix = matrix.T.tocsr()

    def candidates(self, texts: Sequence[Text]) -> Iterator[tuple[int, int]]:
        """Yields (position in `texts`, position in the index) of texts to be compared, sorted."""
        rows, totals, sizes = self._matrix(texts)
        shared = (rows @ self.matrix).tocsr()
        for row, (start, end) in enumerate(pairwise(shared.indptr.tolist())):
            others, values = shared.indices[start:end], shared.data[start:end]
            least = np.where(
                np.minimum(sizes[row], self.sizes[others]) >= self.min_words,
                np.minimum(totals[row], self.totals[others]),
                np.maximum(totals[row], self.totals[others]),  # a short text inside a long one says nothing
            )
            for other in np.sort(others[values >= _CANDIDATE * least]).tolist():
                yield row, other

    def _matrix(self, texts: Sequence[Text]) -> tuple[Any, NDArray[np.float32], NDArray[np.int64]]:
        """Returns the weights of the looked-up features by text, their sums, and the number of words of each text."""
        indices: list[int] = []
        starts = [0]
        totals = np.zeros(len(texts), dtype=np.float32)
        for row, text in enumerate(texts):
            known = np.array([self.columns[f] for f in _features(text) if f in self.columns], dtype=np.int64)
            weights = self.weights[known]
            order = np.argsort(-weights, kind="stable")
            least = min(self.rare, float(weights[order][:_FEWEST].min(initial=np.inf)))
            kept = known[order][weights[order] >= least]
            totals[row] = self.weights[kept].sum()
            indices.extend(kept.tolist())
            starts.append(len(indices))
        shape = (len(texts), len(self.columns))
        sizes = np.array([len(text.words) for text in texts], dtype=np.int64)
        return self.sparse.csr_matrix((self.weights[indices], indices, starts), shape=shape), totals, sizes


def _features(text: Text) -> Iterator[Any]:
    yield from text.words
    yield from text.pairs


def _contradict(a: Text, b: Text) -> bool:
    """Returns whether each text has a number that the other one lacks, even if signs inside numbers got lost."""
    return NUMBER in a.words and all(
        left - right and right - left for left, right in zip(a.numbers, b.numbers, strict=True)
    )


def _chunks(count: int) -> Iterator[int]:
    """Yields the start of each chunk of texts."""
    for place in tracked(range(count), "comparing texts", count):
        if place % _CHUNK == 0:
            yield place
