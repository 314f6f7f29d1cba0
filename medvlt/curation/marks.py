# SPDX-License-Identifier: Apache-2.0
"""Rules that mark a question as a poor one to learn from. Pure functions of texts and counts."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import comb
from typing import Literal

from medvlt.rewards.parsing import tidy, tokenise
from medvlt.types import Sample

_FUNCTION_WORDS = (
    "a an as at be by do if in is it no of on or to up we the and for with from that this these those are was were has "
    "have had not but its his her their which what who when where why how can may will into than then over under "
    "between both all any none each other most more less very only also such same does did been being above below "
    "following shown seen yes true false"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that say nothing of a finding, and the answers of yes/no questions."""

MIN_LETTERS = 3
"""Letters of the shortest word that can give an answer away: "CT" and the letter of a panel are in many questions."""


def normalise(text: str) -> str:
    """Returns the words, numbers and symbols of a text, case folded, with one blank between them.

    Compatibility forms of Unicode, markdown, punctuation and blanks do not count. Signs, decimal points, units and
    comparisons do: "-5" is not "5", "p < 0.05" is not "p > 0.05". A text without any word, number or symbol, such as
    "?", stays as it is, outer blanks aside. (`text_matching.words` drops signs and accents too: it looks for what may
    be the same question, while a mark says that it is.)

    Example:
        >>> normalise("  Is the Rh-negative *mother* at risk?"), normalise("-1.5 mg/dL"), normalise("Rh-")
        ('is the rh negative mother at risk', '-1.5 mg dl', 'rh-')
    """
    folded = tidy(tidy(text).casefold())  # folding may undo a composed character
    words: list[str] = []
    for token in tokenise(folded):
        if token.text == "-":  # of "Rh-": without its word it would be a dash and mean nothing
            words[-1] += "-"
        else:
            words.append(token.text)
    return " ".join(words) or " ".join(text.split())


def content_words(text: str) -> frozenset[str]:
    """Returns the words, numbers and symbols of a text without function words."""
    return frozenset(normalise(text).split()) - FUNCTION_WORDS


def gives_answer_away(question: str, answer: str, others: Sequence[str]) -> bool:
    """Returns whether the question holds all content words of its answer, and of no other option.

    At least one of them must have `MIN_LETTERS` letters or more: yes, no, a number, a letter or "N/A" is never given
    away by this rule. Nor is one of several options that the question names ("Is it benign or malignant?").

    Args:
        question: The stem.
        answer: Text of the right option.
        others: Texts of the other options.
    """
    stem = content_words(question)

    def named(option: str) -> bool:
        words = content_words(option)
        return words <= stem and any(len(word) >= MIN_LETTERS and word.isalpha() for word in words)

    return named(answer) and not any(map(named, others))


def quotes(text: str, caption: str, words: int) -> bool:
    """Returns whether a text shares a run of `words` or more words with a caption.

    Args:
        text: A question or an option.
        caption: The caption of its figure.
        words: Length of the run, at least 1. Numbers and symbols count as words.
    """
    if not caption.strip():
        return False
    one, two = normalise(text).split(), normalise(caption).split()
    runs = {tuple(two[i : i + words]) for i in range(len(two) - words + 1)}
    return any(tuple(one[i : i + words]) in runs for i in range(len(one) - words + 1))


def length_outlier(
    answer: str, others: Sequence[str], *, ratio: float, gap: int
) -> Literal["longest", "shortest"] | None:
    """Returns whether the right option stands out from all others by its length in characters, and how.

    It does if the longer of the two is at least `ratio` times as long as the shorter and at least `gap` characters
    longer, whichever other option it is compared with; without the gap "No" would stand out from "Maybe".

    Args:
        answer: Text of the right option.
        others: Texts of the other options, at least one.
        ratio: At least 1.
        gap: In characters.
    """
    length = len(answer.strip())
    lengths = [len(other.strip()) for other in others]
    if length >= ratio * max(lengths) and length - max(lengths) >= gap:
        return "longest"
    if length * ratio <= min(lengths) and min(lengths) - length >= gap:
        return "shortest"
    return None


def binomial_at_least(right: int, n: int, chance: float) -> float:
    """Returns P(X >= right) for X ~ Binomial(n, chance): how often guessing does as well or better."""
    return min(1.0, sum(comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in range(right, n + 1)))


