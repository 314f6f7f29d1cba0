# SPDX-License-Identifier: Apache-2.0
"""Pictures: opened safely, and sized once, so that the trainer and every engine see the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from medvlt.data.decode import MAX_ASPECT, open_image
from medvlt.errors import ConfigurationError
from medvlt.types import ImageSource

TOKEN_SIDE = 28
"""Side in pixels of the square that becomes one token: patches of 14, merged 2 by 2."""


@dataclass(frozen=True)
class ImageLimits:
    """Bounds on the area of a picture after sizing; the defaults are those of Qwen2.5-VL and of the reference.

    Args:
        min_pixels: Smallest area in pixels; one token is 28 x 28 = 784 of them.
        max_pixels: Largest area in pixels. Some grid of tokens must lie between the two; the wider the gap, the less
            an aspect ratio has to give.
    """

    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 16_384 * 28 * 28

    def __post_init__(self) -> None:
        if self.min_pixels < 1 or not any(True for _ in _grids(self)):
            raise ConfigurationError(
                "expected 1 <= min_pixels <= rows * columns * 784 <= max_pixels for some grid of tokens (28 x 28 pixels"
                f" each, at most 1:{MAX_ASPECT}), got min_pixels={self.min_pixels}, max_pixels={self.max_pixels}; give "
                "both as multiples of 784 with room between them"
            )

    @property
    def min_tokens(self) -> int:
        """Fewest tokens that a picture may become."""
        return -(-self.min_pixels // TOKEN_SIDE**2)

    @property
    def max_tokens(self) -> int:
        """Most tokens that a picture may become."""
        return self.max_pixels // TOKEN_SIDE**2


def target_size(width: int, height: int, limits: ImageLimits) -> tuple[int, int]:
    """Returns the width and height in pixels to which a picture is resized.

    Both are multiples of 28. A side s becomes 28 * round(s / 28); if the area then leaves the limits, both sides are
    first scaled by sqrt(limit / area) and rounded inwards (transformers, `qwen2_vl.smart_resize`). For a very thin
    picture in tight limits that rule overshoots, and a processor that applied it again would resize again; there the
    grid inside the limits with the nearest aspect ratio is taken. So the rule changes nothing about the result.

    Args:
        width: Width of the upright picture, in pixels.
        height: Height, in pixels. The longer side is at most 200 times the shorter.
        limits: Bounds on the area.
    """
    if not 1 <= max(width, height) <= MAX_ASPECT * min(width, height):
        raise ValueError(f"sides must be above 0 and at most 1:{MAX_ASPECT}, got {width} x {height}")
    size = _round_to_grid(width, height, limits)
    return size if size == _round_to_grid(*size, limits) else _nearest_grid(width / height, limits)


def image_token_count(width: int, height: int, limits: ImageLimits) -> int:
    """Returns how many tokens a picture of this size becomes: target width / 28 times target height / 28."""
    target_width, target_height = target_size(width, height, limits)
    return target_width * target_height // TOKEN_SIDE**2


def prepare_image(source: ImageSource, limits: ImageLimits) -> Image.Image:
    """Returns the picture as the model is to see it: upright RGB, resized once, bicubic.

    A Qwen2.5-VL processor with the same limits leaves its size alone.

    Raises:
        RecordError: If the picture cannot be used.
    """
    image = open_image(source)
    size = target_size(image.width, image.height, limits)
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _round_to_grid(width: int, height: int, limits: ImageLimits) -> tuple[int, int]:
    side = TOKEN_SIDE
    columns, rows = round(width / side), round(height / side)
    if columns * rows * side**2 > limits.max_pixels:
        shrink = math.sqrt(width * height / limits.max_pixels)
        columns = max(1, math.floor(width / shrink / side))
        rows = max(1, math.floor(height / shrink / side))
    elif columns * rows * side**2 < limits.min_pixels:
        grow = math.sqrt(limits.min_pixels / (width * height))
        columns = math.ceil(width * grow / side)
        rows = math.ceil(height * grow / side)
    return columns * side, rows * side


def _nearest_grid(aspect: float, limits: ImageLimits) -> tuple[int, int]:
    """Returns the size within the limits whose aspect ratio is nearest by factor; of equals, the largest."""
    best = (math.inf, 0, 0, 0)
    for rows, fewest, most in _grids(limits):
        columns = min(max(round(aspect * rows), fewest), most)
        distance = abs(math.log(columns / rows / aspect))
        best = min(best, (distance, -columns * rows, columns, rows))
    return best[2] * TOKEN_SIDE, best[3] * TOKEN_SIDE


def _grids(limits: ImageLimits) -> Iterator[tuple[int, int, int]]:
    """Yields (rows, fewest columns, most columns) for every number of rows that the limits allow."""
    for rows in range(1, limits.max_tokens + 1):
        fewest = max(-(-limits.min_tokens // rows), -(-rows // MAX_ASPECT))
        most = min(limits.max_tokens // rows, rows * MAX_ASPECT)
        if fewest <= most:
            yield rows, fewest, most
