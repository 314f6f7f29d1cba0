# SPDX-License-Identifier: Apache-2.0
"""Which questions of two sets share a picture: every picture is read once, and little of it is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

from medvlt.curation.image_matching import Picture, PictureIndex, PictureMatch, PictureRule
from medvlt.data.decode import open_image
from medvlt.data.drops import DropReason, RecordError
from medvlt.types import ImageSource, Sample

Place = TypeVar("Place", bound=Hashable)
"""Names a question; anything hashable."""

Theirs = TypeVar("Theirs", bound=Hashable)
"""The same for the other set."""

_TOGETHER = 256  # training pictures that are looked up together


@dataclass
class Seen(Generic[Place]):
    """The pictures of a set.

    Attributes:
        questions: For each different picture, the questions that have it.
        unreadable: (uid, why) of every question with a picture that could not be read; it was not compared.
        read: Pictures read, repeats included.
    """

    questions: list[list[Place]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    read: int = 0
    _numbers: dict[str, int] = field(default_factory=dict)  # by digest of the file or the pixels
    _files: dict[Path, str] = field(default_factory=dict)  # digests of files read before

    def new(self, questions: Iterable[tuple[Place, Sample]]) -> Iterator[Picture]:
        """Reads the pictures of some questions and yields those that were not there before."""
        for place, sample in questions:
            for image in sample.images:
                try:
                    digest, picture = self._look(image)
                except RecordError as error:
                    self.unreadable.append((sample.uid, error.message))
                    continue
                self.read += 1
                if picture is not None:
                    self._numbers[digest] = len(self.questions)
                    self.questions.append([])
                holders = self.questions[self._numbers[digest]]
                if place not in holders[-1:]:
                    holders.append(place)
                if picture is not None:
                    yield picture

    def _look(self, image: ImageSource) -> tuple[str, Picture | None]:
        """Returns a digest that names the picture, and the picture if it is new."""
        if isinstance(image, Path) and (known := self._files.get(image)) is not None:
            return known, None
        encoded = _encoded(image)
        if encoded is None:
            shown = Picture.of(None, open_image(image))
            return shown.pixels, None if shown.pixels in self._numbers else shown
        digest = hashlib.md5(encoded, usedforsecurity=False).hexdigest()
        picture = None if digest in self._numbers else Picture.of(encoded, open_image(encoded))
        if isinstance(image, Path):
            self._files[image] = digest
        return digest, picture


def match_pictures(
    train: Iterable[tuple[Place, Sample]],
    evaluation: Iterable[tuple[Theirs, Sample]],
    rule: PictureRule | None = None,
) -> tuple[Seen[Place], Seen[Theirs], list[PictureMatch]]:
    """Returns the pictures of both sets, and which of them match, by the order of the training set.

    Holds the squares and hashes of all different evaluation pictures (28 KB each), and of 256 training pictures.

    Args:
        train: Training questions, read one after the other.
        evaluation: Evaluation questions.
        rule: When pictures match.
    """
    ours: Seen[Place] = Seen()
    theirs: Seen[Theirs] = Seen()
    index = PictureIndex(list(theirs.new(evaluation)), rule)
    found: list[PictureMatch] = []
    if not len(index):  # nothing to compare with, so nothing is decoded
        for _ in train:
            pass
        return ours, theirs, found
    pictures, start = ours.new(train), 0
    while chunk := list(islice(pictures, _TOGETHER)):
        found += [
            PictureMatch(start + match.train, match.evaluation, match.kind, match.agreement)
            for match in index.find(chunk)
        ]
        start += len(chunk)
    return ours, theirs, found


def _encoded(image: ImageSource) -> bytes | None:
    if isinstance(image, Path):
        try:
            return image.read_bytes()
        except OSError as error:
            raise RecordError(DropReason.MISSING_IMAGE, f"cannot read {image}: {error}") from error
    return image if isinstance(image, bytes) else None
