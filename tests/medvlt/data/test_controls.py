# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medvlt.curation.commands import import_sources
from medvlt.data.controls import BlankPictures, Blind, Control, RotatedOptions, controlled
from medvlt.data.decode import open_image
from medvlt.data.phantom import Phantom
from medvlt.data.samples import SampleSet
from medvlt.errors import ConfigurationError
from medvlt.types import Sample

QUESTION = Sample(
    uid="toy:1:x",
    question="Which?",
    options={"A": "first", "B": "second", "C": "third"},
    answer_label="C",
    answer="third",
    extra={"teacher_label": "A", "text": "a chat", "misc": "kept"},
)


class Watched(list[Sample]):
    """Counts the samples that are built whole."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        super().__init__(samples)
        self.whole = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override] # noqa: ANN001, ANN204
        self.whole += 1
        return super().__getitem__(index)

    def light(self, index: int) -> Sample:
        return replace(super().__getitem__(index), images=())


def picture(size: tuple[int, int], **settings: Any) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 64).save(file, format="JPEG", **settings)
    return file.getvalue()


def test_rotated_options() -> None:
    rotated = RotatedOptions()(QUESTION)
    assert rotated.options == {"A": "third", "B": "first", "C": "second"}
    assert (rotated.answer_label, rotated.answer, rotated.uid) == ("A", "third", "toy:1:x")
    assert rotated.extra == {"teacher_label": "B", "misc": "kept"}
    assert list(RotatedOptions(by=2)(QUESTION).options.values()) == ["second", "third", "first"]
    assert RotatedOptions(by=3)(QUESTION) is QUESTION
    by_place = replace(QUESTION, options={"A": "x", "B": "y", "C": "both A and B"}, answer="both A and B")
    assert RotatedOptions()(by_place) is by_place
    still_open = replace(QUESTION, options={}, answer_label=None)
    assert RotatedOptions()(still_open) is still_open
    for by in (0, 1.5, True):
        with pytest.raises(ConfigurationError, match="at least 1"):
            RotatedOptions(by=by)  # type: ignore[arg-type]


@given(count=st.integers(2, 10), right=st.integers(0, 9), by=st.integers(1, 30))
def test_rotation_keeps_what_is_right_and_turns_round(count: int, right: int, by: int) -> None:
    labels = "ABCDEFGHIJ"[:count]
    options = {label: f"text {number}" for number, label in enumerate(labels)}
    answer = options[labels[right % count]]
    sample = Sample("u", "q", options, labels[right % count], answer)
    turned = RotatedOptions(by=by)(sample)
    assert turned.answer_label is not None
    assert turned.options[turned.answer_label] == answer
    assert list(turned.options) == list(labels)
    for _ in range(count - 1):
        turned = RotatedOptions(by=by)(turned)
    assert turned.options == options


def test_blank_pictures_have_the_size_and_nothing_else() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # on its side: 40 wide and 90 high when upright
    pictures = (picture((90, 40)), picture((90, 40), exif=turned), b"no picture", Path("/gone.png"))
    sample = replace(QUESTION, images=pictures)
    blank = BlankPictures()(sample)
    assert blank.images[2:] == pictures[2:]
    assert replace(blank, images=pictures) == sample
    for real, image in zip(pictures[:2], blank.images, strict=False):
        assert isinstance(image, bytes)
        assert len(image) < 1_000
        opened = open_image(image)
        assert opened.size == open_image(real).size
        assert opened.getcolors() == [(90 * 40, (128, 128, 128))]
    red = BlankPictures(colour=(255, 0, 0))(sample).images[0]
    assert open_image(red).getpixel((0, 0)) == (255, 0, 0)
    for colour in ((0, 0, 256), (1.5, 0, 0), (0, 0), None, "red"):
        with pytest.raises(ConfigurationError, match="255"):
            BlankPictures(colour=colour)  # type: ignore[arg-type]


@pytest.mark.parametrize("control", [Blind(), BlankPictures(), RotatedOptions()])
def test_a_controlled_set_pairs_with_its_own(control: Control) -> None:
    base = Phantom("test", 6, modality="picture").load()
    watched = Watched(base)
    samples = controlled(SampleSet(watched), control)
    assert samples.uids == base.uids
    assert watched.whole == 0
    built = list(samples)
    assert built == [control(one) for one in base]
    assert [one.uid for one in built] == [samples.light(i).uid for i in range(6)] == list(base.uids)
    assert watched.whole == (0 if isinstance(control, Blind) else 6)
    assert [samples.light(i).options for i in range(6)] == [one.options for one in samples]
    assert [len(one.images) for one in samples] == [0 if isinstance(control, Blind) else 1] * 6


def test_named_in_yaml() -> None:
    import_sources()
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--control", type=Control | None)
    texts = {
        "control: null": None,
        "control: Blind": Blind(),
        "control: {class_path: RotatedOptions, init_args: {by: 2}}": RotatedOptions(by=2),
        "control: {class_path: BlankPictures, init_args: {colour: [1, 2, 3]}}": BlankPictures(colour=(1, 2, 3)),
    }
    for text, expected in texts.items():
        parsed = parser.parse_string(yaml.safe_dump(yaml.safe_load(text)))
        assert parser.instantiate(parsed).control == expected
    assert (Blind().name, BlankPictures().name, RotatedOptions().name) == ("blind", "blank_pictures", "rotated_options")
