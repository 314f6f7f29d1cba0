# SPDX-License-Identifier: Apache-2.0
"""The answer is read off the pixels: what a picture has more than the same picture without its lesions."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from scipy import ndimage

from medvlt.data.phantom import pictures
from medvlt.data.phantom.anatomy import body
from medvlt.data.phantom.draft import Draft, Draw
from medvlt.data.phantom.render import draw_scene

SIDE = 168


def _spots(draft: Draft) -> list[tuple[float, float, float, float]]:
    """Returns (x, y, area, sign) of every spot: centres as shares of the side in the coordinates of the body."""
    assert draft.scene is not None
    change = draw_scene(draft.scene, SIDE) - draw_scene(replace(draft.scene, lesions=()), SIDE)
    drawn = body(draft.scene.view, draft.scene.patient, SIDE)
    labels, number = ndimage.label(np.abs(change) > 15)
    spots = []
    for label in range(1, number + 1):
        rows, columns = np.nonzero(labels == label)
        x = ((columns.mean() + 0.5) / SIDE - 0.5 - drawn.shift[0]) / drawn.zoom + 0.5
        y = ((rows.mean() + 0.5) / SIDE - 0.5 - drawn.shift[1]) / drawn.zoom + 0.5
        spots.append((x, y, float(rows.size), float(np.sign(change[labels == label].mean()))))
    return spots


def _side(draft: Draft) -> str:
    ((x, _, _, _),) = _spots(draft)
    return "right" if x < 0.5 else "left"  # the patient's


def _quadrant(draft: Draft) -> str:
    ((x, y, _, _),) = _spots(draft)
    return ("R" if x < 0.5 else "L") + ("U" if y < 0.5 else "L") + "Q"


def _count(draft: Draft) -> str:
    return ("", "one", "two", "three", "four", "five")[len(_spots(draft))]


def _larger(draft: Draft) -> str:
    first, second = _spots(draft)
    big = first if first[2] > second[2] else second
    assert (first[0] < 0.5) != (second[0] < 0.5)
    return "right" if big[0] < 0.5 else "left"


def _tone(draft: Draft) -> str:
    ((x, y, _, sign),) = _spots(draft)
    assert x < 0.48
    assert 0.2 < y < 0.65
    return "hyperdense" if sign > 0 else "hypodense"


def _present(draft: Draft) -> str:
    return "yes" if _spots(draft) else "no"


def _organ(draft: Draft) -> str:
    ((x, y, _, _),) = _spots(draft)
    if x < 0.45:
        return "liver"
    if y < 0.62:
        return "spleen"
    return "kidney" if x > 0.57 else "spine"


def _heart(draft: Draft) -> str:
    """Measures the heart, where it is widest, against the chest, where it is widest, without noise."""
    assert draft.scene is not None
    pixels = draw_scene(replace(draft.scene, noise_sd=0.0), SIDE)
    drawn = body("chest", draft.scene.patient, SIDE)

    def row(y: float) -> np.ndarray:
        return np.asarray(pixels[int((0.5 + (y - 0.5) * drawn.zoom + drawn.shift[1]) * SIDE)])

    def run(levels: np.ndarray, start: float) -> tuple[int, int]:
        """Returns the ends of the stretch of true values around a place."""
        first = last = int((0.5 + (start - 0.5) * drawn.zoom + drawn.shift[0]) * SIDE)
        while levels[first - 1]:
            first -= 1
        while levels[last + 1]:
            last += 1
        return first, last

    dark = row(0.44) < 90
    chest = run(dark, 0.715)[1] - run(dark, 0.285)[0] + 1
    first, last = run(row(0.63) > 97, 0.5)
    return "enlarged" if (last - first + 1) / chest > 0.5 else "normal"


READERS = [
    (pictures.side, _side),
    (pictures.quadrant, _quadrant),
    (pictures.count, _count),
    (pictures.larger, _larger),
    (pictures.tone, _tone),
    (pictures.present, _present),
    (pictures.organ, _organ),
    (pictures.heart_size, _heart),
]


@pytest.mark.parametrize("difficulty", [0.0, 0.7])
@pytest.mark.parametrize(("draw", "read"), READERS)
def test_the_answer_is_in_the_picture(draw: Draw, read: object, difficulty: float) -> None:
    assert callable(read)
    rng = Random(9)
    for pick in range(40):
        draft = draw(rng, pick, difficulty)
        assert draft.choices[draft.truth] == read(draft), draft


@pytest.mark.parametrize("draw", [draw for draw, _ in READERS])
def test_lesions_stand_out_of_the_noise(draw: Draw) -> None:
    rng = Random(10)
    for difficulty, least in ((0.0, 6.0), (1.0, 1.2)):
        for pick in range(40):
            scene = draw(rng, pick, difficulty).scene
            assert scene is not None
            for lesion in scene.lesions:
                assert abs(lesion.contrast) >= least * scene.noise_sd
                assert lesion.radius * 84 >= 2  # pixels of the small picture


@pytest.mark.parametrize("draw", [draw for draw, _ in READERS])
def test_the_stem_tells_nothing(draw: Draw) -> None:
    rng = Random(11)
    drafts = [draw(rng, pick, 0.0) for pick in range(60)]
    assert len({(draft.question, draft.fact, draft.choices) for draft in drafts}) == 1


def test_the_teacher_counts_one_too_few_and_misses_small_nodules() -> None:
    rng = Random(12)
    for pick in range(40):
        draft = pictures.count(rng, pick, 0.0)
        assert draft.guess == max(draft.truth - 1, 0)
    seen = [pictures.present(rng, 1, 0.0) for _ in range(200)]
    missed = [draft.scene.lesions[0].radius for draft in seen if draft.guess == 0 and draft.scene]
    found = [draft.scene.lesions[0].radius for draft in seen if draft.guess == 1 and draft.scene]
    assert len(missed) > 60
    assert len(found) > 60
    assert max(missed) <= min(found)
