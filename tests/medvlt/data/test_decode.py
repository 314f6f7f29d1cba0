# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from medvlt.data.decode import check_image, image_size, open_image, resolve_image
from medvlt.data.drops import DropReason, RecordError


def encode(image: Image.Image, form: str = "PNG", exif: Image.Exif | None = None) -> bytes:
    buffer = io.BytesIO()
    if exif is None:
        image.save(buffer, form)
    else:
        image.save(buffer, form, exif=exif)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def claimed(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT" + zlib.compress(b"\0" * 99)
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def reason_of(data: bytes | Path, *, decode: bool = True, max_pixels: int = 64_000_000) -> DropReason | None:
    try:
        check_image(data, decode=decode, max_pixels=max_pixels)
    except RecordError as error:
        return error.reason
    return None


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_modes_become_rgb(mode: str) -> None:
    image = noise(8, 6).convert(mode)
    opened = open_image(encode(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"))
    assert (opened.mode, opened.size) == ("RGB", (8, 6))
    assert np.abs(np.asarray(opened, int) - np.asarray(image.convert("RGB"), int)).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))  # black under full transparency
    opened = open_image(encode(image.quantize(4) if mode == "P" else image.convert(mode)))
    assert [opened.getpixel((0, 0)), opened.getpixel((1, 0))] == [(0, 0, 0), (255, 255, 255)]


def test_deep_scans_are_scaled() -> None:
    scan = np.array([[100, 1100, 2100, 4100]], dtype=np.uint16)
    grey = np.asarray(open_image(encode(Image.fromarray(scan))))[0, :, 0]
    assert grey.tolist() == [0, 64, 128, 255]


def test_deep_files_with_shallow_values_stay() -> None:
    scan = np.array([[0, 7, 200]], dtype=np.uint16)
    assert np.asarray(open_image(encode(Image.fromarray(scan))))[0, :, 0].tolist() == [0, 7, 200]
    flat = np.full((2, 2), 3000, dtype=np.uint16)
    assert np.asarray(open_image(encode(Image.fromarray(flat)))).max() == 0


def test_floats_are_scaled() -> None:
    values = np.array([[-1.0, 0.0, 1.0, np.nan]], dtype=np.float32)
    assert np.asarray(open_image(Image.fromarray(values)))[0, :, 0].tolist() == [0, 128, 255, 128]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noise(24, 16), form, exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert open_image(data).tobytes() == expected.tobytes()
    assert image_size(data) == expected.size == ((24, 16) if orientation < 5 else (16, 24))


def test_orientation_beside_damaged_tags() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "text"
    data = encode(noise(24, 16), "JPEG", exif)
    damaged = data.replace(b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02", 1)  # now the text is the width of the picture
    with Image.open(io.BytesIO(damaged)) as image, pytest.raises(Exception):  # noqa: B017, PT011 - Pillow's own
        ImageOps.exif_transpose(image)
    assert image_size(damaged) == open_image(damaged).size == (16, 24)


def test_orientation_behind_the_pixels_is_not_looked_for() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(noise(24, 16), exif=exif)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4])
    late = data[:start] + data[end:-12] + data[start:end] + data[-12:]  # the end chunk has 12 bytes
    assert image_size(late) == open_image(late).size == (24, 16)  # the prompt is made from one, the pixels by the other


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_callers_picture_is_left_alone(orientation: int) -> None:
    image = noise(4, 4)
    image.getexif()[0x0112] = orientation
    opened = open_image(image)
    opened.putpixel((0, 0), (1, 2, 3))
    assert image.tobytes() == noise(4, 4).tobytes()


def test_damage_behind_the_header() -> None:
    data = encode(noise(64, 64))[:2000]
    assert reason_of(data) == DropReason.CORRUPT_IMAGE
    assert reason_of(data, decode=False) is None
    assert image_size(data) == (64, 64)
    with pytest.raises(RecordError):
        open_image(data)


@pytest.mark.parametrize("data", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_picture(data: bytes) -> None:
    assert reason_of(data, decode=False) == DropReason.CORRUPT_IMAGE
    with pytest.raises(RecordError):
        image_size(data)


def test_bombs_are_refused_unread() -> None:
    assert reason_of(claimed(9000, 9000)) == DropReason.IMAGE_TOO_LARGE
    assert reason_of(claimed(60000, 60000)) == DropReason.IMAGE_TOO_LARGE  # beyond Pillow's own limit
    assert reason_of(encode(noise(100, 100)), max_pixels=9_999) == DropReason.IMAGE_TOO_LARGE
    assert reason_of(encode(noise(100, 100)), max_pixels=10_000) is None


def test_thin_pictures_are_refused() -> None:
    assert reason_of(encode(noise(1, 200))) is None
    assert reason_of(encode(noise(1, 201))) == DropReason.IMAGE_TOO_THIN


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert reason_of(path) == DropReason.MISSING_IMAGE
    path.write_bytes(encode(noise(5, 4)))
    assert reason_of(path) is None
    assert (image_size(path), open_image(path).size) == ((5, 4), (5, 4))


def test_paths_stay_inside_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "in.png").touch()
    (tmp_path / "out.png").touch()
    (root / "link.png").symlink_to(tmp_path / "out.png")
    (root / "inner.png").symlink_to(root / "sub" / "in.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    inside = root.resolve() / "sub" / "in.png"
    for path in ("sub/in.png", "sub/../sub/in.png", str(inside), "inner.png"):
        assert resolve_image(Path(path), root) == inside
    for path in ("../out.png", str(tmp_path / "out.png"), "link.png", "/etc/passwd", "../root2/x.png"):
        with pytest.raises(RecordError) as caught:
            resolve_image(Path(path), root)
        assert caught.value.reason == DropReason.PATH_ESCAPE, path
    for path in ("sub", "none.png", "loop.png", "a\0b.png", "x" * 5000):
        with pytest.raises(RecordError) as caught:
            resolve_image(Path(path), root)
        assert caught.value.reason == DropReason.MISSING_IMAGE, path
