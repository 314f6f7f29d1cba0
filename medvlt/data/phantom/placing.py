# SPDX-License-Identifier: Apache-2.0
"""Where lesions lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from medvlt.data.phantom.scene import LUNGS, Ellipse

_GAP = 0.03
"""Least distance between the borders of two nodules, share of the side; two pixels of 84."""


def point_in(rng: Random, region: Ellipse, radius: float, avoid: Ellipse | None = None) -> tuple[float, float]:
    """Returns a centre for a spot inside `region`, uniform over the places that fit.

    Args:
        rng: Stream.
        region: Organ that holds the spot.
        radius: Of the spot, share of the side; a spot as large as the organ lies near its centre.
        avoid: Must not be touched.
    """
    width, height = max(region.width - radius, 0.01), max(region.height - radius, 0.01)
    while True:
        angle, depth = rng.uniform(0, 2 * math.pi), math.sqrt(rng.random())
        x = round(region.x + depth * width * math.cos(angle), 4)
        y = round(region.y + depth * height * math.sin(angle), 4)
        if avoid is None or not avoid.contains(x, y, margin=-radius):
            return x, y


def place_in_lungs(rng: Random, radii: Sequence[float], avoid: Ellipse) -> list[tuple[float, float]]:
    """Returns centres for spots of these radii in either lung, none touching another or `avoid`.

    All spots are drawn anew when two touch: uniform over the arrangements that fit.
    """
    lungs = tuple(LUNGS.values())
    while True:
        places = [point_in(rng, lungs[rng.randrange(2)], radius, avoid) for radius in radii]
        if all(
            math.dist(places[i], places[j]) >= radii[i] + radii[j] + _GAP for i in range(len(radii)) for j in range(i)
        ):
            return places
