# SPDX-License-Identifier: Apache-2.0
"""Opening pictures that nobody has vouched for."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from medvlt.data.drops import DropReason, RecordError
from medvlt.types import ImageSource

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Only these are opened: Pillow also knows formats that start other programs (EPS) or hold no picture."""

MAX_ASPECT = 200
"""Longest side over shortest that Qwen2.5-VL's own resizing accepts."""

_ORIENTATION_TAG = 0x0112  # EXIF 2.32, table 4
_TURNS = {  # ImageOps.exif_transpose rewrites all of the EXIF, and raises where some other tag of it is damaged
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS_SIDEWAYS = (5, 6, 7, 8)


def open_image(source: ImageSource) -> Image.Image:
    """Returns the picture upright, in RGB, 8 bits a channel; never the caller's own object.

    - The EXIF orientation is applied, as `datasets` does when it decodes.
    - Transparency is laid over white: what lies under it was never meant to be seen.
    - More than 8 bits a channel are scaled from their own minimum and maximum to 0..255, if they leave that range;
      cutting them off would make a 12-bit scan white. This is no clinical window: prepare windows beforehand.
    - Of several frames the first is taken.

    Args:
        source: File, encoded bytes, or decoded picture.

    Raises:
        RecordError: If it is not there or cannot be decoded.
    """
    with _opened(source) as image:
        turn = _TURNS.get(_orientation(image))  # before decoding, as `image_size` asks: the two must agree
        _decode(image, source)
        rgb = _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def image_size(source: ImageSource) -> tuple[int, int]:
    """Returns width and height in pixels of the upright picture, from the header alone.

    Raises:
        RecordError: If it is not there or has no header that can be read.
    """
    with _opened(source) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in _TURNS_SIDEWAYS else (width, height)


def check_image(source: ImageSource, *, decode: bool, max_pixels: int) -> None:
    """Makes sure that a picture can be used.

    Args:
        source: File, encoded bytes, or decoded picture.
        decode: Whether to read it whole; otherwise only the header is looked at.
        max_pixels: Largest area that may be decoded. A small file can claim a huge one to exhaust memory.

    Raises:
        RecordError: If it is not there, damaged, too large or too thin.
    """
    with _opened(source) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise RecordError(
                DropReason.IMAGE_TOO_LARGE,
                f"{_name(source)} has {width} x {height} pixels, more than {max_pixels}; shrink it or raise the limit",
            )
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise RecordError(
                DropReason.IMAGE_TOO_THIN,
                f"{_name(source)} has {width} x {height} pixels, thinner than 1:{MAX_ASPECT}; crop it",
            )
        if decode:
            _decode(image, source)


def resolve_image(path: Path, root: Path) -> Path:
    """Returns where a picture really lies, symbolic links followed.

    Args:
        path: As the record has it, relative to `root` or absolute.
        root: Folder that the picture must lie in.

    Raises:
        RecordError: If it lies elsewhere, or is no file.
    """
    try:
        real_root = root.resolve()
        real = (real_root / path).resolve()
        inside, is_file = real.is_relative_to(real_root), real.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name with a null in it
        raise RecordError(DropReason.MISSING_IMAGE, f"{str(path)!r:.200} is not a usable path: {error}") from error
    if not inside:
        raise RecordError(
            DropReason.PATH_ESCAPE,
            f"{str(path)!r:.200} leads out of {root}; move the picture inside or set image_root",
        )
    if not is_file:
        raise RecordError(
            DropReason.MISSING_IMAGE, f"no file {str(path)!r:.200} in {root}; set image_root if it is elsewhere"
        )
    return real


@contextmanager
def _opened(source: ImageSource) -> Iterator[Image.Image]:
    """Gives a picture of which only the header has been read, and closes what it opened."""
    if isinstance(source, Image.Image):
        yield source
        return
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except FileNotFoundError as error:
        raise RecordError(DropReason.MISSING_IMAGE, f"no file {source!s:.200}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RecordError(DropReason.IMAGE_TOO_LARGE, f"{_name(source)}: {error}; shrink it") from error
    except Exception as error:  # see _decode
        raise _corrupt(source, error) from error
    with image:
        yield image


def _decode(image: Image.Image, source: ImageSource) -> None:
    try:
        image.load()
    except Exception as error:  # a damaged file makes Pillow's decoders raise almost anything
        raise _corrupt(source, error) from error


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8, that is still to be applied; 1 is upright."""
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    if image.format == "PNG" and "exif" not in image.info:  # looking for it behind the pixels would decode them
        return 1
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 255:
        values = (values - low) * (255 / max(high - low, 1e-9))
    return Image.fromarray(np.round(values).astype(np.uint8))


def _corrupt(source: ImageSource, error: Exception) -> RecordError:
    return RecordError(
        DropReason.CORRUPT_IMAGE, f"{_name(source)} cannot be decoded ({type(error).__name__}: {error!s:.120})"
    )


def _name(source: ImageSource) -> str:
    return str(source) if isinstance(source, Path) else "the picture"
