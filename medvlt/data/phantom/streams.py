# SPDX-License-Identifier: Apache-2.0
"""Where the randomness of a generated set comes from, and which values belong to which split."""

from __future__ import annotations

import hashlib
from random import Random
from typing import Literal, TypeAlias, get_args

Split: TypeAlias = Literal["train", "validation", "test"]
"""Train holds about 60% of all values, validation and test about 20% each."""

SPLITS: tuple[Split, ...] = get_args(Split)

_TRAIN_SHARE, _VALIDATION_SHARE = 0.6, 0.2
# Chosen so that the smallest classes (ten values) have at least two values in each split; a test holds it.
_SALT = "phantom"


def _fraction(text: str) -> float:
    """Returns a number in [0, 1) that depends on `text` alone, on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def stream(seed: int, split: Split, index: int, purpose: str) -> Random:
    """Returns the random stream of one sample for one purpose.

    Streams of different purposes are independent, so that a change of, say, the teacher leaves the questions alone.
    """
    text = f"{seed}\x1f{split}\x1f{index}\x1f{purpose}"
    return Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def split_of(key: str) -> Split:
    """Returns the only split in which a question with these values may appear.

    It does not depend on the seed, so a test set of one seed never shares a value with a training set of another.

    Args:
        key: `Draft.key`, with the name of the family.
    """
    place = _fraction(f"{_SALT}\x1f{key}")
    if place < _TRAIN_SHARE:
        return "train"
    return "validation" if place < _TRAIN_SHARE + _VALIDATION_SHARE else "test"
