# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from medvlt.data.phantom.anatomy import body
from medvlt.data.phantom.scene import LUNGS, NUM_PATIENTS, ORGANS, Ellipse, View


def _level(view: View, patient: int, place: Ellipse) -> float:
    """Mean grey level of a small square at the centre of a region."""
    drawn = body(view, patient, 84)
    x = 0.5 + (place.x - 0.5) * drawn.zoom + drawn.shift[0]
    y = 0.5 + (place.y - 0.5) * drawn.zoom + drawn.shift[1]
    row, column = int(y * 84), int(x * 84)
    return float(drawn.pixels[row - 1 : row + 2, column - 1 : column + 2].mean())


@pytest.mark.parametrize("patient", range(NUM_PATIENTS))
def test_air_fat_tissue_and_bone_are_told_apart(patient: int) -> None:
    for lung in LUNGS.values():
        assert _level("chest", patient, lung) < _level("chest", patient, Ellipse(0.5, 0.9, 0, 0)) - 50
    liver, spine = _level("axial", patient, ORGANS["liver"]), _level("axial", patient, ORGANS["spine"])
    assert liver > _level("axial", patient, Ellipse(0.5, 0.3, 0, 0)) + 15  # fat between liver and stomach
    assert spine > liver + 20
    assert _level("abdomen", patient, Ellipse(0.5, 0.51, 0, 0)) > _level("abdomen", patient, Ellipse(0.6, 0.3, 0, 0))


@pytest.mark.parametrize("view", get_args(View))
def test_patients_differ_and_stay_the_same(view: View) -> None:
    pictures = {patient: body(view, patient, 56).pixels.copy() for patient in range(NUM_PATIENTS)}
    assert len({pixels.tobytes() for pixels in pictures.values()}) == NUM_PATIENTS
    body.cache_clear()
    assert np.array_equal(body(view, 3, 56).pixels, pictures[3])


def test_painting_leaves_the_kept_body_alone() -> None:
    before = body("chest", 0, 56).pixels.copy()
    body("chest", 0, 56).canvas().fill(Ellipse(0.5, 0.5, 0.3, 0.3), 255)
    assert np.array_equal(body("chest", 0, 56).pixels, before)


@pytest.mark.parametrize("side", [84, 336])
def test_the_marker_is_on_the_patients_right(side: int) -> None:
    pixels = body("axial", 1, side).pixels
    corner = round(0.12 * side)
    assert pixels[:corner, :corner].max() == 190
    assert pixels[:corner, -corner:].max() < 60
