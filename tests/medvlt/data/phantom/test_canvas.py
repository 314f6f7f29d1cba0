# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from medvlt.data.phantom.canvas import Canvas, encode_png
from medvlt.data.phantom.scene import Ellipse


def _blank(side: int = 200) -> np.ndarray:
    return np.zeros((side, side), dtype=np.float32)


@pytest.mark.parametrize("angle", [0.0, 0.7, -1.2])
def test_area_and_centre_of_an_ellipse(angle: float) -> None:
    canvas = Canvas(_blank())
    canvas.add(Ellipse(0.4, 0.55, 0.2, 0.1), 1.0, angle=angle)
    rows, columns = np.mgrid[0:200, 0:200]
    total = canvas.pixels.sum()
    assert total / 200**2 == pytest.approx(math.pi * 0.2 * 0.1, rel=0.02)
    assert (columns * canvas.pixels).sum() / total == pytest.approx(0.4 * 200 - 0.5, abs=0.1)
    assert (rows * canvas.pixels).sum() / total == pytest.approx(0.55 * 200 - 0.5, abs=0.1)


def test_angle_turns_clockwise() -> None:
    canvas = Canvas(_blank())
    canvas.add(Ellipse(0.5, 0.5, 0.3, 0.05), 1.0, angle=math.pi / 4)
    assert canvas.pixels[130, 130] == 1  # down to the right
    assert canvas.pixels[70, 130] == 0


def test_shift_and_zoom_move_the_body() -> None:
    canvas = Canvas(_blank(), shift=(0.1, -0.05), zoom=0.5)
    canvas.add(Ellipse(0.7, 0.5, 0.1, 0.1), 1.0)
    rows, columns = np.nonzero(canvas.pixels > 0.5)
    assert columns.mean() / 200 == pytest.approx(0.5 + 0.2 * 0.5 + 0.1, abs=0.01)
    assert rows.mean() / 200 == pytest.approx(0.45, abs=0.01)
    assert np.ptp(columns) / 200 == pytest.approx(0.1, abs=0.02)


def test_fill_replaces_and_add_adds() -> None:
    pixels = np.full((50, 50), 30, dtype=np.float32)
    canvas = Canvas(pixels)
    canvas.fill(Ellipse(0.3, 0.3, 0.15, 0.15), 80)
    canvas.add(Ellipse(0.7, 0.7, 0.15, 0.15), 80)
    assert (pixels[15, 15], pixels[35, 35], pixels[35, 15]) == (80, 110, 30)


@pytest.mark.parametrize("centre", [(-0.05, 0.5), (1.05, 0.5), (0.5, -0.3), (1.4, 1.4)])
def test_shapes_over_the_border_are_cut(centre: tuple[float, float]) -> None:
    canvas = Canvas(_blank(60))
    canvas.add(Ellipse(*centre, 0.1, 0.1), 1.0)
    columns = (np.arange(60) + 0.5) / 60
    distance = np.hypot(columns[None, :] - centre[0], columns[:, None] - centre[1])
    assert (canvas.pixels[distance < 0.08] == 1).all()
    assert (canvas.pixels[distance > 0.12] == 0).all()


def test_png_keeps_levels_and_cuts_the_rest() -> None:
    pixels = np.array([[-5.0, 0.4], [99.6, 300.0]], dtype=np.float32)
    picture = Image.open(io.BytesIO(encode_png(pixels)))
    assert picture.mode == "L"
    assert np.asarray(picture).tolist() == [[0, 0], [100, 255]]
