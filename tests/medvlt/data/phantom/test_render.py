# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medvlt.data.phantom.render import draw_scene, render
from medvlt.data.phantom.scene import Lesion, Scene

SCENE = Scene("chest", 3, (Lesion(0.3, 0.4, 0.08, 100.0),), 0.45, 6.0, 11)


def test_equal_scenes_give_equal_bytes() -> None:
    assert render(SCENE, 84) == render(SCENE, 84)


@pytest.mark.parametrize(
    "other",
    [
        replace(SCENE, patient=4),
        replace(SCENE, lesions=()),
        replace(SCENE, heart_ratio=0.6),
        replace(SCENE, noise_sd=9.0),
        replace(SCENE, noise_seed=12),
        replace(SCENE, view="axial"),
    ],
)
def test_every_part_of_a_scene_shows(other: Scene) -> None:
    assert render(other, 84) != render(SCENE, 84)


@pytest.mark.parametrize("side", [56, 84, 336])
def test_size_and_mode(side: int) -> None:
    picture = Image.open(io.BytesIO(render(SCENE, side)))
    assert (picture.size, picture.mode, picture.format) == ((side, side), "L", "PNG")


def test_a_lesion_has_its_place_size_and_contrast() -> None:
    change = draw_scene(SCENE, 336) - draw_scene(replace(SCENE, lesions=()), 336)
    assert change.max() == pytest.approx(100, abs=0.1)
    assert change.min() == pytest.approx(0, abs=0.1)
    assert change.sum() / 100 / 336**2 == pytest.approx(np.pi * 0.08**2, rel=0.1)


def test_noise_has_its_strength() -> None:
    noise = draw_scene(SCENE, 336) - draw_scene(replace(SCENE, noise_sd=0.0), 336)
    assert noise.std() == pytest.approx(6, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.1)
