# SPDX-License-Identifier: Apache-2.0
"""Which option a text chooses, once it is known to be the answer part of a completion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medvlt.rewards import parsing, sentences
from medvlt.rewards.options import NO, YES, Options, Reading, bare_form, closest, match_tokens
from medvlt.rewards.parsing import Declaration, Token
from medvlt.types import Reason

_LIMIT = 32
"""Answers of one kind that are compared with one another, counted from the end; keeps grading linear."""

_AMBIGUOUS = Reading(None, Reason.AMBIGUOUS)
_UNKNOWN = Reading(None, Reason.UNKNOWN_OPTION)


@dataclass(frozen=True, slots=True)
class _Item:
    """One option named inside a statement; `label` is None for a letter that no option has."""

    label: str | None
    reason: Reason
    end: int
    closed: bool  # whether an answer may end here; if not, only another option may follow
    followed: bool = True  # whether it may be the second of two answers: "(A) causes ..." may not


def agree(readings: Iterable[Reading | None]) -> Reading | None:
    """Returns the last reading, or AMBIGUOUS if an earlier one names something else. None is not a reading."""
    last: Reading | None = None
    for reading in reversed([reading for reading in readings if reading is not None]):
        last = last or reading
        if reading.reason is Reason.AMBIGUOUS or (reading.label and reading.label != last.label):
            return _AMBIGUOUS
    return last


def read_answer_blocks(blocks: Sequence[str], options: Options) -> Reading:
    """Returns what the last of the blocks chooses, if no other one chooses differently. At least one block."""
    distinct = list(dict.fromkeys(reversed(blocks)))[:_LIMIT]  # last one first
    readings = [read_text(block, options, announced=True) for block in reversed(distinct)]
    return (agree(readings) if readings[-1] else None) or _UNKNOWN


def read_text(text: str, options: Options, *, announced: bool = False) -> Reading | None:
    r"""Returns what a text chooses, or None if it chooses nothing.

    From strong to weak: the text is an option as a whole; `\boxed{}`; the last "the answer is"; "B is correct"; the
    first or last line is an option, or the last "the diagnosis is" names one; a free sentence names one
    (`medvlt.rewards.sentences`). Within each kind, two different answers are AMBIGUOUS, unless words such as "wait" or
    "therefore" stand between two declarations: then the later one holds. With `announced`, a tag says that this is an
    answer, so that the first or last line need not end with it.
    """
    text = parsing.without_continuations(text.strip())
    whole = _whole(text, options)
    if whole is not None:
        return whole
    boxed = [box for box in parsing.boxes(text, _LIMIT) if box.strip()]
    reading = agree(read_statement(box, options) for box in boxed) or _declared(text, options)
    if reading is None:
        letters = parsing.declared_after(text, _LIMIT)
        labels = (options.labels.get(letter) for letter in letters)
        reading = agree(Reading(label, Reason.LABEL) for label in labels if label)
    if reading is None:
        reading = _undeclared(text, options, announced=announced)
    declares = bool(boxed) or _declares(text)
    if reading is None and not boxed:
        reading = sentences.paired(text, options)
    if reading is None and not declares:
        reading = sentences.concluded(text, options)
    return reading or (_UNKNOWN if declares else None)


def read_statement(text: str, options: Options, *, strict: bool = False) -> Reading | None:
    """Returns the option named at the head of a statement such as "(B) Aspirin, because ...", or None.

    AMBIGUOUS if it goes on with another option ("A or B", "A, B"), or if label and text are those of two options.
    With `strict`, the sentence must end with the answer, but for a reason.
    """
    text = parsing.tidy(text[: options.window].strip())
    tokens = parsing.tokenise(text)
    item = _item(text, tokens, 0, options) or _item(text, tokens, parsing.skip_lead(text), options)
    if item is None:
        return None
    items = [item]
    while (start := parsing.skip_connector(text, items[-1].end)) > items[-1].end:
        other = _item(text, tokens, start, options)
        if other is None:
            break
        items.append(other)
    if len(items) > 1 and not (items[-1].closed and items[-1].followed):
        items.pop()  # the beginning of a longer phrase, not an answer
    if not items[-1].closed or (strict and not parsing.ends_sentence(text, items[-1].end)):
        return None
    if items[-1].reason is not Reason.LABEL and parsing.is_refuted(text, items[-1].end):
        return None
    if parsing.is_retracted(text[items[-1].end :]):
        return _AMBIGUOUS
    named = {item.label for item in items}
    listed = all(item.reason is Reason.LABEL for item in items)
    letters = parsing.alternatives(text, items[-1].end, listed=listed)
    named |= {options.labels[letter] for letter in letters if letter in options.labels}
    if len(named) > 1:
        return _AMBIGUOUS
    reasons = {item.reason for item in items}
    return Reading(item.label, Reason.LABEL_AND_TEXT if len(reasons) > 1 else item.reason)


def _whole(text: str, options: Options) -> Reading | None:
    """Returns the option that the whole text is, as a label or as its text."""
    if len(text) > options.window:
        return None
    text = parsing.tidy(text).strip()
    if text.upper() in options.labels:
        return Reading(options.labels[text.upper()], Reason.LABEL)
    tokens = parsing.tokenise(text)
    marked = parsing.marked_letter(text, 0).casefold()
    if tokens:
        matches = {
            label
            for label, raw, wanted in options.texts
            if raw.casefold().startswith(marked) and match_tokens(wanted, tokens) == len(tokens)
        }
    else:  # nothing but punctuation, which some options are: "?", "-"
        matches = {label for label, raw, _ in options.texts if text and parsing.tidy(raw).strip() == text}
    label = closest(matches, text, options)
    return Reading(label, Reason.TEXT) if label else None


def _declares(text: str) -> bool:
    """Returns whether the text announces an answer, readable or not."""
    return any(declaration.named for declaration in parsing.declarations(text, 1))


def _declared(text: str, options: Options, *, topic: bool = False) -> Reading | None:
    """Returns the answer that the last readable phrase such as "the answer is" (`topic`: "diagnosis") announces."""
    declarations = parsing.declarations(text, _LIMIT, topic=topic)
    readings = [
        _announced(text[declaration.end : declaration.end + options.window], declaration, options)
        for declaration in declarations
    ]
    settled = bool(declarations) and readings[-1] is not None
    settled = settled and declarations[-1].named and "\n" not in text[declarations[-1].end :]
    current: Reading | None = None
    revised = False
    for declaration, reading in zip(declarations, readings, strict=True):
        revised = revised or declaration.revises
        if reading is None:
            continue
        if settled and declaration.weak and reading.label is None and not parsing.has_label(text, declaration.end):
            continue  # a step that names several options by their texts, before a last line "Answer: B"
        holds = current is None or revised or reading.label == current.label
        current = reading if holds else _AMBIGUOUS
        revised = False
    return current


def _announced(text: str, declaration: Declaration, options: Options) -> Reading | None:
    """Returns the option named by the statement that a phrase such as "the answer is" announces."""
    reading = _head(text, options, strict=declaration.weak)
    return _named(text, options) if reading is None and declaration.named else reading


def _named(text: str, options: Options) -> Reading | None:
    """Returns the option of a line behind "Answer:" that is a label glued to its own text, or an A with a remark.

    "E2" where E is "2", "B(1) 0.5" where B begins with "(1) 0.5", "A (roughly)": anywhere else these may be words.
    """
    line, _, rest = text.partition("\n")
    line = parsing.tidy(line[: options.window]).strip()
    if parsing.is_retracted(rest, at_once=True):
        return None
    if parsing.is_remarked(line):
        return read_statement(f"({line[0]}){line[1:]}", options)
    label = options.labels.get(line[:1])
    glued = parsing.glued_text(line)
    if label is None or not glued:
        return None
    tokens, whole = ([token.text for token in parsing.tokenise(part)] for part in (glued, line))
    for name, _, wanted in options.texts:
        own = [token.text for token in wanted]
        if not tokens or own[: len(whole)] == whole:
            return None  # "B12 deficiency" is an option itself
        if name == label and not (own == tokens or (glued[0] in "([{" and own[: len(tokens)] == tokens)):
            return None
    return Reading(label, Reason.LABEL_AND_TEXT)


def _head(text: str, options: Options, *, strict: bool = False, strict_text: bool = False) -> Reading | None:
    """Returns the option named by the first line, AMBIGUOUS if the next line takes it back.

    `strict` is that of `read_statement`; `strict_text` applies it to an option named by its text only.
    """
    line, _, rest = text.partition("\n")
    reading = read_statement(line, options, strict=strict)
    if strict_text and reading is not None and reading.reason in (Reason.TEXT, Reason.SYNONYM):
        reading = read_statement(line, options, strict=True)
    if reading is None or not parsing.is_retracted(rest, at_once=True):
        return reading
    again = read_statement(rest, options)  # "B" and then "No", which is the text of B, takes nothing back
    return reading if again is not None and again.label == reading.label else _AMBIGUOUS


def _undeclared(text: str, options: Options, *, announced: bool) -> Reading | None:
    """Returns the option that is the first or the last line, or "the diagnosis", if the text lists no other."""
    text = parsing.before_explanation(text).strip()
    # nothing announces an answer in prose, so "aspirin (an old drug) would harm" must not count as one
    first, last = (_head(part, options, strict_text=not announced) for part in (text, text.rpartition("\n")[2]))
    topic = _declared(text, options, topic=True) if last is None else None
    if topic is not None:
        listing = len(parsing.labels_in(text)) > 1  # then the first line only begins the list
        return topic if listing else agree([first, topic])
    reading = agree([first, last])
    if reading is None or reading.label is None:
        return reading
    own = next(raw for label, raw, _ in options.texts if label == reading.label)
    letters = parsing.labels_in(text) - parsing.labels_in("; " + own)  # such as the option "C. difficile colitis"
    listed = {options.labels[letter] for letter in letters if letter in options.labels}
    listed |= {options.bare[line] for raw in text.split("\n") if (line := bare_form(raw)) in options.bare}
    return _AMBIGUOUS if listed - {reading.label} else reading


def _text_item(text: str, tokens: Sequence[Token], position: int, options: Options) -> _Item | None:
    """Returns the longest option text, or the yes/no synonym of an option, that stands at `position`."""
    rest = [token for token in tokens if token.end > position]
    if not rest:
        return None
    marked = parsing.marked_letter(text, rest[0].start).casefold()
    texts = [entry for entry in options.texts if entry[1].casefold().startswith(marked)]
    covered = {label: match_tokens(wanted, rest) for label, _, wanted in texts}
    longest = max(covered.values(), default=0)
    labels = [label for label, count in covered.items() if count == longest]
    if longest:
        end = rest[longest - 1].end
        label = closest(labels, text[rest[0].start : end], options)
        if label is None:
            return None
        comma = label in options.polarity.values()
        return _Item(label, Reason.TEXT, end, parsing.ends_text(text, end, comma=comma))
    word = rest[0].text
    synonym = options.polarity.get(word in YES) if word in YES or word in NO else None
    if synonym is None:
        return None
    return _Item(synonym, Reason.SYNONYM, rest[0].end, parsing.ends_text(text, rest[0].end, comma=True))


def _item(text: str, tokens: Sequence[Token], position: int, options: Options) -> _Item | None:
    """Returns the option named at `position`, by its label, its text or both."""
    named = _text_item(text, tokens, position, options)
    mark = parsing.label_at(text, position)
    if mark is None or (named is not None and named.closed and named.end > mark.end):
        return named
    label = options.labels.get(mark.letter.upper())
    body = parsing.skip_separator(text, mark.end)
    own = _text_item(text, tokens, body, options) if body > mark.end else None
    closed = own is not None and own.closed and own.reason is Reason.TEXT
    if own is not None and closed and own.label == label:
        return _Item(label, Reason.LABEL_AND_TEXT, own.end, closed=True)
    upper = mark.letter.isupper()
    ends = mark.bracketed or parsing.ends_label(text, mark.end)
    if upper and _is_species(parsing.abbreviated(text, mark.end), label, options):
        return named
    if not ends:
        following = parsing.skip_connector(text, mark.end)
        is_list = upper and following > mark.end and following < len(text)
        return _Item(label, Reason.LABEL, mark.end, closed=False) if is_list and label else named
    if parsing.is_refuted(text, body):
        return None
    if label is None:
        alone = upper and not text[mark.end :].strip(" .)]}\"':!?")
        return _Item(None, Reason.UNKNOWN_OPTION, mark.end, closed=True) if alone else named
    followed = not mark.bracketed or parsing.ends_label(text, mark.end)
    return _Item(label, Reason.LABEL, mark.end, closed=True, followed=followed)


def _is_species(word: str | None, label: str | None, options: Options) -> bool:
    """Returns whether the word after "C." belongs to another option only: then it is "C. difficile", not label C."""
    owners = {name for name, _, tokens in options.texts if word in {token.text for token in tokens}}
    return bool(owners) and label not in owners
