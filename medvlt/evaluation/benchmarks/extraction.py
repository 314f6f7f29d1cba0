# SPDX-License-Identifier: Apache-2.0
"""Options of a closed question, read from its wording alone: the answer is never looked at.

The reference let GPT-4o write the options with the right answer in view, so that it is always among them, even where
the question names others. Here they are what the question says, or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile

YES_NO = ("Yes", "No")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OPENERS = _words(
    "is are was were am do does doe did can could has have had will would should shall may might must isn't aren't "
    "doesn't don't any anything evidence notice"
)
"""First words of a question that is answered by yes or no, elliptic ones and a common slip included."""

_ASKING = _words("which what where who whose how when why")
_ARTICLES = _words("a an the just only either")
_BOUNDARIES = _words(
    "is are was were be been do does did of in on at from with within to by for than as about under over relative "
    "seen shown used taken located visible present highlighted scanned appear appears image images film"
)
"""Words at which an alternative ends."""

_EXISTENCE = _words("any evidence sign signs")
"""Words by which a question asks whether there is something at all, whatever it is."""

_RIVALS = tuple(
    _words(group)
    for group in (
        "left right both bilateral unilateral",
        "normal abnormal enlarged decreased increased",
        "male female",
        "ct mri mr x-ray xray ultrasound pet angiography",
        "t1 t2 flair dwi",
        "ap pa lateral",
        "axial sagittal saggital coronal transverse",
        "cystic solid",
        "multiple single one 1 singular multilobulated",
        "smaller larger bigger",
        "more less",
        "gray grey white black",
        "focal diffuse lateralized localized",
        "superior inferior",
        "apex base",
        "inside outside",
        "interior exterior",
        "contrast no non-contrast",
        "hyperdense hypodense isodense hyper hypo",
        "radiolucent radiopaque radioopaque",
    )
)
"""Words that exclude each other: "is it cystic or solid?" asks which, "is it red or swollen?" asks whether."""

_TURNING = _words("no not non none nor neither never without cannot except other than more less fewer greater")
"""Words that turn what they are said of into something else."""

_OPPOSING = ("hyper", "hypo", "supra", "infra", "homo", "hetero", "uni", "bi", "endo", "exo", "intra", "extra", "sub")
_NEGATING = ("non", "non-", "un", "ab", "a", "in", "ir", "im")
_OR = re.compile(r",?\s+(?:or|vs\.?|versus)\s+", re.IGNORECASE)
_LIST = re.compile(r"\s*[,;:]\s*")
_BRACKETS = re.compile(r"\s*\([^()]*\)")


def extract_options(question: str) -> tuple[str, ...] | None:
    """Returns the options that a question offers, in order of mention, or None if it names none.

    - "Which is bigger, the heart or the lung?": what stands around the last "or", and in the list before it.
    - "Is this a T1 or T2 weighted image?": a question for yes or no, were it not for words that exclude each other.
    - "Is there a mass or a lesion?", "Is it enlarged?", "Is there evidence of acute or chronic bleeding?": `YES_NO`.

    The rules cover the closed questions of SLAKE and VQA-RAD; of other sets, look at what comes out.

    Args:
        question: Its text, without options.

    Example:
        >>> extract_options("Which lobe is abnormal, left or right?")
        ('left', 'right')
        >>> extract_options("Is there a fracture?")
        ('Yes', 'No')
        >>> extract_options("What is present?") is None
        True
    """
    text = " ".join(_BRACKETS.sub("", question).split()).rstrip(" ?.!:;")
    if not text:
        return None
    asking = _asks_which(text)
    around = list(_OR.finditer(text))
    if around and not text.lower().endswith(" or not"):
        left, right = text[: around[-1].start()], text[around[-1].end() :]
        exists = any(word in _EXISTENCE for word in text.lower().split())
        found = _listed(left, right) if asking else None if exists else _rivals(left, right) or _named(text)
        if found is not None:
            return found
    if asking or not any(word in _OPENERS for word in _first_words(text)):
        return None
    return YES_NO


def label_of(answer: str, options: Mapping[str, str]) -> str | None:
    """Returns the label of the option that an annotated answer means, or None if it means none or several.

    It is the option equal to it but for case, hyphens, articles and outer punctuation; else the only one whose words
    are all in the answer or hold all of its words, as "T2" in "T2 weighted"; not if a word that negates or compares
    makes the difference, as in "not left" or "more than one".
    """
    wanted = _plain(answer)
    plain = {label: _plain(text) for label, text in options.items()}
    same = [label for label, words in plain.items() if words == wanted]
    if len(same) == 1:
        return same[0]
    near = [label for label, words in plain.items() if words and wanted and _either_in(set(words), set(wanted))]
    if same or len(near) != 1 or ({*plain[near[0]]} ^ {*wanted}) & _TURNING:
        return None
    return near[0]


def _asks_which(text: str) -> bool:
    """A question for one of several things: it has an asking word, and no word that asks for yes or no before it."""
    for clause in _LIST.split(text.lower()):
        for word in clause.split()[:2]:
            if word in _ASKING:
                return True
            if word in _OPENERS:
                return False
    return False


def _first_words(text: str) -> list[str]:
    return [clause.split()[0].split("/")[0] for clause in _LIST.split(text.lower()) if clause]  # "Is/Are there ..."


def _listed(left: str, right: str) -> tuple[str, ...] | None:
    """Alternatives behind a question that says which: "... in this image, lung, liver or heart"."""
    pieces = _LIST.split(left)
    last_clause = max(
        (i for i, piece in enumerate(pieces) if any(word in _ASKING for word in piece.lower().split())), default=0
    )
    options = [*pieces[last_clause + 1 :], right]
    if len(options) == 1:  # no comma: as many words as the last alternative has
        words = _until_boundary(right)
        before = pieces[-1].split()
        options = [" ".join(before[-len(words) :]), " ".join(words)] if words and len(before) > len(words) else []
    return _distinct(map(_bare, options))


def _rivals(left: str, right: str) -> tuple[str, ...] | None:
    """Alternatives inside a question for yes or no, if words that exclude each other stand at both sides of "or"."""
    without, _, rest = right.partition(" ")
    if without.lower() == "without" and left.lower().endswith((" with", f" with {rest.lower()}")):
        return f"with {rest}", right
    *earlier, last = _LIST.split(left)
    words = right.split()
    for position, word in enumerate(words[:4]):
        nearest = _rival_before(last, word)
        if nearest is None:
            continue
        listed = takewhile(bool, (_rival_before(part, word) for part in reversed(earlier)))
        found = [" ".join(option) for option in (*reversed([option for option in listed if option]), nearest)]
        tail = words[position + 1 : position + len(nearest)]  # "T1 weighted or T2 weighted image"
        shared = tail and [w.lower() for w in tail] == [w.lower() for w in nearest[1:]]
        return _distinct([*found, " ".join([word, *tail]) if shared else word])
    return None


def _rival_before(part: str, word: str) -> list[str] | None:
    """Returns the words of a part from the last one on that excludes `word`, if at most two words follow it."""
    words = part.split()
    for start in range(len(words) - 1, max(-1, len(words) - 4), -1):
        if _exclude(words[start], word):
            return [w for w in words[start:] if w.lower() not in _BOUNDARIES]
    return None


def _named(text: str) -> tuple[str, ...] | None:
    """Alternatives of "Is this an abscess or cancer": the whole question is a choice of names."""
    found = re.fullmatch(
        r"(?:is|was|are|were) (?:this|that|it|these|those) (?:an?|the) ([\w-]+(?: [\w-]+)?),? (?:or|vs\.?|versus) "
        r"(?:an? |the )?([\w-]+(?: [\w-]+)?)",
        text,
        re.IGNORECASE,
    )
    return None if found is None else _distinct([found[1], found[2]])


def _exclude(one: str, other: str) -> bool:
    one, other = (word.lower().strip(",.").removesuffix("-weighted") for word in (one, other))
    if one == other or not one or not other:
        return False
    if any({one, other} <= group for group in _RIVALS):
        return True
    if any(negation + one == other or negation + other == one for negation in _NEGATING):
        return min(len(one), len(other)) > 3
    first, second = (next((prefix for prefix in _OPPOSING if word.startswith(prefix)), "") for word in (one, other))
    return bool(first and second) and first != second and one[-4:] == other[-4:]  # hypoinflation, hyperinflation


def _until_boundary(text: str) -> list[str]:
    words = [word for word in text.split() if word.lower() not in _ARTICLES]
    return words[: next((i for i, word in enumerate(words) if word.lower() in _BOUNDARIES), len(words))]


def _bare(option: str) -> str:
    words = option.split()
    while words and words[0].lower() in _ARTICLES:
        words.pop(0)
    return " ".join(words)


def _distinct(options: Sequence[str] | map[str]) -> tuple[str, ...] | None:
    texts = [text for text in options if text]
    plain = {tuple(_plain(text)) for text in texts}
    return tuple(texts) if len(texts) > 1 and len(plain) == len(texts) else None


def _plain(text: str) -> list[str]:
    words = re.sub(r"[^\w\s]", " ", text.replace("-", " ").casefold()).split()
    return ["one" if word == "1" else word for word in words if word not in ("a", "an", "the", "just")]


def _either_in(one: set[str], other: set[str]) -> bool:
    return one <= other or other <= one
