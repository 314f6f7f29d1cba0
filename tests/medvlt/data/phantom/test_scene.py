# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from medvlt.data.phantom.scene import LUNGS, Ellipse, heart


@pytest.mark.parametrize(
    ("point", "margin", "inside"),
    [
        ((0.5, 0.5), 0.0, True),
        ((0.69, 0.5), 0.0, True),
        ((0.71, 0.5), 0.0, False),
        ((0.5, 0.61), 0.0, False),
        ((0.69, 0.5), 0.05, False),
        ((0.72, 0.5), -0.05, True),
        ((0.5, 0.5), 0.3, False),
    ],
)
def test_contains(point: tuple[float, float], margin: float, inside: bool) -> None:
    assert Ellipse(0.5, 0.5, 0.2, 0.1).contains(*point, margin=margin) is inside


def test_the_right_lung_is_on_the_left_of_the_picture() -> None:
    assert LUNGS["right"].x < 0.5 < LUNGS["left"].x


@pytest.mark.parametrize("ratio", [0.4, 0.5, 0.7])
def test_the_heart_has_the_width_its_ratio_says(ratio: float) -> None:
    chest = LUNGS["left"].x + LUNGS["left"].width - (LUNGS["right"].x - LUNGS["right"].width)
    assert 2 * heart(ratio).width / chest == pytest.approx(ratio)
    assert heart(ratio).x > 0.5  # more of it on the patient's left
