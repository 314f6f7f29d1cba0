# SPDX-License-Identifier: Apache-2.0
"""From a scene to a picture file in memory."""

from __future__ import annotations

import numpy as np

from medvlt.data.phantom.anatomy import body
from medvlt.data.phantom.canvas import Pixels, encode_png
from medvlt.data.phantom.scene import Ellipse, Scene, heart


def draw_scene(scene: Scene, side: int) -> Pixels:
    """Returns the grey levels of a scene, (side, side), not yet cut to 0..255.

    Args:
        scene: What to draw.
        side: Pixels.
    """
    canvas = body(scene.view, scene.patient, side).canvas()
    if scene.view == "chest":
        canvas.fill(heart(scene.heart_ratio), 150, angle=0.0, softness=0.03)
    for lesion in scene.lesions:
        spot = Ellipse(lesion.x, lesion.y, lesion.radius, lesion.radius)
        canvas.add(spot, lesion.contrast, softness=0.02)
    noise = np.random.Generator(np.random.PCG64(scene.noise_seed)).standard_normal((side, side), dtype=np.float32)
    canvas.pixels += scene.noise_sd * noise
    return canvas.pixels


def render(scene: Scene, side: int) -> bytes:
    """Returns a scene as a grey PNG file.

    Args:
        scene: What to draw.
        side: Pixels, a multiple of 28 so that the model's own resizing leaves it alone.
    """
    return encode_png(draw_scene(scene, side))
