# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvlt.curation import picture_pairs
from medvlt.curation.picture_pairs import match_pictures
from medvlt.types import ImageSource, Sample


def noise(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC)


def ask(uid: str, *images: ImageSource) -> Sample:
    return Sample(uid, "What is this?", {"A": "yes", "B": "no"}, "A", "yes", images=images)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{seed}.png" for seed in range(4)]
    for seed, path in enumerate(paths):
        noise(seed).save(path)
    return paths


def test_questions_are_gathered_by_picture_however_it_is_given(files: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(files[0].read_bytes())
    train = [
        (0, ask("a", files[0])), (1, ask("b", files[1])), (2, ask("c", copy)), (3, ask("d")),
        (4, ask("e", files[0].read_bytes(), files[1])), (5, ask("f", files[0], copy)),
    ]  # fmt: skip
    ours, theirs, matches = match_pictures(train, [("x", ask("x", noise(0))), ("y", ask("y", files[3]))])
    assert ours.questions == [[0, 2, 4, 5], [1, 4]]
    assert (ours.read, theirs.questions, ours.unreadable) == (7, [["x"], ["y"]], [])
    assert [(match.train, match.evaluation, match.kind) for match in matches] == [(0, 0, "same_picture_pixels")]


def test_a_copied_file_is_read_once(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(files[0].read_bytes())
    read: list[Path] = []
    encoded = picture_pairs._encoded
    monkeypatch.setattr(picture_pairs, "_encoded", lambda image: read.append(image) or encoded(image))
    train = [(number, ask(str(number), path)) for number, path in enumerate([files[0], copy, copy, copy, files[0]])]
    ours, _, _ = match_pictures(train, [("x", ask("x", noise(1)))])
    assert ours.questions == [[0, 1, 2, 3, 4]]
    assert [path for path in read if isinstance(path, Path)] == [files[0], copy]


def test_unreadable_pictures_are_listed_and_the_rest_is_compared(files: list[Path], tmp_path: Path) -> None:
    damaged = files[1].read_bytes()[:200]
    train = [(0, ask("a", damaged)), (1, ask("b", tmp_path / "gone.png", files[2]))]
    ours, _, matches = match_pictures(train, [(0, ask("x", files[2]))])
    assert [uid for uid, _ in ours.unreadable] == ["a", "b"]
    assert "gone.png" in ours.unreadable[1][1]
    assert [(ours.questions[match.train], match.kind) for match in matches] == [([1], "same_picture_bytes")]


def test_chunks_change_nothing(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    train = [(number, ask(str(number), path)) for number, path in enumerate(files)]
    shelf = [(number, ask(str(number), noise(3 - number))) for number in range(4)]
    whole = match_pictures(train, shelf)[2]
    monkeypatch.setattr(picture_pairs, "_TOGETHER", 1)
    assert match_pictures(train, shelf)[2] == whole
    assert [(match.train, match.evaluation) for match in whole] == [(0, 3), (1, 2), (2, 1), (3, 0)]


def test_without_evaluation_pictures_nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(picture_pairs, "open_image", refuse)
    seen = []
    questions = ((number, ask(str(number), b"anything")) for number in range(2) if seen.append(number) is None)
    assert match_pictures(questions, [(0, ask("x"))])[2] == []
    assert seen == [0, 1]
