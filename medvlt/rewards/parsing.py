# SPDX-License-Identifier: Apache-2.0
"""Where an answer may stand in a text. The regular expressions of the robust grader live here.

Every function is linear in the length of its text: patterns begin with a literal or a bounded class, repeats that could
backtrack are possessive (`*+`), and pairs of tags are found by scanning once, not by a lazy dot.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from typing import NamedTuple

_THINK = re.compile(r"<(/?)think>", re.IGNORECASE | re.ASCII)
_ANSWER = re.compile(r"<(/?)answer>", re.IGNORECASE | re.ASCII)
_FORMAT_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE | re.ASCII)
_FORMAT_SHAPE = ["<think>", "</think>", "<answer>", "</answer>"]
_BRACE = re.compile(r"\\[{}]|\\boxed\s*+\{|[{}]")

NEGATION = r"(?:not|never|neither|nor|cannot|wrong|incorrect|doubt|unlikely|\w+n['\u2019]t)"
HEDGE = r"(?:may|might|could|if|whether)"
_FORWARD = re.compile(
    rf"""
    (?: \b(?P<named> answer | (?:correct|right|best|final|appropriate)[ ](?:option|choice|response) | ans )\b
        (?: [ ]\([^()\n]{{0,40}}\) )?
        (?: (?:[ \t]++(?!(?:{NEGATION}|{HEDGE}|is|was|be)\b)[\w-]++){{0,6}} [ \t]++ (?:is|was|be)\b
          | [ \t*_"]*+ (?: [:=→] | -+> | \n ) )
      | \b (?: choose|chose|pick|select|go[ ]with|opt[ ]for
          | (?P<weak> therefore|thus|hence|so(?=[ ]it) | (?:think|believe)(?:[ ]that)? ) )\b
        (?: [ ](?:it[ ]is|it[ ]must[ ]be|it['\u2019]s) )?
    )
    [\s*_:,]*+
    """,
    re.IGNORECASE | re.VERBOSE,
)
_TOPIC = re.compile(
    rf"\b(?:(?:(?<!differential )diagnosis|findings?|treatment|next step)"
    rf"(?:[ ]++(?!(?:{NEGATION}|{HEDGE}|is|was|are|be)\b)[\w-]++){{0,6}}|option|choice)"
    r"(?:[ ]++(?:is|was|are|be)\b|[ *_]*+[:=])[ *_:,]*+",
    re.IGNORECASE,
)
_NEGATED_BEFORE = re.compile(rf"\b{NEGATION}\b(?:(?!\bbut\b)[^.,;:!?\n])*$", re.IGNORECASE)
_REVISION = re.compile(
    r"\b(?:wait|actually|however|but|instead|rather|correction|final|finally|therefore|thus|hence|so|conclusion|overall"
    r"|mistake|wrong|incorrect|reconsider\w*|re-?evaluat\w*|second thought|after all)\b",
    re.IGNORECASE,
)
_BACKWARD = re.compile(
    r"(?:^|[.,;:!?\n(][ ]{0,3}|\b(?i:option|choice|answer|letter|that|so|thus|hence|therefore)[ ])[*_(\[]{0,4}"
    r"(?P<letter>[A-Z])[)\]*_.]{0,4}[ ](?i:is|was)[ ](?i:also |indeed |clearly |therefore |most likely )?(?i:the )?"
    r"(?i:most |single |only )?(?i:correct|right|best|answer|appropriate)\b"
)
_EXPLANATION = re.compile(r"^[^\w\n]{0,8}(?:explanation|rationale|reasoning|justification|reason)\b", re.I | re.M)
_LABELLED_LINE = re.compile(r"^[ \t>•*_#-]{0,8}[(\[]?([A-Z])(?:[)\].:]{1,2}|[*_]{1,2})(?=[\s*_]|$)", re.M)

_LATEX = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|boxed)\s*+(?=\{)|\\[()\[\]]")
_DRESS: dict[int, str | None] = {
    **dict.fromkeys([*map(ord, "*`$#_"), 0x200B, 0x2060, 0xFEFF], None),
    **dict.fromkeys((0x2018, 0x2019), "'"),
    **dict.fromkeys((0x201C, 0x201D), '"'),
    **dict.fromkeys((0x2212, 0x2013), "-"),
    0x2014: " - ",
}
_TOKEN = re.compile(
    r"(?:(?<!\w)[-+](?=\.?\d))?(?:(?<![\w.])\.)?\d+(?:[.,]\d+)*"  # a number with its sign
    r"|[^\W\d_]+"  # a word
    r"|(?<=\w)-(?=[\s.,;:)]|$)"  # "Rh-"
    r"|[^\w\s.,;:!?\"'()\[\]{}/\\|\u00b7\u2022-]"  # arrows, comparisons and units mean something, punctuation does not
)
_LEAD = re.compile(
    r"(?:[\s,:]++|\b(?:therefore|thus|hence|so|definitely|clearly|most|likely|probably|indeed|actually|simply|just|either"
    r"|both|letter|answer|the|my|is|be|that|it(?:'s)?|options?|choices?"
    r"|not (?:option )?\(?[a-z]\)?,? but(?: rather)?)\b)*+",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"[\s\"'>\u2022→:=-]*+(?P<open>[(\[{]*+)\s*+(?P<letter>[A-Za-z])(?P<close>\s?[)\]}]++|[\"'](?!\w))?(?!\w)"
)
_PRAISE = r"is (?:also |indeed |clearly )?(?:the )?(?:most |single |only )?(?:correct|right|best|answer|appropriate)"
_REASON = rf"because|since|due|given|which|therefore|{_PRAISE}"
_VERDICT = r"is the most (?:likely|probable) (?:diagnosis|answer|option|choice|cause|finding|treatment)"
_TEXT_CUE = rf",?\s++(?:{_REASON}|{_VERDICT})\b"
_CUE = rf",?\s++(?:{_REASON}|as|for|so|but|based|where|while|although|however|per)\b"
_LABEL_END = re.compile(r"\s*$|\s*\n|[.:,;!?]+(?=[\s)\]}\"']|$)|\s++[-=→|(\[]|" + _CUE, re.IGNORECASE)
_ARTICLE_END = re.compile(
    r"\s*$|\s*\n|[.:;!?]+(?=[\s)\]}\"']|$)|(?<=[aA]),(?=\s)|\s++[-=→]"
    rf"|,?\s++(?:because|since|{_PRAISE}|(?<=[aA]\s)(?:as|which|but|while|although))\b",
    re.IGNORECASE,
)
_TEXT_END = re.compile(r"[\s.,;:!?)\]}\"']*+$|\s*\n|[.;:!?)\]}\"']++(?=\s|$)|\s++[-(\[]|" + _TEXT_CUE, re.IGNORECASE)
_SENTENCE_END = re.compile(r"[\s.,;:!?)\]}\"']*+$|\s*\n|[.,;!)]++\s|" + _TEXT_CUE, re.IGNORECASE)
_REMARKED = re.compile(
    r"(?-i:[AI])\s++\((?![^()\n]*\b(?:or|any|all|other|example|guess\w*)\b)[^()\n]*+\)[\s.!]*+", re.IGNORECASE
)
_LETTER = re.compile(r"(?<![\w'])(?:[b-z]|a(?!\s(?!(?:or|and|is)\b)[a-z]))(?!\w)", re.IGNORECASE)
_GLUED = re.compile(r"[A-Z](?=[^\w\s]|\d)(?![.,:;!?)\]}\"'/|&+=→])")
_COMMA = re.compile(r",\s|\s(?=(?:there|it|this|that|these|the)\b)", re.IGNORECASE)
_MARKED = re.compile(r"[A-Za-z][.:)](?=\s)|[A-Z] (?=[A-Z])")
_ABBREVIATION = re.compile(r"\.\s+([a-z]+)")
_TIGHT = re.compile(r"[.:](?=[A-Z\"])")
_SEPARATOR = re.compile(r"[\s.:),;(\[\]{}\"'=→|-]*+")
_REFUTED = re.compile(
    r"[\s(-]*+(?:(?!\b(?:because|since|as|due|while|whereas|although|but|and|(?-i:[A-Z]))\b)[^.;,(\n])*?"
    r"\b(?:(?:is|are|was) (?:not|false|ruled out|unlikely|excluded|eliminated)|isn't|wrong|incorrect)\b",
    re.IGNORECASE,
)
_RETREAT = r"hmm+|wait|actually|sorry|oops|correction|scratch that|hold on|i mean|or rather|on second thought"
_RETRACTED = re.compile(
    rf"^[\s.,;:?!)\]\"'-]*+(?:no(?=[,.;:!?]|\s(?:wait|actually|it)\b|\s*$)|{_RETREAT})\b"
    rf"|[.?!][)\]\"']?\s++(?:no,? (?:wait|actually|it|the answer)|{_RETREAT})\b",
    re.IGNORECASE,
)
_CONNECTOR = re.compile(
    r"(?:[\s,;:/|&+.?!()\[\]{}=→-]|\b(?:and|or|nor|plus|also|maybe|possibly|perhaps|probably|then|alternatively|but|even"
    r"|options?|choices?|answer|either|both|is|be|it|could|may|might|the|as well as|if not|otherwise|else)\b)++",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(
    r"\b(?:or|also|alternatively|maybe|perhaps|possibly)\b(?:\s(?:be|it|is|could|possibly|option|choice|even|the|answer))*"
    r"\s[(\[]?(?P<letter>(?-i:[A-Z]))(?![\w'-])(?!(?<=[AI])\s(?-i:[a-z]))",
    re.IGNORECASE,
)
_FIT = r"(?:right|correct|acceptable|possible|plausible|valid|true|appropriate|reasonable|likely|fine|okay|good)\b"
_ALSO = re.compile(
    r"\b([A-Z])[)\]]? (?:(?:is|are|(?:could|may|might|would)(?: be)?) )?"
    rf"(?:(?:also|equally)(?: be)? {_FIT}|{_FIT} (?:too|also|as well)\b)"
)
_CONTINUED = re.compile(
    r"\n\s*+(?=(?i:or|also|maybe|perhaps|possibly|alternatively)\b,? ?(?:option )?[(\[]?[A-Z](?:[).:\]][^\n]*)?\s*$)",
    re.M,
)
_INLINE = re.compile(r"(?<=\s)(?:(?<=[^\s.!?]\s)[(\[])?([A-Z])[.):\]]{1,2}(?=\s)")
_BRACKETED = re.compile(r"\(([A-Z])\)")
_LEADING = re.compile(r"(?<=[.;:!?]\s)([A-Z])[.):](?=\s)")
_FIRST_CUE = re.compile(_TEXT_CUE, re.IGNORECASE)


class Token(NamedTuple):
    """A word, number or symbol, case folded. `droppable` marks an article that a match may ignore."""

    text: str
    droppable: bool
    start: int
    end: int


class Declaration(NamedTuple):
    """A phrase that announces an answer and ends where the answer begins."""

    end: int
    named: bool  # it says "answer" or the like
    weak: bool  # it may as well announce another step of the reasoning ("therefore")
    revises: bool  # it, or the text since the last one, takes back what was said before ("wait")


def visible_text(text: str) -> str | None:
    """Returns the text outside the thinking part, or None if the thinking never ends.

    Blocks may nest. A closing tag that comes first ends a block which the prompt opened. An opening tag left without a
    partner ends at the last closing tag; if no tag closes, it ends at an answer block that ends the text.
    """
    marks = list(_THINK.finditer(text))
    if not marks:
        return text
    if not marks[-1][1]:
        tags = list(_ANSWER.finditer(text))[-2:]
        final = [tag[1] for tag in tags] == ["", "/"] and not text[tags[1].end() :].strip()
        final = final and tags[0].start() > marks[-1].start() and not any(mark[1] for mark in marks)
        return text[tags[0].start() :] if final else None
    pieces: list[str] = []
    depth = start = 0
    for index, mark in enumerate(marks):
        if not depth and (index or not mark[1]):
            pieces.append(text[start : mark.start()])
        depth = max(depth + (-1 if mark[1] else 1), 0)
        start = mark.end()
    return "\n".join([*pieces, text[start:]])


def answer_blocks(text: str) -> list[str]:
    """Returns what stands in answer tags, in order; a block that is not closed reaches to the next tag or the end."""
    blocks: list[str] = []
    start: int | None = None
    for mark in _ANSWER.finditer(text):
        if start is not None:
            blocks.append(text[start : mark.start()])
        start = None if mark[1] else mark.end()
    if start is not None:
        blocks.append(text[start:])
    return blocks


def without_answer_tags(text: str) -> str:
    """Returns the text with every answer tag replaced by a line break."""
    return _ANSWER.sub("\n", text)


def boxes(text: str, limit: int) -> list[str]:
    r"""Returns the contents of the last `limit` closed `\boxed{}`, in the order in which they close."""
    found: deque[slice] = deque(maxlen=limit)  # nested boxes overlap: cutting them all out would be quadratic
    stack: list[int] = []
    for mark in _BRACE.finditer(text):
        symbol = mark[0]
        if symbol in ("\\{", "\\}"):
            continue
        if symbol != "}":
            stack.append(mark.end() if symbol != "{" else -1)
        elif stack and (start := stack.pop()) >= 0:
            found.append(slice(start, mark.start()))
    return [text[span] for span in found]


def declarations(text: str, limit: int, *, topic: bool = False) -> list[Declaration]:
    """Returns the last `limit` phrases such as "the answer is", without those that a negation governs.

    With `topic`, phrases such as "the most likely diagnosis is" instead, all of them weak.
    """
    matches = list((_TOPIC if topic else _FORWARD).finditer(text))[-limit:]
    found: list[Declaration] = []
    previous = matches[0].start() if matches else 0
    for match in matches:
        if not _is_negated(text, match.start()):
            between = text[max(previous, match.end() - 600) : match.end()]
            named, weak = (False, True) if topic else (match["named"] is not None, match["weak"] is not None)
            found.append(Declaration(match.end(), named, weak, bool(_REVISION.search(between))))
            previous = match.end()
    return found


def _is_negated(text: str, position: int) -> bool:
    return _NEGATED_BEFORE.search(text[max(0, position - 60) : position]) is not None


def declared_after(text: str, limit: int) -> list[str]:
    """Returns the letters of the last `limit` phrases such as "B is correct", without those that a negation governs."""
    matches = list(_BACKWARD.finditer(text))[-limit:]
    return [match["letter"] for match in matches if not _is_negated(text, match.start())]


def before_explanation(text: str) -> str:
    """Returns what precedes a heading such as "Explanation:", or the whole text if nothing does."""
    heading = _EXPLANATION.search(text)
    head = text[: heading.start()].strip() if heading else ""
    return head or text


def labels_in(text: str) -> set[str]:
    """Returns the letters dressed as labels in a text: "(A)" anywhere, "A." at the head of a line or a sentence."""
    return {*_LABELLED_LINE.findall(text), *_BRACKETED.findall(text), *_LEADING.findall(text)}


def tidy(text: str) -> str:
    """Returns the text in Unicode form NFKC, with plain quotes and dashes, without the dress of markdown and LaTeX.

    For short texts: NFKC is not linear in the length of a run of combining marks.
    """
    return _LATEX.sub("", unicodedata.normalize("NFKC", text)).translate(_DRESS)


def tokenise(text: str) -> tuple[Token, ...]:
    """Returns words, numbers and symbols that carry meaning.

    An "A" in capitals is an article only at the start ("Hepatitis A virus" keeps it), and never before punctuation.
    """
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        word = match[0]
        folded = word.casefold()
        article = folded in ("a", "an", "the") and text[match.end() : match.end() + 1] in ("\t", " ")
        droppable = article and (word != "A" or not text[: match.start()].strip("\"'( "))
        tokens.append(Token("and" if word == "&" else folded, droppable, match.start(), match.end()))
    return tuple(tokens)


class LabelMark(NamedTuple):
    """A letter that stands alone at a place of a text, and how it stands there."""

    letter: str
    bracketed: bool
    end: int


def label_at(text: str, position: int) -> LabelMark | None:
    """Returns the letter standing alone at `position`, behind brackets, quotes and bullets."""
    match = _LABEL.match(text, position)
    return LabelMark(match["letter"], bool(match["close"]), match.end()) if match else None


def skip_lead(text: str) -> int:
    """Returns the place behind introducing words such as "most likely option"."""
    match = _LEAD.match(text)
    return match.end() if match else 0


def ends_label(text: str, position: int) -> bool:
    """Returns whether a label may end here: at punctuation, a line end, or words that begin an explanation.

    An A or I may be a word, so it needs more: "A (large) effusion", "I, as a doctor".
    """
    tight = text[position - 1].isupper() and _TIGHT.match(text, position)
    return bool(tight or (_ARTICLE_END if text[position - 1] in "AaIi" else _LABEL_END).match(text, position))


def ends_text(text: str, position: int, *, comma: bool) -> bool:
    """Returns whether an option's text may end here; `comma` says whether a comma is enough."""
    return bool(_TEXT_END.match(text, position) or (comma and _COMMA.match(text, position)))


def ends_sentence(text: str, position: int) -> bool:
    """Returns whether nothing more is said of the answer than that it is right, or why."""
    return bool(_SENTENCE_END.match(text, position))


def abbreviated(text: str, position: int) -> str | None:
    """Returns the word in small letters behind a full stop at `position`, such as the "coli" of "E. coli"."""
    match = _ABBREVIATION.match(text, position)
    return match[1] if match else None


def is_remarked(text: str) -> bool:
    """Returns whether a text is an A or I with a remark in brackets, which ends it: "A (roughly)"."""
    return _REMARKED.fullmatch(text) is not None


def has_label(text: str, position: int) -> bool:
    """Returns whether the line at `position` has a letter that stands alone, the article "a" apart."""
    end = text.find("\n", position)
    return _LETTER.search(text, position, end if end >= 0 else len(text)) is not None


def glued_text(text: str) -> str:
    """Returns what stands behind a capital without a space or the dress of a label between: the "2" of "E2", or ""."""
    match = _GLUED.match(text)
    return text[match.end() :].strip() if match else ""


def marked_letter(text: str, position: int) -> str:
    """Returns a letter at `position` with its separator ("A.", "A)", "A " before a capital), or "" if none is there."""
    match = _MARKED.match(text, position)
    return match[0] if match else ""


def is_refuted(text: str, position: int) -> bool:
    """Returns whether the clause at `position` says that what precedes it is wrong."""
    return bool(_REFUTED.match(text, position))


def is_retracted(text: str, *, at_once: bool = False) -> bool:
    """Returns whether a text takes back what precedes it ("No, it is A"): `at_once`, or in a later sentence."""
    return (_RETRACTED.match if at_once else _RETRACTED.search)(text) is not None


def skip_separator(text: str, position: int) -> int:
    """Returns the place behind the punctuation between a label and its text."""
    match = _SEPARATOR.match(text, position)
    return match.end() if match else position


def without_continuations(text: str) -> str:
    """Returns the text with lines such as "or A" joined to the line before."""
    return _CONTINUED.sub(" ", text)


def is_revised(text: str) -> bool:
    """Returns whether a text has a word such as "however" or "therefore", behind which another answer may stand."""
    return _REVISION.search(text) is not None


def skip_connector(text: str, position: int) -> int:
    """Returns the place behind what may join two answers: punctuation, "and", "or", "possibly"."""
    match = _CONNECTOR.match(text, position)
    return match.end() if match else position


def alternatives(text: str, position: int, *, listed: bool) -> set[str]:
    """Returns letters that the line offers as other possibilities behind `position` ("but it could also be C").

    With `listed`, letters dressed as labels count too ("A. this B. that"), up to a word that begins an explanation.
    """
    line = text[position:].partition("\n")[0]
    found = {match["letter"] for match in _ALTERNATIVE.finditer(line)} | set(_ALSO.findall(line))
    if listed:
        cue = _FIRST_CUE.search(line)
        found.update(_INLINE.findall(line, 0, cue.start() if cue else len(line)))
    return found


def has_format(text: str) -> bool:
    """Returns whether the text is a thinking and an answer block, neither blank, with nothing else around them."""
    if _FORMAT_TAG.findall(text) != _FORMAT_SHAPE:
        return False
    before, thinking, gap, answer, after = (part.strip() for part in _FORMAT_TAG.split(text))
    return bool(thinking and answer) and not (before or gap or after)
