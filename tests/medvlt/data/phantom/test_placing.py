# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from random import Random

import pytest

from medvlt.data.phantom.placing import place_in_lungs, point_in
from medvlt.data.phantom.scene import LUNGS, ORGANS, Ellipse, heart


def test_spots_lie_inside_and_touch_nothing() -> None:
    rng, lung, ratio = Random(1), LUNGS["left"], 0.45
    outline = heart(ratio)
    for _ in range(500):
        x, y = point_in(rng, lung, 0.06, avoid=outline)
        assert ((x - lung.x) / (lung.width - 0.06)) ** 2 + ((y - lung.y) / (lung.height - 0.06)) ** 2 <= 1.01
        assert ((x - outline.x) / (outline.width + 0.06)) ** 2 + ((y - outline.y) / (outline.height + 0.06)) ** 2 > 1


def test_places_are_uniform() -> None:
    rng = Random(2)
    inner = sum(math.dist(point_in(rng, Ellipse(0, 0, 1.1, 1.1), 0.1), (0, 0)) < 0.5 for _ in range(4000))
    assert inner / 4000 == pytest.approx(0.25, abs=0.03)  # a quarter of the disc


def test_a_spot_larger_than_its_organ_stays_at_the_centre() -> None:
    x, y = point_in(Random(3), ORGANS["kidney"], 0.2)
    assert math.dist((x, y), (ORGANS["kidney"].x, ORGANS["kidney"].y)) <= 0.0101


def test_spots_keep_apart() -> None:
    rng = Random(4)
    for _ in range(50):
        radii = [rng.uniform(0.058, 0.07) for _ in range(4)]
        places = place_in_lungs(rng, radii, heart(0.47))
        for i in range(4):
            for j in range(i):
                assert math.dist(places[i], places[j]) >= radii[i] + radii[j] + 2 / 84
