# SPDX-License-Identifier: Apache-2.0
"""Which option a free sentence names, where nothing announces an answer: the weakest reading of the robust grader.

Such a sentence names one option by a label that cannot be another word's ("(B)", "option B") with its own text or a
word such as "correct" or "corresponding to", or it is the whole reply and ends "is <text>.". A sentence that negates,
asks, hedges or compares names none, nor does one with a second label or option text. The patterns stay beside these
rules; those shared with the rest of the grader are in `medvlt.rewards.parsing`.
"""

from __future__ import annotations

import re

from medvlt.rewards import parsing
from medvlt.rewards.options import Options, Reading, match_tokens
from medvlt.rewards.parsing import HEDGE, NEGATION
from medvlt.types import Reason

_LIMIT = 32
"""Labels of a sentence that are looked at, counted from the end; keeps grading linear."""

_SENTENCE_BREAK = re.compile(r"(?<![\s.(][A-Z])[.?!]\s+(?=\S)|\n")
_SINGLE = re.compile(r"[(\[]?(?<![\w'-])([A-Z])(?![\w'-])[)\]]?")
_DOUBT = re.compile(
    rf"\b(?:{NEGATION}|{HEDGE}|no|or|without|than|absen\w+|exclu\w+|rul(?:e|es|ed|ing) out|against|lacks?|differ\w*"
    r"|inconsistent|instead|unlike|versus|vs|compared|except|less|other|eliminat\w+|all|none)\b|\?",
    re.IGNORECASE,
)
_CUED = re.compile(
    r"(?:[(\[](?i:option|choice) ([A-Z])[)\]]|\b(?i:correspond(?:s|ing) to|equal to|matches|matching)"
    r" (?i:the )?(?i:option|choice) [(\[]?([A-Z])(?![\w'-])[)\]]?)[\s.!]*+$"
)
_JUDGED = re.compile(
    r"\b(?:correct|best|most (?:appropriate|accurate|likely|suitable|probable))\b[^.;:!?\n]{0,200}?\b(?:is|are)"
    r" [(\[]((?-i:[A-Z]))[)\]][\s.!]*+$",
    re.IGNORECASE,
)
_MENTIONED = re.compile(r"[(\[]([A-Z])[)\]]|\b(?i:options?|choices?|answers?) ([A-Z])(?![\w'-])")
_COPULA = re.compile(r"\b(?:is|are) (?:(?:a|an|the) )?\"?", re.IGNORECASE)
_HEDGED = re.compile(
    r"""\b(?:either|both|perhaps|possibl[ey]|probably|presumably|seem\w*|appear\w*|suspect\w*|suggest\w*|differential
    |initial\w*|usually|sometimes|assum\w*|guess\w*|unclear|unknown|least|worst|avoid\w*|contraindicat\w*|false
    |harm\w*|rare\w*|mimic\w*|hardly|scarcely|barely|nothing|fail\w*|refut\w*|reject\w*|den(?:y|ied|ies)|ignor\w*
    |mistak\w*|previous\w*|former\w*|earlier|original\w*|once|normally|but|although|though|while
    |whereas|such[ ]as|like)\b""",
    re.IGNORECASE | re.VERBOSE,
)


def last_sentence(text: str) -> str:
    """Returns the last sentence; a single capital with a full stop is a label and ends none."""
    return _SENTENCE_BREAK.split(text.strip())[-1]


def first_sentence(text: str) -> tuple[str, str]:
    """Returns the first sentence, without its full stop if more follows, and what follows it."""
    first, *rest = _SENTENCE_BREAK.split(text.strip(), 1)
    return first, "".join(rest)


def single_capitals(text: str) -> list[re.Match[str]]:
    """Returns the single capitals of a text, with their brackets."""
    return list(_SINGLE.finditer(text))


def is_doubted(text: str) -> bool:
    """Returns whether a sentence negates, excludes, asks or compares."""
    return _DOUBT.search(text) is not None


def paired(text: str, options: Options) -> Reading | None:
    """Returns the option that ends the last sentence with label and text ("(B) Aspirin", "aspirin (B)"), if alone."""
    text = parsing.tidy(last_sentence(text)[-options.window - 1 :]).strip()
    if len(text) > options.window or text.endswith("?"):
        return None  # a sentence that cannot be read as a whole, or a question
    for mark in single_capitals(text)[-_LIMIT:]:
        label = options.labels.get(mark[1])
        wanted = next((tokens for name, _, tokens in options.texts if name == label), ())
        behind = parsing.tokenise(text[mark.end() :])
        before = parsing.tokenise(text[: mark.start()])[-len(wanted) :]
        if wanted and match_tokens(wanted, behind) == len(behind) > 0:
            rest = text[: mark.start()]
        elif not behind and mark[0] != mark[1] and match_tokens(wanted, before) == len(before) > 0:
            rest = text[: before[0].start]
        else:
            continue
        doubted = _others(rest, options) - {label} or is_doubted(rest)
        return None if doubted else Reading(label, Reason.LABEL_AND_TEXT)
    return None


