# SPDX-License-Identifier: Apache-2.0
"""Where the randomness of a generated set comes from, and which values belong to which split."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from random import Random
from typing import Literal, TypeAlias, get_args

Split: TypeAlias = Literal["train", "validation", "test"]
"""Train holds about 60% of all values, validation and test about 20% each."""

SPLITS: tuple[Split, ...] = get_args(Split)

_TRAIN_SHARE, _VALIDATION_SHARE = 0.6, 0.2
_BLOCK: tuple[Split, ...] = ("train", "train", "train", "validation", "test")
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


def split_of(family: str, key: str, place: tuple[int, int] | None = None) -> Split:
    """Returns the only split in which a question with these values may appear.

    Its hash decides. Where values can be numbered, of five neighbours three go to train, and one each to validation
    and test, in an order that the hash decides: so even a class of ten values has two in each. The seed plays no part,
    so a test set of one seed never shares a value with a training set of another.

    Args:
        family: Name of the family.
        key: `Draft.key`.
        place: `Draft.place`.
    """
    if place is not None:
        answer, rank = place
        return _block(family, answer, rank // len(_BLOCK))[rank % len(_BLOCK)]
    fraction = _fraction(f"{_SALT}\x1f{family}\x1f{key}")
    if fraction < _TRAIN_SHARE:
        return "train"
    return "validation" if fraction < _TRAIN_SHARE + _VALIDATION_SHARE else "test"


@lru_cache(maxsize=4096)
def _block(family: str, answer: int, number: int) -> tuple[Split, ...]:
    order = sorted(
        range(len(_BLOCK)), key=lambda rank: _fraction(f"{_SALT}\x1f{family}\x1f{answer}\x1f{number}\x1f{rank}")
    )
    return tuple(_BLOCK[rank] for rank in order)
