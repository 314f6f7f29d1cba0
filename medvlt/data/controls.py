# SPDX-License-Identifier: Apache-2.0
"""Controls: the same questions, asked in a way that shows what a score is owed to."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Protocol, runtime_checkable

from PIL import Image

from medvlt.data.decode import image_size
from medvlt.data.drops import RecordError
from medvlt.data.options import fixed_order, reordered
from medvlt.data.samples import BuiltSamples, SampleSet
from medvlt.errors import ConfigurationError
from medvlt.types import ImageSource, Sample


@runtime_checkable
class Control(Protocol):
    """A change to every question of an evaluation; named in YAML by the class and its settings.

    It keeps the uid, so that a run under it pairs with one without it, question by question and seed by seed.

    Classes name it as their base, so that the command line finds them under their short names.
    """

    name: ClassVar[str]
    """What a run and a report call it."""

    reads_pictures: ClassVar[bool] = True
    """Whether it has to see the pictures."""

    def __call__(self, sample: Sample) -> Sample:
        """Returns the question as it is asked under the control, with its uid."""
        ...


@dataclass(frozen=True)
class Blind(Control):
    """Takes the pictures away.

    A picture question is then answered from its wording, from what the options betray, or by guessing; what a model
    still gets right shows how much of a score is not owed to the pictures. Questions without a picture stay as they
    are.
    """

    name: ClassVar[str] = "blind"
    reads_pictures: ClassVar[bool] = False

    def __call__(self, sample: Sample) -> Sample:
        """Returns the question without pictures."""
        return replace(sample, images=())


@dataclass(frozen=True)
class BlankPictures(Control):
    """Puts a picture of one colour and the same size in the place of every picture.

    Unlike `Blind` it leaves the prompt as long as it was, picture tokens included, so that only what the picture shows
    is gone.

    Args:
        colour: Red, green and blue, each in [0, 255]; mid grey by default.
    """

    name: ClassVar[str] = "blank_pictures"
    colour: tuple[int, int, int] = (128, 128, 128)

    def __post_init__(self) -> None:
        colour: object = self.colour
        whole = isinstance(colour, tuple | list) and all(type(value) is int for value in colour)
        if not whole or len(self.colour) != 3 or not all(0 <= value <= 255 for value in self.colour):
            raise ConfigurationError(
                f"colour must be red, green and blue, each a whole number in [0, 255], got {self.colour!r}"
            )

    def __call__(self, sample: Sample) -> Sample:
        """Returns the question with blank pictures; of the real ones only the headers are read.

        A picture without a header that can be read stays: no engine can open it either, and each says so in its way.
        """
        return replace(sample, images=tuple(map(self._blank, sample.images)))

    def _blank(self, image: ImageSource) -> ImageSource:
        try:
            return blank_picture(image_size(image), tuple(self.colour))
        except RecordError:
            return image


@dataclass(frozen=True)
class RotatedOptions(Control):
    """Moves every option text down by some letters, the last ones to the top: a model that knows does not care.

    The right letter goes with its text. Options that speak of one another by letter or place stay where they are, as
    do all of their question; see `medvlt.data.options.fixed_order`. A whole turn changes nothing: a yes/no question
    under `by: 2` is asked as ever.

    Args:
        by: How many letters each text moves, at least 1.
    """

    name: ClassVar[str] = "rotated_options"
    reads_pictures: ClassVar[bool] = True
    by: int = 1

    def __post_init__(self) -> None:
        if type(self.by) is not int or self.by < 1:
            raise ConfigurationError(f"by must be a whole number of letters, at least 1, got {self.by!r}")

    def __call__(self, sample: Sample) -> Sample:
        """Returns the question with its option texts moved."""
        labels = list(sample.options)
        if not labels or self.by % len(labels) == 0 or fixed_order(sample):
            return sample
        start = -self.by % len(labels)
        return reordered(sample, labels[start:] + labels[:start])


class ControlledSamples(BuiltSamples):
    """The samples of a set under a control, each built when asked for.

    Args:
        base: The set.
        control: What is done to its samples.
    """

    def __init__(self, base: SampleSet, control: Control) -> None:
        self.base = base
        self.control = control

    def __len__(self) -> int:
        return len(self.base)

    def build(self, index: int) -> Sample:
        """Returns the sample, read without its pictures where the control does not need them."""
        return self.control(self.base[index] if self.control.reads_pictures else self.base.light(index))

    def light(self, index: int) -> Sample:
        """See `LightAccess`."""
        return self.control(replace(self.base.light(index), images=()))


def controlled(samples: SampleSet, control: Control) -> SampleSet:
    """Returns a set under a control: the same uids in the same order, nothing built ahead.

    Args:
        samples: The set.
        control: What is done to its samples.
    """
    return SampleSet(ControlledSamples(samples, control), samples.report, uids=samples.uids)


@lru_cache(maxsize=256)
def blank_picture(size: tuple[int, int], colour: tuple[int, ...]) -> bytes:
    """Returns a picture of one colour, encoded as PNG: a few kilobytes, whatever its size.

    Args:
        size: Width and height in pixels.
        colour: Red, green and blue in [0, 255].
    """
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format="PNG")
    return file.getvalue()