def concluded(text: str, options: Options) -> Reading | None:
    """Returns the option that the last sentence concludes with, or the first one states and none after it takes back.

    For a text without a phrase such as "the answer is".
    """
    text = text.strip()
    mentioned = {options.labels.get(one or two) for one, two in _MENTIONED.findall(text)}
    if len(mentioned - {None}) > 1:
        return None  # a text that weighs several options
    first, rest = first_sentence(text)
    last = last_sentence(text)
    reading = _cued(_readable(last, options), options)
    if reading is None and not parsing.is_revised(rest) and not parsing.is_retracted(rest):
        sentence = _readable(first, options)
        reading = _cued(sentence, options) or _stated(sentence, options)
        if reading is None and not rest:
            reading = _equated(sentence, options)
    return reading


def _readable(sentence: str, options: Options) -> str:
    """Returns a sentence without dress, or "" if it is too long to be read as a whole."""
    return parsing.tidy(sentence).strip() if len(sentence) <= options.window else ""


def _cued(sentence: str, options: Options) -> Reading | None:
    """Returns the option of a sentence that ends "(option B)", "corresponding to option B" or "correct ... is (B)"."""
    match = _CUED.search(sentence) or _JUDGED.search(sentence)
    if match is None:
        return None
    label = options.labels.get(match[match.lastindex or 0])
    return _alone(sentence[: match.start(match.lastindex or 0) - 1], label, options, Reason.LABEL)


def _stated(sentence: str, options: Options) -> Reading | None:
    """Returns the option of a sentence that names it as "(B) Aspirin" or "aspirin (B)"."""
    marks = [mark for mark in single_capitals(sentence) if mark[0] == f"({mark[1]})"]
    if len(marks) != 1:
        return None
    label = options.labels.get(marks[0][1])
    wanted = next((tokens for name, _, tokens in options.texts if name == label), ())
    before, behind = sentence[: marks[0].start()], sentence[marks[0].end() :]
    following, preceding = parsing.tokenise(behind), parsing.tokenise(before)[-len(wanted) :]
    if not wanted:
        return None
    if (count := match_tokens(wanted, following)) and parsing.ends_sentence(behind, following[count - 1].end):
        return _alone(f"{before} ; {behind[following[count - 1].end :]}", label, options, Reason.LABEL_AND_TEXT)
    if match_tokens(wanted, preceding) == len(preceding) > 0 and parsing.ends_sentence(behind, 0):
        return _alone(f"{before[: preceding[0].start]} ; {behind}", label, options, Reason.LABEL_AND_TEXT)
    return None


def _equated(sentence: str, options: Options) -> Reading | None:
    """Returns the option whose text is all that follows "is" in a sentence that ends with a full stop."""
    if not sentence.endswith((".", '."', '".')):
        return None
    for copula in list(_COPULA.finditer(sentence))[-_LIMIT:]:
        tokens = parsing.tokenise(sentence[copula.end() :])
        named = {name for name, _, own in options.texts if tokens and match_tokens(own, tokens) == len(tokens)}
        if len(named) == 1 and len(tokens[-1].text) > 1:  # a letter may be a label as well
            return _alone(sentence[: copula.start()], named.pop(), options, Reason.TEXT)
    return None


def _alone(rest: str, label: str | None, options: Options, reason: Reason) -> Reading | None:
    """Returns the option if the rest of its sentence names no other one and leaves no doubt."""
    if label is None or is_doubted(rest) or _HEDGED.search(rest) or _others(rest, options) - {label}:
        return None
    return Reading(label, reason)


def _others(text: str, options: Options) -> set[str]:
    """Returns the options that a text names, by a single capital or by their texts."""
    found = {options.labels[mark[1]] for mark in single_capitals(text) if mark[1] in options.labels}
    tokens = parsing.tokenise(text)
    for name, _, own in options.texts:
        if any(match_tokens(own, tokens[start:]) for start in range(len(tokens))):
            found.add(name)
    return found
