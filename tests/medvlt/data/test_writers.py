# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from medvlt.data.mixture import Subset
from medvlt.data.options import shuffle_options
from medvlt.data.sources import JSONLines, Parquet, SavedDataset
from medvlt.data.writers import encoded, write_jsonl, write_parquet, write_saved
from medvlt.errors import DataError
from medvlt.types import ImageSource, Sample

Writer = Callable[..., None]
FORMS: list[tuple[Writer, Any, str]] = [
    (write_jsonl, JSONLines, "set.jsonl"),
    (write_parquet, Parquet, "set.parquet"),
    (write_saved, SavedDataset, "set"),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8))


def samples(folder: Path) -> list[Sample]:
    """Everything at once: open, shuffled, with pictures of every kind, index by name, extra values of every kind."""
    (folder / "in.jpg").write_bytes(jpeg := encode(picture(1), "JPEG"))
    base = Sample(
        uid="",
        question="Größe?\u2028\n",
        options={"B": "no “quotes”", "A": "yes"},
        answer_label="B",
        answer="no “quotes”",
        images=(folder / "in.jpg", jpeg, picture(2)),
        reasoning="line\nline",
        dataset_name="toy",
        dataset_index=3,
        pass_count=5,
        extra={"hash": "00", "hard": True, "n": 2**40, "share": 0.1, "misc": '{"a": 1}', "tags": ["x", {"y": None}]},
    )
    return [
        replace(base, uid="toy:3:own"),
        replace(base, uid="toy:MM-1:own", dataset_index="MM-1", images=(), reasoning=None, extra={"tags": "plain"}),
        replace(base, uid="toy:4:own", dataset_index=4, options={}, answer_label=None, answer="left", pass_count=-1),
        shuffle_options(replace(base, uid="toy:5:own", dataset_index=5), 1),
    ]


