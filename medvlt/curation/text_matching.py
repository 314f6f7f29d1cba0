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

Words are compared as sets, so the order of clauses does not count. Questions that differ in their numbers alone match,
calculations and generated questions too. In scripts without blanks between words, only equal
texts are found.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from medvlt.data.readers import PROGRESS_FROM
from medvlt.errors import ConfigurationError
from medvlt.imports import require

NUMBER = "#"
"""The word that stands for every number."""

_WORD = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W\d_]+")
_LINKED = frozenset(["hundred", "thousand", "million"])
_NUMBER_WORDS = _LINKED.union(
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
    ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"),
)

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
    """

    train: int
    evaluation: int
    exact: bool
    similarity: float
    containment: float
    phrases: float
    letters: float


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
        if word[0].isdigit() or word in _NUMBER_WORDS:
            if not (masked and masked[-1] == NUMBER):
                masked.append(NUMBER)
        elif not (
            word == "and"
            and place
            and text[place - 1] in _LINKED
            and text[place + 1 : place + 2]
            and text[place + 1] in _NUMBER_WORDS
        ):
            masked.append(word)
    return masked


class Text:
    """A text as it is compared: its different words, its pairs of neighbours."""

    __slots__ = ("key", "pairs", "words")

    def __init__(self, text: str) -> None:
        plain = words(text)
        masked = mask_numbers(plain)
        self.key = " ".join(plain)
        self.words = frozenset(masked)
        self.pairs = frozenset(pairwise(masked))


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
    chunks = range(0, len(train), _CHUNK)
    read = (Text(text) for text in _progress(train, "counting words"))
    scorer = _Scorer(word_weights(chain(known, read)))
    index = _Index(known, rule.min_words)
    for start in _progress(chunks, "comparing texts", len(train)):
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
        for word, other in self._typing_errors(a.words - b.words, b.words - a.words):
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

    def candidates(self, texts: Sequence[Text]) -> list[tuple[int, int]]:
        """Returns (position in `texts`, position in the index) of texts to be compared, sorted."""
        rows, totals, sizes = self._matrix(texts)
        shared = (rows @ self.matrix).tocoo()
        one, other = totals[shared.row], self.totals[shared.col]
        least = np.where(
            np.minimum(sizes[shared.row], self.sizes[shared.col]) >= self.min_words,
            np.minimum(one, other),
            np.maximum(one, other),  # a short text inside a long one says nothing
        )
        chosen = shared.data >= _CANDIDATE * least
        return sorted(zip(shared.row[chosen].tolist(), shared.col[chosen].tolist(), strict=True))

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


def _progress(items: Sequence[Any], description: str, total: int | None = None) -> Iterable[Any]:
    return track(
        items,
        description=description,
        transient=True,
        console=Console(stderr=True),
        disable=(len(items) if total is None else total) <= PROGRESS_FROM,
    )
