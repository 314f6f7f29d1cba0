# SPDX-License-Identifier: Apache-2.0
"""How pictures are named in what is written down."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from medvlt.evaluation.records import COLUMNS, completion_record, picture_id, picture_name
from medvlt.evaluation.thumbnails import thumbnail
from medvlt.types import Completion, ImageSource, Reason, RolloutGroup, Sample, Verdict


def test_a_picture_is_known_by_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(b"one")
    assert picture_id(path) == picture_id(b"one") == hashlib.sha256(b"one").hexdigest()[:16]
    grey = Image.new("L", (3, 4))
    others = [grey, grey.convert("RGB"), Image.new("L", (4, 3)), b"two", tmp_path / "none.png", Path("/x/other.png")]
    assert len({picture_id(picture) for picture in [path, *others]}) == 7
    assert picture_id(Image.new("L", (3, 4))) == picture_id(grey)
    assert picture_id(tmp_path / "none.png") == picture_id(tmp_path / "elsewhere" / "none.png")


def test_pictures_without_a_name_are_told_apart() -> None:
    names = [picture_name(picture) for picture in (b"one", b"two", Image.new("L", (3, 3)), Path("a/b.png"))]
    assert len(set(names)) == 4
    assert names[3] == "a/b.png"
    assert names[0] == picture_name(b"one") == f"sha256:{picture_id(b'one')}"


def test_a_record_has_every_column() -> None:
    sample = Sample("q", "Which?", {"A": "yes"}, "A", "yes", images=(b"one", Path("two.png")))
    completion = Completion((), "", (), "error", 3, error="HTTP 500")
    verdict = Verdict(False, None, False, Reason.EMPTY, "1")
    record = completion_record(RolloutGroup(sample, (1, 2), (completion,)), 4, completion, verdict)
    assert {"benchmark", *record} >= set(COLUMNS)
    assert (record["sample"], record["error"], record["prompt_tokens"], record["version"]) == (4, "HTTP 500", 2, 3)
    assert record["pictures"] == [picture_name(b"one"), "two.png"]
    assert record["picture_ids"] == [picture_id(b"one"), picture_id(Path("two.png"))]


@pytest.mark.parametrize(("mode", "size"), [("RGBA", (1000, 500)), ("L", (40, 640)), ("I;16", (320, 320))])
def test_thumbnails(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    picture = Image.new(mode, size)
    path = tmp_path / "picture.png"
    picture.save(path)
    sources: list[ImageSource] = [path, path.read_bytes(), picture]
    small = [thumbnail(source) for source in sources]
    assert small[0] == small[1] == small[2]
    with Image.open(io.BytesIO(small[0] or b"")) as image:
        assert (image.format, image.mode, max(image.size)) == ("JPEG", "RGB", 320)
        assert image.size[0] * size[1] == image.size[1] * size[0]
        assert not image.getexif()


def test_a_damaged_picture_has_none(tmp_path: Path) -> None:
    assert thumbnail(b"no picture") is None
    assert thumbnail(tmp_path / "none.png") is None
