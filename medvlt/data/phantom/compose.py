# SPDX-License-Identifier: Apache-2.0
"""From settings and an index to a sample. Everything here is a pure function."""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal, TypeAlias

from medvlt.data.phantom.draft import Draft, Modality
from medvlt.data.phantom.families import FAMILIES
from medvlt.data.phantom.render import render
from medvlt.data.phantom.streams import Split, split_of, stream
from medvlt.data.schema import sample_uid
from medvlt.types import Sample

Reasoning: TypeAlias = Literal["exact", "teacher", "none"]

_MOST_DRAWS = 10_000
"""A class has at least two values in every split, so this many failures in a row mean a broken family."""

_WALK_DRAWS = 300
"""Draws that look for the values of one answer in an evaluation split, at most about 30."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a sample is a function of, besides its index. The meaning of each field is told at `Phantom`."""

    split: Split
    seed: int
    families: tuple[tuple[Modality, tuple[str, ...]], ...]
    difficulty: float
    reasoning: Reasoning
    teacher_share: float
    image_pixels: int
    shuffle_options: bool


def family_at(settings: Settings, index: int) -> tuple[Modality, str]:
    """Returns the family of sample `index`: modalities take turns, and families in shuffled rounds.

    So any number of samples from the start on holds every family about equally often.
    """
    modality, names = settings.families[index % len(settings.families)]
    turn = index // len(settings.families)
    order = list(names)
    stream(settings.seed, settings.split, turn // len(names), f"round {modality}").shuffle(order)
    return modality, order[turn % len(names)]


def draft_at(settings: Settings, index: int) -> tuple[Modality, str, Draft]:
    """Returns modality, family and draft of sample `index`, whose values belong to the split of the settings.

    Values of another split are drawn again, with the right answer held: so answers stay balanced within each split.
    Where values can be numbered, validation and test take the answers in shuffled rounds, and use all values of an
    answer before any comes again.
    """
    modality, family = family_at(settings, index)
    rng = stream(settings.seed, settings.split, index, f"values {family}")
    draft = _draw(settings.split, modality, family, settings.difficulty, rng, rng.getrandbits(30))
    if settings.split == "train" or draft.place is None:
        return modality, family, draft
    names = dict(settings.families)[modality]
    turn = index // len(settings.families) // len(names)  # how often the family was asked before
    lap, position = divmod(turn, len(draft.choices))
    answers = list(range(len(draft.choices)))
    stream(settings.seed, settings.split, lap, f"answers {family}").shuffle(answers)
    drafts = _walk(settings.split, settings.seed, modality, family, settings.difficulty, answers[position])
    return modality, family, drafts[lap % len(drafts)]


def _draw(split: Split, modality: Modality, family: str, difficulty: float, rng: Random, pick: int) -> Draft:
    for _ in range(_MOST_DRAWS):
        draft = FAMILIES[modality][family](rng, pick, difficulty)
        if split_of(family, draft.key, draft.place) == split:
            return draft
    raise RuntimeError(f"family {family!r} has no values in split {split!r}: a bug, please report it")


@lru_cache(maxsize=1024)
def _walk(
    split: Split, seed: int, modality: Modality, family: str, difficulty: float, answer: int
) -> tuple[Draft, ...]:
    """Returns one draft for each value with this answer, in the order in which random draws met them first."""
    rng = stream(seed, split, answer, f"walk {family}")
    drafts: dict[str, Draft] = {}
    for _ in range(_WALK_DRAWS):
        draft = _draw(split, modality, family, difficulty, rng, answer)
        drafts.setdefault(draft.key, draft)
    return tuple(drafts.values())


def trace(draft: Draft, choice: int, letter: str) -> str:
    """Returns a short line of reasoning for a choice: fact, answer word, letter, as in "rate 135 is tachycardia B"."""
    return f"{draft.fact} {draft.choices[choice]} {letter}"


def sample_at(settings: Settings, index: int, *, with_picture: bool = True) -> Sample:
    """Returns sample `index`.

    Args:
        settings: What to generate.
        index: At least 0; there is no upper end.
        with_picture: Whether the picture is drawn; without it `images` is empty.
    """
    modality, family, draft = draft_at(settings, index)
    order = list(range(len(draft.choices)))
    if settings.shuffle_options:
        stream(settings.seed, settings.split, index, "options").shuffle(order)
    letters = dict(zip(order, string.ascii_uppercase, strict=False))
    options = {letters[choice]: draft.choices[choice] for choice in order}
    extra = {"family": family}
    reasoning = None
    if settings.reasoning == "exact":
        reasoning = trace(draft, draft.truth, letters[draft.truth])
    elif settings.reasoning == "teacher":
        errs = stream(settings.seed, settings.split, index, "teacher").random() < settings.teacher_share
        choice = draft.guess if errs else draft.truth
        reasoning = trace(draft, choice, letters[choice])
        extra["teacher_label"] = letters[choice]
    name = f"phantom_{modality}"
    # The wording in the uid cannot tell two pictures apart, so the index names the values as well.
    values = hashlib.sha256(f"{family} {draft.key}".encode()).hexdigest()[:8]
    dataset_index = f"{settings.split}-{settings.seed}-{index}-{values}"
    answer = draft.choices[draft.truth]
    pictured = draft.scene is not None and with_picture
    return Sample(
        uid=sample_uid(name, dataset_index, draft.question, options, answer),
        question=draft.question,
        options=options,
        answer_label=letters[draft.truth],
        answer=answer,
        images=(render(draft.scene, settings.image_pixels),) if pictured and draft.scene else (),
        reasoning=reasoning,
        dataset_name=name,
        dataset_index=dataset_index,
        extra=extra,
    )
