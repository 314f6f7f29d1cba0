# SPDX-License-Identifier: Apache-2.0
"""What a drawn picture shows. Plain numbers, no pixels.

Coordinates are shares of the side of the square picture, x to the right, y down, before the slight shift and zoom that
every patient has. Pictures follow the radiological convention: the patient's right is at the left of the picture, which
an "R" in the upper left corner recalls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

View: TypeAlias = Literal["chest", "abdomen", "axial"]
"""A frontal chest film, a frontal abdominal film, or an axial CT slice of the upper abdomen."""

NUM_PATIENTS = 24
"""Different bodies per view."""


@dataclass(frozen=True, slots=True)
class Ellipse:
    """A region.

    Attributes:
        x: Centre, share of the side.
        y: Centre, share of the side.
        width: Half-axis along x, share of the side.
        height: Half-axis along y, share of the side.
    """

    x: float
    y: float
    width: float
    height: float

    def contains(self, x: float, y: float, margin: float = 0.0) -> bool:
        """Says whether a point lies inside, at least about `margin` away from the border (outside it if negative)."""
        across, along = self.width - margin, self.height - margin
        if across <= 0 or along <= 0:
            return False
        return ((x - self.x) / across) ** 2 + ((y - self.y) / along) ** 2 <= 1


@dataclass(frozen=True, slots=True)
class Lesion:
    """A round spot.

    Attributes:
        x: Centre, share of the side.
        y: Centre, share of the side.
        radius: Share of the side.
        contrast: Grey levels of 255 above (positive) or below (negative) what it lies on.
    """

    x: float
    y: float
    radius: float
    contrast: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that a picture is drawn from.

    Attributes:
        view: Kind of picture.
        patient: Which body, in [0, NUM_PATIENTS).
        lesions: Spots, none overlapping another.
        heart_ratio: Width of the heart / inner width of the chest; drawn in chest films only.
        noise_sd: Standard deviation of the noise, grey levels of 255.
        noise_seed: Seed of the noise.
    """

    view: View
    patient: int
    lesions: tuple[Lesion, ...]
    heart_ratio: float
    noise_sd: float
    noise_seed: int


# Where things lie: the drawing and the questions share these. "right" and "left" are the patient's.
LUNGS = {"right": Ellipse(0.285, 0.44, 0.165, 0.295), "left": Ellipse(0.715, 0.44, 0.165, 0.295)}
CHEST_WIDTH = 2 * (LUNGS["left"].x + LUNGS["left"].width - 0.5)
"""Inner width of the chest, from the outer border of one lung to that of the other."""

ORGANS = {
    "liver": Ellipse(0.285, 0.44, 0.185, 0.20),
    "spleen": Ellipse(0.80, 0.50, 0.10, 0.16),
    "kidney": Ellipse(0.65, 0.70, 0.075, 0.085),
    "spine": Ellipse(0.49, 0.70, 0.085, 0.085),
}
"""Organs of the axial slice that can hold a lesion. The right kidney is drawn too, and never asked for."""


def heart(ratio: float) -> Ellipse:
    """Returns the outline of the heart: a third of its width lies on the patient's right of the midline."""
    width = ratio * CHEST_WIDTH
    return Ellipse(0.5 + width / 6, 0.63, width / 2, 0.14)
