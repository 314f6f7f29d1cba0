# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from medvlt.curation import figures
from medvlt.curation.figures import FigureShop, figure_size
from medvlt.data.drops import DropReason, RecordError
from medvlt.errors import ConfigurationError, DataError

SIDES = st.integers(1, 6000)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "reference", "bounded"),
    [
        ((3000, 60), (1024, 20), (1400, 28)),
        ((60, 3000), (20, 1024), (28, 1400)),
        ((20, 20), (28, 28), (28, 28)),
        ((20, 800), (28, 1120), (28, 1120)),
        ((28, 1024), (28, 1024), (28, 1024)),
        ((2048, 1000), (1024, 500), (1024, 500)),
        ((1025, 1025), (1024, 1024), (1024, 1024)),
        ((500, 400), (500, 400), (500, 400)),
        ((3700, 100), (1024, 27), (1036, 28)),
        ((3600, 100), (1024, 28), (1024, 28)),
    ],
)
def test_sizes(size: tuple[int, int], reference: tuple[int, int], bounded: tuple[int, int]) -> None:
    assert figure_size(*size, "reference") == reference
    assert figure_size(*size, "bounded") == bounded


@given(SIDES, SIDES)
def test_bounds_hold_where_the_shape_allows(width: int, height: int) -> None:
    short, long = sorted(figure_size(width, height, "bounded"))
    assert short >= 28
    if max(width, height) * 28 <= 1024 * min(width, height):
        assert long <= 1024
    else:
        assert short == 28  # the fewest tokens that the lower bound leaves
    if min(width, height) >= 28 and max(width, height) <= 1024:
        assert sorted((width, height)) == [short, long]


@given(SIDES, SIDES)
def test_only_figures_that_the_reference_makes_too_thin_differ_from_it(width: int, height: int) -> None:
    mended, published = (figure_size(width, height, rule) for rule in ("bounded", "reference"))
    assert mended == published or min(published) < 28


@given(SIDES, SIDES)
def test_shapes_are_kept_to_the_pixel(width: int, height: int) -> None:
    assume(max(width, height) <= 200 * min(width, height))
    new_width, new_height = figure_size(width, height, "bounded")
    assert abs(new_width * height - new_height * width) <= max(width, height)  # one pixel of the side that was cut


def shop(folder: Path, **settings: object) -> FigureShop:
    return FigureShop(folder / "in", folder / "work", **settings)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    picture(100, 50).save(tmp_path / "in" / "kept.png")
    picture(1600, 80, seed=1).save(tmp_path / "in" / "large.png")
    picture(10, 14, seed=2).save(tmp_path / "in" / "small.jpg")
    (tmp_path / "in" / "damaged.png").write_bytes((tmp_path / "in" / "kept.png").read_bytes()[:200])
    picture(900, 4).save(tmp_path / "in" / "line.png")
    (tmp_path / "outside.png").write_bytes((tmp_path / "in" / "kept.png").read_bytes())
    return tmp_path


NAMES = ("kept.png", "large.png", "small.jpg", "damaged.png", "line.png", "gone.png", "../outside.png")


def test_what_becomes_of_each_figure(folder: Path) -> None:
    results = shop(folder).prepare(NAMES)
    assert list(results) == list(NAMES)
    assert results["kept.png"] == folder / "in" / "kept.png"
    for name, size in (("large.png", (1024, 51)), ("small.jpg", (28, 39))):
        path = results[name]
        assert isinstance(path, Path)
        with Image.open(path) as image, Image.open(folder / "in" / name) as original:
            expected = original.resize(size, Image.Resampling.BILINEAR)
            assert (image.format, image.size, image.tobytes()) == ("PNG", size, expected.tobytes())
    reasons = {name: found.reason for name, found in results.items() if isinstance(found, RecordError)}
    assert reasons == {
        "damaged.png": DropReason.CORRUPT_IMAGE,
        "line.png": DropReason.IMAGE_TOO_THIN,
        "gone.png": DropReason.MISSING_IMAGE,
        "../outside.png": DropReason.PATH_ESCAPE,
    }
    assert "name the folder" in str(results["gone.png"])