def encode(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def texts(sample: Sample) -> list[object]:
    return [getattr(sample, name) for name in Sample.__dataclass_fields__ if name != "images"]


def pixels(sample: Sample) -> list[bytes]:
    return [Image.open(io.BytesIO(encoded(image))).convert("RGB").tobytes() for image in sample.images]


@pytest.mark.parametrize(("write", "source", "name"), FORMS)
def test_round_trip(write: Writer, source: Any, name: str, tmp_path: Path) -> None:
    original = samples(tmp_path)
    write(original, tmp_path / "new" / name)
    again = source(tmp_path / "new" / name, open_questions=True, max_drop_share=0.0).load()
    assert [texts(sample) for sample in again] == [texts(sample) for sample in original]
    assert [pixels(sample) for sample in again] == [pixels(sample) for sample in original]
    assert encoded(again[0].images[0]) == encoded(again[0].images[1]) == (tmp_path / "in.jpg").read_bytes()
    # and once more, now from what the source gives
    write(again, tmp_path / "newer" / name)
    newer = source(tmp_path / "newer" / name, open_questions=True, max_drop_share=0.0).load()
    assert [texts(sample) for sample in newer] == [texts(sample) for sample in original]
    assert [pixels(sample) for sample in newer] == [pixels(sample) for sample in original]


@pytest.mark.parametrize(("write", "source", "name"), FORMS)
def test_real_questions_through_every_format(
    write: Writer, source: Any, name: str, tmp_path: Path, shared_data: Path
) -> None:
    original = [
        *Subset(JSONLines(shared_data / "text_mcq_medmcqa_dev.jsonl"), shuffle_seed=0, limit=300).load(),
        *Subset(JSONLines(shared_data / "vqa_rad_closed_yesno.jsonl"), shuffle_seed=0, limit=12).load(),
    ]
    write(original, tmp_path / name)
    again = source(tmp_path / name, max_drop_share=0.0).load()
    assert list(again.uids) == [sample.uid for sample in original]
    assert [texts(sample) for sample in again] == [texts(sample) for sample in original]
    assert [list(map(encoded, sample.images)) for sample in again] == [
        list(map(encoded, sample.images)) for sample in original
    ]


def test_tables_hold_pictures_as_pictures(tmp_path: Path) -> None:
    write_parquet(samples(tmp_path), tmp_path / "x.parquet")
    table = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"))
    assert table.features["images"] == datasets.List(datasets.Image())
    assert table[0]["images"][2].tobytes() == picture(2).tobytes()
    assert table[1]["images"] is None
    assert json.loads(table[0]["options"]) == {"B": "no “quotes”", "A": "yes"}


def test_lines_refer_to_pictures_beside_them(tmp_path: Path) -> None:
    write_jsonl(samples(tmp_path), tmp_path / "x.jsonl")
    first = json.loads((tmp_path / "x.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert first["images"][0] == "in.jpg"
    copies = sorted(path.name for path in (tmp_path / "x_images").iterdir())
    assert sorted(Path(name).name for name in first["images"][1:]) == copies
    assert sorted(Path(name).suffix for name in copies) == [".jpeg", ".png"]


@pytest.mark.parametrize(("write", "source", "name"), FORMS)
def test_nothing_half_written(write: Writer, source: Any, name: str, tmp_path: Path) -> None:
    class Broken(Sequence[Sample]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
            return [good, replace(good, uid="1", images=(tmp_path / "gone.png",))][index]

    good = replace(samples(tmp_path)[1], extra={})
    write([good], tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="overwrite"):
        write([good, good], tmp_path / name)
    with pytest.raises(DataError, match=r"^cannot read the picture .*gone\.png"):
        write(Broken(), tmp_path / name, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert len(source(tmp_path / name).load()) == 1
    write([good, replace(good, uid="2")], tmp_path / name, overwrite=True)
    assert len(source(tmp_path / name).load()) == 2


def test_further_files_come_and_go_with_a_saved_set(tmp_path: Path) -> None:
    good = [replace(samples(tmp_path)[1], extra={})]
    write_saved(good, tmp_path / "set", files={"README.md": b"one", "a.json": b"{}"})
    assert (tmp_path / "set" / "README.md").read_bytes() == b"one"
    assert len(datasets.load_from_disk(str(tmp_path / "set"))) == len(SavedDataset(tmp_path / "set").load()) == 1
    for name in ("state.json", "../a", "a/b", "", ".."):
        with pytest.raises(DataError, match="plain name"):
            write_saved(good * 2, tmp_path / "set", files={name: b"two"}, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jpg", "set"]
    write_saved(good, tmp_path / "set", files={"README.md": b"two"}, overwrite=True)
    assert (tmp_path / "set" / "README.md").read_bytes() == b"two"
    assert not (tmp_path / "set" / "a.json").exists()


@pytest.mark.parametrize(("write", "source", "name"), FORMS)
def test_what_no_format_holds(write: Writer, source: Any, name: str, tmp_path: Path) -> None:
    odd = replace(samples(tmp_path)[1], extra={"odd": {1, 2}})
    with pytest.raises(DataError, match="toy:MM-1:own"):
        write([odd], tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("image", [b"anything", picture(0)])
def test_encoded(image: ImageSource) -> None:
    if isinstance(image, bytes):
        assert encoded(image) == image
    else:
        assert Image.open(io.BytesIO(encoded(image))).tobytes() == picture(0).tobytes()


@pytest.mark.parametrize(("write", "source", "name"), FORMS)
def test_copies_that_a_killed_run_left_go_with_the_next(write: Writer, source: Any, name: str, tmp_path: Path) -> None:
    good = [replace(samples(tmp_path)[1], extra={})]
    child = os.fork()
    if child == 0:

        class Killed(Sequence[Sample]):
            def __len__(self) -> int:
                return 1

            def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
                if index:
                    raise IndexError
                if any(tmp_path.glob(".*.tmp")):
                    os.kill(os.getpid(), signal.SIGKILL)
                return good[0]

        try:
            write(Killed(), tmp_path / name)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(tmp_path.glob(".*.tmp"))
    write(good, tmp_path / name)
    assert not list(tmp_path.glob(".*.tmp"))
    assert len(source(tmp_path / name).load()) == 1
