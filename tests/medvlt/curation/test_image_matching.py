# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from medvlt.curation import image_matching
from medvlt.curation.image_matching import Picture, PictureIndex, PictureRule, agreement, trim
from medvlt.data.decode import open_image
from medvlt.errors import ConfigurationError

Turn = Image.Transpose


def drawing(seed: int) -> Image.Image:
    """A dark body with soft and sharp structures, like a slice."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (320, 280))
    draw = ImageDraw.Draw(image)
    draw.ellipse((12, 9, 306, 270), fill=(60, 60, 60))
    for _ in range(40):
        x, y = rng.integers(30, 260, 2)
        w, h = rng.integers(6, 50, 2)
        grey = int(rng.integers(20, 255))
        draw.ellipse((x, y, x + w, y + h), fill=(grey, grey, grey))
    return image


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def pictures(images: list[Image.Image]) -> list[Picture]:
    return [Picture.of(None, image) for image in images]


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    return [drawing(seed) for seed in range(8)]


@pytest.fixture(scope="module")
def index(drawings: list[Image.Image]) -> PictureIndex:
    return PictureIndex(pictures(drawings))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": lambda image: jpeg(image, 30),
    "half size": lambda image: image.resize((160, 140), Image.Resampling.BICUBIC),
    "other aspect": lambda image: image.resize((600, 400), Image.Resampling.BICUBIC),
    "quarter turn": lambda image: image.transpose(Turn.ROTATE_90),
    "three quarters": lambda image: image.transpose(Turn.ROTATE_270),
    "half turn": lambda image: image.transpose(Turn.ROTATE_180),
    "mirrored": lambda image: image.transpose(Turn.FLIP_LEFT_RIGHT),
    "transposed": lambda image: image.transpose(Turn.TRANSPOSE),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "tilted": lambda image: image.rotate(4, Image.Resampling.BICUBIC),
    "white border": lambda image: ImageOps.expand(image, 25, "white"),
    "cropped": lambda image: image.crop((32, 20, 288, 252)),
    "cropped on one side": lambda image: image.crop((0, 0, 275, 280)),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_picture_is_found_with_its_original_alone(
    change: Callable[[Image.Image], Image.Image], drawings: list[Image.Image], index: PictureIndex
) -> None:
    matches = index.find(pictures([change(image) for image in drawings[:4]]))
    assert [(match.train, match.evaluation) for match in matches] == [(i, i) for i in range(4)]


def test_an_evaluation_picture_may_be_the_cut_one(drawings: list[Image.Image]) -> None:
    cut = PictureIndex(pictures([CHANGES["cropped"](image) for image in drawings]))
    assert [(match.train, match.evaluation) for match in cut.find(pictures(drawings))] == [(i, i) for i in range(8)]


def test_kinds_are_told_apart(drawings: list[Image.Image], tmp_path: Path) -> None:
    first, second, third = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.jpg"
    drawings[0].save(first)
    drawings[0].save(second, compress_level=1)
    drawings[0].save(third, quality=80)
    shelf, *queries = (Picture.of(path.read_bytes(), open_image(path)) for path in (first, first, second, third))
    matches = PictureIndex([shelf]).find(queries)
    assert [match.kind for match in matches] == ["same_picture_bytes", "same_picture_pixels", "near_picture"]
    assert [match.agreement for match in matches[:2]] == [1.0, 1.0]


def test_pictures_without_a_file_are_the_same_by_their_pixels(drawings: list[Image.Image], tmp_path: Path) -> None:
    drawings[0].save(tmp_path / "a.png")
    filed = Picture.of((tmp_path / "a.png").read_bytes(), open_image(tmp_path / "a.png"))
    bare = pictures(drawings[:1])[0]
    assert bare.md5 is None
    for one, other in ((bare, bare), (bare, filed), (filed, bare)):
        assert [match.kind for match in PictureIndex([one]).find([other])] == ["same_picture_pixels"]


def test_hashing_in_chunks_changes_nothing(drawings: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    squares = image_matching._stack(pictures(drawings))
    whole = image_matching._window_hashes(squares)
    monkeypatch.setattr(image_matching, "_HASHED", 3)
    assert torch.allclose(image_matching._window_hashes(squares), whole, atol=1e-5)


def test_an_index_holds_as_much_as_it_says(index: PictureIndex) -> None:
    held = sum(tensor.nbytes for tensor in (index._squares, index._hashes)) / len(index)
    assert held == pytest.approx(28_000, rel=0.02)


def test_pictures_of_one_grey_match_by_pixels_only() -> None:
    blank = [Image.new("RGB", (64, 64), grey) for grey in ("black", "white")]
    matches = PictureIndex(pictures(blank)).find(pictures([*blank, Image.new("RGB", (65, 64), "black")]))
    assert [(match.train, match.evaluation, match.kind) for match in matches] == [
        (0, 0, "same_picture_pixels"),
        (1, 1, "same_picture_pixels"),
    ]


def test_no_pictures_on_either_side(drawings: list[Image.Image], index: PictureIndex) -> None:
    assert index.find([]) == []
    assert PictureIndex([]).find(pictures(drawings[:1])) == []


def test_looking_up_together_or_alone_is_the_same(drawings: list[Image.Image], index: PictureIndex) -> None:
    queries = pictures([CHANGES["tilted"](image) for image in drawings[:3]])
    alone = [
        (number, match.evaluation, match.agreement) for number, one in enumerate(queries) for match in index.find([one])
    ]
    together = [(match.train, match.evaluation, match.agreement) for match in index.find(queries)]
    assert [pair[:2] for pair in together] == [pair[:2] for pair in alone]
    assert [pair[2] for pair in together] == pytest.approx([pair[2] for pair in alone], abs=1e-3)


def test_agreement_of_a_square_with_itself_is_one_whatever_its_brightness(drawings: list[Image.Image]) -> None:
    squares = torch.stack([torch.from_numpy(picture.square.copy()).float() for picture in pictures(drawings[:3])])
    start = torch.eye(2, 3).expand(3, 1, 2, 3)
    assert agreement(squares, squares, start).tolist() == pytest.approx([1.0] * 3, abs=1e-3)
    assert agreement(squares, 0.5 * squares + 30, start).min() > 0.95
    assert agreement(squares, squares.roll(1, 0), start).max() < 0.7


def test_signs_of_the_hash_are_those_of_a_cosine_transform() -> None:
    from scipy.fft import dctn

    greys = np.random.default_rng(0).uniform(0, 255, (64, 64)).astype(np.float32)
    small = greys.reshape(32, 2, 32, 2).mean((1, 3))  # a window that is the whole square halves it
    expected = np.sign(dctn(small)[:8, :8].ravel()[1:])
    hashed = image_matching._window_hashes(torch.from_numpy(greys)[None])[0, 0]
    assert np.array_equal(np.sign(hashed.numpy()), expected)
    assert float(hashed.norm()) == pytest.approx(1.0, abs=1e-5)


def test_trim_takes_uniform_margins_and_leaves_an_empty_picture_alone() -> None:
    image = Image.new("L", (50, 40), 250)
    image.paste(Image.effect_noise((20, 15), 60), (7, 9))
    assert trim(image).size == (20, 15)
    assert trim(Image.new("L", (50, 40), 3)).size == (50, 40)


def test_radiographs_of_different_patients_do_not_match(shared_data: Path) -> None:
    # chest films that are alike at a glance, and the two of VQA-RAD with the highest agreement (0.73) among them
    names = ("synpic17145", "synpic29048", "synpic18250", "synpic32081", "synpic17738", "synpic100228")
    films = [open_image(shared_data / "vqa_images" / "vqa_rad" / f"{name}.jpg") for name in names]
    index = PictureIndex(pictures(films))
    assert [(m.train, m.evaluation) for m in index.find(pictures(films))] == [(i, i) for i in range(6)]
    changed = [jpeg(film.resize((300, 330)), 60).transpose(Turn.FLIP_LEFT_RIGHT) for film in films]
    assert [(m.train, m.evaluation) for m in index.find(pictures(changed))] == [(i, i) for i in range(6)]


@pytest.mark.parametrize("wrong", [{"agreement": 0.0}, {"hash_similarity": 1.0}, {"candidates": 0}])
def test_rule_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        PictureRule(**wrong)  # type: ignore[arg-type]