def test_too_thin_is_judged_by_the_size_that_a_figure_ends_with(folder: Path) -> None:
    picture(2500, 13).save(folder / "in" / "strip.png")
    assert isinstance(shop(folder).prepare(["strip.png"])["strip.png"], Path)  # 28 x 5384
    picture(5900, 30).save(folder / "in" / "strip.png")
    found = shop(folder, rule="reference").prepare(["strip.png"])["strip.png"]  # 1024 x 5, thinner than 1:200
    assert isinstance(found, RecordError)
    assert found.reason is DropReason.IMAGE_TOO_THIN


def opened(folder: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], **settings: object) -> list[str]:
    """Names of the figures that are decoded when these are prepared."""
    seen: list[str] = []

    def counted(path: Path) -> Image.Image:
        seen.append(path.name)
        return original(path)

    original = figures.open_image
    with monkeypatch.context() as patch:
        patch.setattr(figures, "open_image", counted)
        shop(folder, **settings).prepare(names)
    return seen


def test_nothing_is_done_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shop(folder).prepare(NAMES[:3])
    assert opened(folder, monkeypatch, NAMES) == ["damaged.png"]  # the line is refused by its header
    again = shop(folder).prepare(NAMES)
    assert {name: again[name] for name in first} == first
    assert str(again["damaged.png"]) == str(shop(folder).prepare(["damaged.png"])["damaged.png"])
    picture(100, 60).save(folder / "in" / "gone.png")  # it came to be there
    picture(100, 61).save(folder / "in" / "kept.png")  # it changed
    (large := again["large.png"]).unlink()  # type: ignore[union-attr]
    assert sorted(opened(folder, monkeypatch, NAMES)) == ["gone.png", "kept.png", "large.png"]
    assert isinstance(large, Path)
    assert large.is_file()


def test_other_settings_begin_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop(folder).prepare(NAMES[:3])
    assert len(opened(folder, monkeypatch, NAMES[:3], rule="reference")) == 3
    assert len(opened(folder, monkeypatch, NAMES[:3], rule="reference")) == 0
    assert len(opened(folder, monkeypatch, NAMES[:3])) == 3


@pytest.mark.parametrize("cut", [1, 20, 10_000])
def test_a_torn_journal_costs_what_was_torn(cut: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop(folder).prepare(NAMES[:3])
    journal = folder / "work" / "figures.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[: max(len(whole) - cut, 5)])
    assert len(opened(folder, monkeypatch, NAMES[:3])) == (3 if cut > 1000 else 1)
    assert [json.loads(line) for line in journal.read_bytes().splitlines()] == [
        json.loads(line) for line in whole.splitlines()
    ]


def test_two_builds_do_not_share_a_folder(folder: Path) -> None:
    (folder / "work").mkdir()
    with shop(folder)._journal(), pytest.raises(DataError, match="another process"):
        shop(folder).prepare(NAMES)
    assert shop(folder).prepare(NAMES[:1])


def test_threads_change_nothing(folder: Path, tmp_path: Path) -> None:
    for number in range(12):
        picture(1030 + number, 30 + number, seed=number).save(folder / "in" / f"{number}.png")
    names = [f"{number}.png" for number in range(12)]
    contents = []
    for threads in (1, 4):
        made = FigureShop(folder / "in", tmp_path / f"work{threads}", threads=threads).prepare(names)
        assert list(made) == names
        contents.append([path.read_bytes() for path in made.values() if isinstance(path, Path)])
    assert contents[0] == contents[1]
    assert len(contents[0]) == 12


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="threads"):
        shop(tmp_path, threads=0)
    with pytest.raises(ConfigurationError, match="rule"):
        shop(tmp_path, rule="none")
    (tmp_path / "work").write_text("a file")
    with pytest.raises(DataError, match="cannot prepare"):
        shop(tmp_path).prepare([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir(mode=0o500)
    with pytest.raises(DataError, match="cannot prepare"):
        shop(tmp_path).prepare([])
