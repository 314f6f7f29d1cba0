# SPDX-License-Identifier: Apache-2.0
"""Bodies without disease: what every picture of a patient has in common."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np

from medvlt.data.phantom.canvas import Canvas, Pixels
from medvlt.data.phantom.scene import LUNGS, ORGANS, Ellipse, View

# Five rows of the letter R, one bit per pixel.
_MARKER = (0b111, 0b101, 0b110, 0b101, 0b101)


@dataclass(frozen=True, slots=True)
class Body:
    """A patient in front of the camera.

    Attributes:
        pixels: Grey levels, (side, side), not to be changed.
        shift: Of the body, share of the side.
        zoom: Of the body.
    """

    pixels: Pixels
    shift: tuple[float, float]
    zoom: float

    def canvas(self) -> Canvas:
        """Returns a copy to paint on, in the coordinates of this body."""
        return Canvas(self.pixels.copy(), shift=self.shift, zoom=self.zoom)


@lru_cache(maxsize=96)
def body(view: View, patient: int, side: int) -> Body:
    """Returns one of the bodies of a view; they are kept, because drawing one costs as much as ten pictures.

    Args:
        view: Kind of picture.
        patient: Which body.
        side: Side of the picture, pixels.
    """
    rng = Random(f"{view} {patient}")
    shift = (rng.uniform(-0.015, 0.015), rng.uniform(-0.015, 0.015))
    zoom = rng.uniform(0.96, 1.02)
    canvas = Canvas(np.full((side, side), 10, dtype=np.float32), shift=shift, zoom=zoom)
    {"chest": _chest, "abdomen": _abdomen, "axial": _axial}[view](canvas, rng)
    _texture(canvas, rng)
    _marker(canvas.pixels)
    return Body(canvas.pixels, shift, zoom)


def _chest(canvas: Canvas, rng: Random) -> None:
    """A frontal film of the chest: dense tissue bright, air dark. The heart is added per picture."""
    tissue = rng.uniform(120, 135)
    canvas.fill(Ellipse(0.5, 0.02, 0.11, 0.16), tissue - 15)  # neck
    canvas.fill(Ellipse(0.5, 0.66, 0.47, 0.56), tissue, softness=0.03)  # trunk
    canvas.fill(Ellipse(0.5, 0.27, 0.45, 0.14), tissue, softness=0.03)  # shoulders
    lung = rng.uniform(42, 55)
    for ellipse in LUNGS.values():
        canvas.fill(ellipse, lung, softness=0.03)
    for number in range(6):  # ribs slope down from the spine
        y = 0.20 + 0.105 * number + rng.uniform(-0.008, 0.008)
        for direction in (-1, 1):
            canvas.add(Ellipse(0.5 + direction * 0.22, y, 0.19, 0.012), 11, angle=direction * 0.22, softness=0.02)
    for direction in (-1, 1):
        canvas.add(Ellipse(0.5 + direction * 0.19, 0.165, 0.17, 0.014), 22, angle=-direction * 0.12)  # clavicle
        canvas.fill(Ellipse(0.5 + direction * 0.21, 0.87, 0.20, 0.14), tissue + 12, softness=0.03)  # diaphragm
    canvas.fill(Ellipse(0.5, 0.45, 0.065, 0.40), tissue + 15, softness=0.04)  # mediastinum
    for number in range(9):
        canvas.add(Ellipse(0.5, 0.12 + 0.095 * number, 0.032, 0.032), 12, softness=0.02)  # vertebrae


def _abdomen(canvas: Canvas, rng: Random) -> None:
    """A frontal film of the abdomen: spine in the midline, ribs above, the wings of the pelvis below, bowel gas."""
    tissue = rng.uniform(82, 95)
    canvas.fill(Ellipse(0.5, 0.5, 0.44, 0.62), tissue, softness=0.04)
    canvas.add(Ellipse(0.31, 0.24, 0.19, 0.18), 10, softness=0.06)  # liver
    for number in range(3):
        for direction in (-1, 1):
            centre = Ellipse(0.5 + direction * 0.24, 0.06 + 0.07 * number, 0.20, 0.012)
            canvas.add(centre, 14, angle=direction * 0.35, softness=0.02)
    for direction in (-1, 1):  # wing of the pelvis
        canvas.add(Ellipse(0.5 + direction * 0.25, 0.91, 0.17, 0.10), 32, angle=direction * -0.5, softness=0.04)
    canvas.add(Ellipse(0.5, 0.97, 0.12, 0.08), 28, softness=0.04)  # sacrum
    for number in range(8):
        canvas.add(Ellipse(0.5, 0.05 + 0.115 * number, 0.05, 0.048), 42, softness=0.02)  # vertebrae
    for _ in range(5):
        gas = Ellipse(rng.uniform(0.25, 0.75), rng.uniform(0.35, 0.72), rng.uniform(0.03, 0.06), 0.03)
        canvas.add(gas, -14, angle=rng.uniform(-0.8, 0.8), softness=0.03)


def _axial(canvas: Canvas, rng: Random) -> None:
    """An axial CT slice of the upper abdomen, seen from the feet: fat dark, organs mid-grey, bone bright."""
    organ = rng.uniform(118, 130)
    canvas.add(Ellipse(0.5, 1.06, 0.48, 0.14), 30)  # table
    canvas.fill(Ellipse(0.5, 0.52, 0.48, 0.41), 60)  # skin and fat
    canvas.fill(Ellipse(0.5, 0.52, 0.45, 0.375), 95, softness=0.02)  # muscle
    canvas.fill(Ellipse(0.5, 0.51, 0.42, 0.34), 68, softness=0.02)  # fat inside
    canvas.fill(Ellipse(0.62, 0.33, 0.13, 0.10), organ - 22, angle=0.3)  # stomach
    canvas.fill(Ellipse(0.62, 0.29, 0.07, 0.035), 18)  # and its air
    canvas.fill(Ellipse(0.48, 0.45, 0.09, 0.045), organ - 12, angle=-0.3)  # pancreas
    canvas.fill(Ellipse(0.33, 0.70, 0.075, 0.085), organ + 14)  # right kidney
    for name in ("liver", "spleen", "kidney"):
        canvas.fill(ORGANS[name], organ + (14 if name == "kidney" else 0), softness=0.02)
    canvas.fill(ORGANS["spine"], 162, softness=0.02)
    canvas.fill(Ellipse(0.49, 0.80, 0.035, 0.03), 90)  # canal
    canvas.fill(Ellipse(0.49, 0.865, 0.022, 0.045), 150)  # spinous process
    canvas.fill(Ellipse(0.53, 0.575, 0.036, 0.036), organ + 22)  # aorta
    canvas.fill(Ellipse(0.44, 0.575, 0.042, 0.032), organ + 8)  # vena cava


def _texture(canvas: Canvas, rng: Random) -> None:
    """Adds broad, faint clouds, brighter by at most about 6 levels."""
    for _ in range(10):
        cloud = Ellipse(rng.random(), rng.random(), rng.uniform(0.08, 0.2), rng.uniform(0.08, 0.2))
        canvas.add(cloud, rng.uniform(-4, 4), angle=rng.uniform(-1.5, 1.5), softness=0.12)


def _marker(pixels: Pixels) -> None:
    """Writes an R into the upper left corner: the patient's right is on that side."""
    scale = max(round(pixels.shape[0] / 84), 1)
    for row, bits in enumerate(_MARKER):
        for column in range(3):
            if bits >> (2 - column) & 1:
                top, left = (row + 3) * scale, (column + 3) * scale
                pixels[top : top + scale, left : left + scale] = 190
