# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Sequence
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


def prepare(at: FigureShop, names: Sequence[str]) -> dict[str, Path | RecordError]:
    with at.locked() as journal:
        return at.prepare(names, journal)


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
    results = prepare(shop(folder), NAMES)
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
    assert isinstance(prepare(shop(folder), ["strip.png"])["strip.png"], Path)  # 28 x 5384
    picture(5900, 30).save(folder / "in" / "strip.png")
    found = prepare(shop(folder, rule="reference"), ["strip.png"])["strip.png"]  # 1024 x 5, thinner than 1:200
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
        prepare(shop(folder, **settings), names)
    return seen


def test_nothing_is_done_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(shop(folder), NAMES[:3])
    assert opened(folder, monkeypatch, NAMES) == ["damaged.png"]  # the line is refused by its header
    again = prepare(shop(folder), NAMES)
    assert {name: again[name] for name in first} == first
    assert str(again["damaged.png"]) == str(prepare(shop(folder), ["damaged.png"])["damaged.png"])
    picture(100, 60).save(folder / "in" / "gone.png")  # it came to be there
    picture(100, 61).save(folder / "in" / "kept.png")  # it changed
    (large := again["large.png"]).unlink()  # type: ignore[union-attr]
    assert sorted(opened(folder, monkeypatch, NAMES)) == ["gone.png", "kept.png", "large.png"]
    assert isinstance(large, Path)
    assert large.is_file()


def test_other_settings_begin_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(shop(folder), NAMES[:3])
    assert len(opened(folder, monkeypatch, NAMES[:3], rule="reference")) == 3
    assert len(opened(folder, monkeypatch, NAMES[:3], rule="reference")) == 0
    assert len(opened(folder, monkeypatch, NAMES[:3])) == 3
    found = prepare(shop(folder, max_decoded_pixels=100 * 50 - 1), NAMES[:3])
    reasons = [result.reason for result in found.values() if isinstance(result, RecordError)]
    assert reasons == [DropReason.IMAGE_TOO_LARGE] * 2
    assert len(opened(folder, monkeypatch, NAMES[:3], max_decoded_pixels=100 * 50)) == 2  # one of them again
    prepare(shop(folder), NAMES[:1])
    shutil.copytree(folder / "in", folder / "moved")
    found = prepare(FigureShop(folder / "moved", folder / "work"), NAMES[:1])
    assert found == {"kept.png": folder / "moved" / "kept.png"}


def test_a_figure_that_changed_at_the_same_size_is_done_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(shop(folder), NAMES[:1])
    assert opened(folder, monkeypatch, NAMES[:1]) == []
    os.utime(folder / "in" / "kept.png", ns=(0, 0))
    assert opened(folder, monkeypatch, NAMES[:1]) == ["kept.png"]


@pytest.mark.parametrize(
    "files",
    [
        {"notes.txt": "mine"},
        {"figures.jsonl": '{"id": 1}\n', "figures/a.png": "mine"},
        {"figures.jsonl": "", "figures/a.png": "mine"},
        {"figures/a.png": "mine"},
        {"figures.jsonl": "{", "other": "mine"},
    ],
)
def test_a_folder_of_other_things_is_never_touched(files: dict[str, str], folder: Path) -> None:
    for name, text in files.items():
        (folder / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "work" / name).write_text(text)
    with pytest.raises(DataError, match="other things"):
        prepare(shop(folder), NAMES)
    left = {str(path.relative_to(folder / "work")): path for path in (folder / "work").rglob("*") if path.is_file()}
    assert {name: path.read_text() for name, path in left.items()} == files


def test_clearing_removes_what_was_made_and_nothing_else(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def clear() -> None:
        with shop(folder).locked() as journal:
            shop(folder).prepare(NAMES[:3], journal)
            (folder / "work" / "figures" / f".{'0' * 24}.png.host.1.tmp").touch()  # of a killed run
            shop(folder).clear()

    clear()
    assert not (folder / "work").exists()
    prepare(shop(folder), NAMES[:3])
    (folder / "work" / "notes.txt").write_text("mine")
    (folder / "work" / "figures" / "mine.png").write_text("mine")
    with caplog.at_level(logging.WARNING):
        clear()
    assert "other things" in caplog.text
    left = [str(path.relative_to(folder / "work")) for path in (folder / "work").rglob("*")]
    assert sorted(left) == ["figures", "figures/mine.png", "notes.txt"]


def test_so_many_figures_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=20)
    original = figures.open_image
    monkeypatch.setattr(figures, "open_image", lambda path: (together.wait(), original(path))[1])
    names = ["kept.png", "large.png", "small.jpg"]
    assert all(isinstance(path, Path) for path in prepare(shop(folder, threads=3), names).values())


@pytest.mark.parametrize("cut", [1, 20, 10_000])
def test_a_torn_journal_costs_what_was_torn(cut: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(shop(folder), NAMES[:3])
    journal = folder / "work" / "figures.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[: max(len(whole) - cut, 5)])
    assert len(opened(folder, monkeypatch, NAMES[:3])) == (3 if cut > 1000 else 1)
    assert [json.loads(line) for line in journal.read_bytes().splitlines()] == [
        json.loads(line) for line in whole.splitlines()
    ]


def test_two_builds_do_not_share_a_folder(folder: Path) -> None:
    (folder / "work").mkdir()
    with shop(folder).locked() as journal:
        shop(folder).prepare(NAMES[:1], journal)
        with pytest.raises(DataError, match="another process"):  # also after the figures are done
            prepare(shop(folder), NAMES)
        shop(folder).clear()
    assert prepare(shop(folder), NAMES[:1])


def test_threads_change_nothing(folder: Path, tmp_path: Path) -> None:
    for number in range(12):
        picture(1030 + number, 30 + number, seed=number).save(folder / "in" / f"{number}.png")
    names = [f"{number}.png" for number in range(12)]
    contents = []
    for threads in (1, 4):
        made = prepare(FigureShop(folder / "in", tmp_path / f"work{threads}", threads=threads), names)
        assert list(made) == names
        contents.append([path.read_bytes() for path in made.values() if isinstance(path, Path)])
    assert contents[0] == contents[1]
    assert len(contents[0]) == 12


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="threads"):
        shop(tmp_path, threads=0)
    with pytest.raises(ConfigurationError, match="rule"):
        shop(tmp_path, rule="none")
    with pytest.raises(ConfigurationError, match="max_decoded_pixels"):
        shop(tmp_path, max_decoded_pixels=0)
    (tmp_path / "work").write_text("a file")
    with pytest.raises(DataError, match="cannot prepare"):
        prepare(shop(tmp_path), [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir(mode=0o500)
    with pytest.raises(DataError, match="cannot prepare"):
        prepare(shop(tmp_path), [])
