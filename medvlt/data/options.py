# SPDX-License-Identifier: Apache-2.0
"""Shuffling options, so that a model learns what is right rather than which letter is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from medvlt.data.prompts import TEACHER_LABEL
from medvlt.data.samples import shuffle_key
from medvlt.types import Sample

_BY_PLACE = re.compile(
    r"\b(?:all|none|any|both|neither|either|each|some|one|two|more|other)\b(?:\s+\w+){0,3}"
    r"\s+(?:above|following|preceding|foregoing)\b",
    re.IGNORECASE,
)
_JOINED = r"(?:,(?:\s*(?:and|or|nor)\b)?|[&+/]|\b(?:and|or|nor|through|to|as\s+well\s+as)\b)"
_WITHOUT = r"(?:,?\s*(?:\b(?:and|but)\s+)?\b(?:not|except)\b)"
_LETTER_MEANT = r"\b(?i:only|options?|choices?|answers?|the\s+same\s+as)\s+"
_RENDERED_COLUMN = "text"  # of the published tokenized sets: the whole chat as text, options in their old order


def shuffle_options(sample: Sample, seed: int) -> Sample:
    """Returns the sample with the texts of its options in another order under the same labels.

    The order is a function of (seed, uid) alone. The right label and the teacher's label follow their texts; the uid
    stays, so that pass counts and resumed runs still find the sample. The column `text` is dropped: it shows the old
    order.

    A sample comes back as it is where another order would make it wrong; see `fixed_order`.

    Args:
        sample: A sample; without options nothing happens.
        seed: Change it, for instance by epoch, to get another order.
    """
    if not sample.options or fixed_order(sample):
        return sample
    labels = list(sample.options)
    return reordered(sample, sorted(labels, key=lambda label: shuffle_key(seed, f"{sample.uid}\x1f{label}")))


def reordered(sample: Sample, old_labels: Sequence[str]) -> Sample:
    """Returns the sample with the texts of its options in a given order under the same labels.

    The right label and the teacher's label follow their texts; the uid stays. The column `text` is dropped: it shows
    the old order.

    Args:
        sample: A sample with options.
        old_labels: All of its labels, each in the place that its text moves to.
    """
    labels = list(sample.options)
    moved = dict(zip(old_labels, labels, strict=True))
    extra = {key: value for key, value in sample.extra.items() if key != _RENDERED_COLUMN}
    if (teacher := extra.get(TEACHER_LABEL)) is not None:
        extra[TEACHER_LABEL] = moved.get(teacher, teacher)
    return replace(
        sample,
        options={label: sample.options[old] for label, old in zip(labels, old_labels, strict=True)},
        answer_label=None if sample.answer_label is None else moved[sample.answer_label],
        extra=extra,
    )


def fixed_order(sample: Sample) -> bool:
    """Returns whether a sample speaks of its options by letter or place, so that they must stay where they are.

    In the reasoning, any label that stands alone as a capital letter counts, also the article at the start of a
    sentence: a text cannot tell "A is wrong" from "A man" for certain, and a wrong letter would teach a contradiction.
    In options it is "all of the above", "both A and C", "(a) & (c)", "neither A nor B", "A through C", "A but not B",
    "only A", "x (the same as A)" and the like.
    """
    if not sample.options:
        return False
    label = f"(?:{'|'.join(map(re.escape, sample.options))})"
    if re.search(rf"(?<![A-Za-z0-9]){label}(?![A-Za-z0-9])", sample.reasoning or ""):
        return True
    one = rf"\(?\b{label}\b\)?"
    several = re.compile(rf"{one}\s*(?:{_JOINED}|{_WITHOUT})\s*{one}", re.IGNORECASE)
    single = re.compile(rf"{_LETTER_MEANT}{one}|^{one}\s+(?i:only|alone)\b")  # a small "a" is the article
    return any(pattern.search(text) for text in sample.options.values() for pattern in (_BY_PLACE, several, single))
