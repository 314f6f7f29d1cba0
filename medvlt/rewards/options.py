# SPDX-License-Identifier: Apache-2.0
"""The options of a question, ready to be compared, and how a text is matched with one of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from medvlt.rewards import parsing
from medvlt.rewards.parsing import Token
from medvlt.types import Reason

YES = frozenset({"yes", "yeah", "yep", "true", "positive", "present", "affirmative"})
NO = frozenset({"no", "nope", "false", "negative", "absent"})


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text chooses: an option's label, or None with the reason why there is none."""

    label: str | None
    reason: Reason


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a question, ready to be compared.

    Attributes:
        labels: Letter in capitals to the label as it is stored.
        texts: Label, text as stored, and its tokens.
        bare: Option label or text, case folded and without punctuation around it, to the label.
        polarity: Label of the only option that says yes, and of the only one that says no; absent if not unique.
        window: Characters of a statement that are read. Longer than any option with an explanation begun.
    """

    labels: dict[str, str]
    texts: tuple[tuple[str, str, tuple[Token, ...]], ...]
    bare: dict[str, str]
    polarity: dict[bool, str]
    window: int


@lru_cache(maxsize=4096)
def prepare(items: tuple[tuple[str, str], ...]) -> Options:
    """Returns the options, given as (label, text) pairs, ready to be compared."""
    texts = tuple((label, text, parsing.tokenise(parsing.tidy(text))) for label, text in items)
    polarity: dict[bool, str] = {}
    for value, words in ((True, YES), (False, NO)):
        matching = [label for label, _, tokens in texts if len(tokens) == 1 and tokens[0].text in words]
        if len(matching) == 1:
            polarity[value] = matching[0]
    longest = max((len(text) for _, text in items), default=0)
    bare = {bare_form(text): label for label, text in items} | {bare_form(label): label for label, _ in items}
    letters = {label.strip().upper(): label for label, _ in items}
    return Options(letters, texts, bare, polarity, 2 * longest + 300)


def bare_form(text: str) -> str:
    """Returns a line without what may stand around an option, for a quick look whether it is nothing else."""
    return text.strip(" \t\r>*-.,;:()[]").casefold()


def match_tokens(wanted: Sequence[Token], found: Sequence[Token]) -> int:
    """Returns how many of `found` the tokens `wanted` cover from its start, articles aside; 0 if they do not match."""
    index = 0
    for token in wanted:
        while index < len(found) and found[index].text != token.text and found[index].droppable:
            index += 1
        if index < len(found) and found[index].text == token.text:
            index += 1
        elif not token.droppable:
            return 0
    return index


def closest(labels: Collection[str], text: str, options: Options) -> str | None:
    """Returns the one label, or of options equal but for case, punctuation and articles the one spelt like `text`."""
    if len(labels) > 1:
        spelt = {label: parsing.tidy(raw).strip() for label, raw, _ in options.texts if label in labels}
        labels = [label for label, raw in spelt.items() if raw.casefold() == text.casefold()]
        if len(labels) > 1:
            labels = [label for label in labels if spelt[label] == text]
    return next(iter(labels)) if len(labels) == 1 else None