def binomial_at_most(right: int, n: int, chance: float) -> float:
    """Returns P(X <= right) for X ~ Binomial(n, chance): how often guessing does as badly or worse."""
    return min(1.0, sum(comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in range(right + 1)))


def above_chance(right: int, n: int, options: int, *, alpha: float) -> bool | None:
    """Returns whether so many right answers are more than guessing among the options explains.

    One-sided exact binomial test at level `alpha`, chance 1 / options: of 16 samples with four options 8 are enough at
    0.05, with two options 12. None if even n of n would not be significant.
    """
    if binomial_at_least(n, n, 1 / options) > alpha:
        return None
    return binomial_at_least(right, n, 1 / options) <= alpha


def below_chance(right: int, n: int, options: int, *, alpha: float) -> bool | None:
    """Returns whether so few right answers are fewer than guessing among the options explains.

    One-sided exact binomial test at level `alpha`, chance 1 / options: of 16 samples with four options 0 are few enough
    at 0.05, with two options 4. None if even 0 of n would not be significant.
    """
    if binomial_at_most(0, n, 1 / options) > alpha:
        return None
    return binomial_at_most(right, n, 1 / options) <= alpha


def answers_needed(options: int, *, alpha: float, all_right: bool) -> int:
    """Returns from how many answers on all of them right, or all of them wrong, is significant; see the tests above.

    Args:
        options: At least two.
        alpha: Level of the test.
        all_right: For `above_chance`; else for `below_chance`.

    Example:
        >>> answers_needed(4, alpha=0.05, all_right=True), answers_needed(4, alpha=0.05, all_right=False)
        (3, 11)
    """
    chance = 1 / options if all_right else 1 - 1 / options
    return next(n for n in count(1) if chance**n <= alpha)


@dataclass(frozen=True, slots=True)
class Wording:
    """A question for comparison with others, as digests: 177,000 of them are small.

    Attributes:
        stem: Of the normalised question and the pictures.
        options: Of the normalised options, without regard to order.
        answer: Of the normalised right option, or of the answer to an open question.
    """

    stem: int
    options: frozenset[int]
    answer: int


def wording(sample: Sample, pictures: Sequence[bytes] = ()) -> Wording:
    """Returns the digests of a question.

    Options that differ only in what normalising takes away (genotypes AA, Aa and aa) are compared as they stand.

    Args:
        sample: The question.
        pictures: A digest of each picture, in order.
    """
    texts = {text: normalise(text) for text in (*sample.options.values(), sample.answer)}
    if len({texts[text] for text in sample.options.values()}) < len(sample.options):
        texts = {text: f"\x1f{text.strip()}" for text in texts}
    stem = _digest("\x1f".join([normalise(sample.question), *(picture.hex() for picture in pictures)]))
    # the label, not the column `answer`, which may differ in outer blanks
    answer = sample.answer if sample.answer_label is None else sample.options[sample.answer_label]
    options = frozenset(_digest(texts[text]) for text in sample.options.values())
    return Wording(stem, options, _digest(texts[answer]))


def repeats(wordings: Sequence[Wording]) -> tuple[list[bool], list[bool]]:
    """Returns for each question whether it is a duplicate, and whether it is contradictory.

    Duplicate: an earlier question has the same wording, pictures, options in any order, and right answer.

    Contradictory: another question has the same wording and pictures, and the right answer of one of the two is an
    option of the other and wrong there. Both are marked. It is not enough that the right answers differ: "Which is
    true?" is asked again and again with other options.

    Args:
        wordings: The questions in order.
    """
    seen: set[Wording] = set()
    duplicate = []
    for one in wordings:
        duplicate.append(one in seen)
        seen.add(one)
    groups: dict[int, set[Wording]] = defaultdict(set)
    for one in seen:
        groups[one.stem].add(one)
    contradictory: set[Wording] = set()
    for group in groups.values():
        answers: dict[int, set[Wording]] = defaultdict(set)
        for one in group:
            answers[one.answer].add(one)
        for one in group:
            for option in one.options - {one.answer}:
                if found := answers.get(option):
                    contradictory |= {one, *found}
    return duplicate, [one in contradictory for one in wordings]


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
