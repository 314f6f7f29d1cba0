# SPDX-License-Identifier: Apache-2.0
"""A grey picture on which soft-edged ellipses are painted."""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvlt.data.phantom.scene import Ellipse

Pixels = NDArray[np.float32]


@lru_cache(maxsize=8)
def _centres(side: int) -> Pixels:
    """Returns the coordinates of the pixel centres along one axis, (side,), shares of the side."""
    return ((np.arange(side, dtype=np.float32) + 0.5) / side).astype(np.float32)


class Canvas:
    """Grey levels, (side, side), painted in coordinates that are shares of the side.

    Args:
        pixels: Levels to paint on, 0 to 255; changed in place.
        shift: The body moves by this much along x and y, share of the side.
        zoom: The body grows by this factor about the centre.
    """

    def __init__(self, pixels: Pixels, *, shift: tuple[float, float] = (0.0, 0.0), zoom: float = 1.0) -> None:
        self.pixels = pixels
        self.side = pixels.shape[0]
        self.shift = shift
        self.zoom = zoom

    def fill(self, shape: Ellipse, level: float, *, angle: float = 0.0, softness: float = 0.012) -> None:
        """Paints over the ellipse with `level`."""
        window, cover = self._cover(shape, angle, softness)
        patch = self.pixels[window]
        patch += cover * (level - patch)

    def add(self, shape: Ellipse, amount: float, *, angle: float = 0.0, softness: float = 0.012) -> None:
        """Adds `amount` to the level inside the ellipse, as tissue in the path of the rays does."""
        window, cover = self._cover(shape, angle, softness)
        self.pixels[window] += amount * cover

    def _cover(self, shape: Ellipse, angle: float, softness: float) -> tuple[tuple[slice, slice], Pixels]:
        """Returns a window around the ellipse and how far each of its pixels is covered, 0 to 1.

        With r the elliptic radius of a pixel (1 on the border) its distance to the border is about (1 - r) times the
        shorter half-axis; the cover rises linearly over `softness` (share of the side, at least a pixel) around it.

        Args:
            shape: The ellipse.
            angle: Turns it clockwise, radians.
            softness: Width of the border, share of the side.
        """
        x = 0.5 + (shape.x - 0.5) * self.zoom + self.shift[0]
        y = 0.5 + (shape.y - 0.5) * self.zoom + self.shift[1]
        width, height = shape.width * self.zoom, shape.height * self.zoom
        soft = max(softness, 1 / self.side)
        reach = (max(width, height) if angle else 0.0, soft)
        columns = self._window(x, max(width, reach[0]) + reach[1])
        rows = self._window(y, max(height, reach[0]) + reach[1])
        centres = _centres(self.side)
        across, along = centres[columns][None, :] - x, centres[rows][:, None] - y
        if angle:
            cosine, sine = math.cos(angle), math.sin(angle)
            across, along = across * cosine + along * sine, along * cosine - across * sine
        radius = np.sqrt((across / width) ** 2 + (along / height) ** 2)
        cover = np.clip((1 - radius) * (min(width, height) / soft) + 0.5, 0, 1)
        return (rows, columns), cover.astype(np.float32, copy=False)

    def _window(self, centre: float, reach: float) -> slice:
        return slice(
            max(math.floor((centre - reach) * self.side), 0), max(math.ceil((centre + reach) * self.side) + 1, 0)
        )


def encode_png(pixels: Pixels) -> bytes:
    """Returns the picture as an 8-bit grey PNG file in memory; levels are rounded and cut to 0..255."""
    grey = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, format="PNG", compress_level=1)
    return file.getvalue()
