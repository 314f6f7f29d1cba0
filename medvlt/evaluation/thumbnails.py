# SPDX-License-Identifier: Apache-2.0
"""Small copies of pictures for reports."""

from __future__ import annotations

import io

from PIL import Image

from medvlt.data.decode import open_image
from medvlt.data.drops import RecordError
from medvlt.types import ImageSource

LONGER_SIDE = 320
"""In pixels; smaller pictures keep their size."""

QUALITY = 80
"""Of JPEG, 1 to 95."""


def thumbnail(picture: ImageSource) -> bytes | None:
    """Returns a picture as a small JPEG, upright, without metadata; None if it cannot be decoded."""
    try:
        image = open_image(picture)
    except RecordError:
        return None  # its completions are errors, and say why
    image.thumbnail((LONGER_SIDE, LONGER_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()
