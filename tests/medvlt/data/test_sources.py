# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import jsonargparse
import pytest
from PIL import Image

from medvlt.data.drops import DropReason
from medvlt.data.sources import HubDataset, JSONLines, Mixture, Parquet, SavedDataset, Source, Subset
from medvlt.errors import DataError
from medvlt.types import Sample


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (6, 4), grey).save(buffer, "PNG")
    return buffer.getvalue()


def records(number: int = 6) -> list[dict[str, Any]]:
    """Records as published: pictures for every other row, null for the rest, options as a JSON string."""
    return [
        {
            "images": [{"bytes": png(i), "path": f"{i}.png"}] if i % 2 else None,
            "question": f"Größe {i}?",
            "options": json.dumps({"A": "größer", "B": f"kleiner {i}"}, ensure_ascii=False),
            "answer_label": "B",
            "answer": f"kleiner {i}",
            "reasoning": f"Because {i}." if i % 3 else None,
            "dataset_name": "toy" if i < 4 else "other",
            "dataset_index": i,
            "hash": "00" if i == 1 else None,
        }
        for i in range(number)
    ]


FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in records(1)[0]}
    | {"images": datasets.List(datasets.Image()), "dataset_index": datasets.Value("int32")}
)


def write(form: str, rows: list[dict[str, Any]], folder: Path) -> Source:
    """Stores rows without help from the package."""
    if form == "jsonl":
        for row in rows:
            for image in row["images"] or []:
                (folder / image["path"]).write_bytes(image["bytes"])
        lines = [row | {"images": [image["path"] for image in row["images"] or []]} for row in rows]
        (folder / "x.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
        return JSONLines(folder / "x.jsonl")
    table = datasets.Dataset.from_list(rows, features=FEATURES)
    if form == "saved":
        table.save_to_disk(str(folder / "x"))
        return SavedDataset(folder / "x")
    (folder / "x").mkdir()
    table.to_parquet(str(folder / "x" / "train.parquet"))
    return HubDataset(str(folder / "x")) if form == "hub" else Parquet(folder / "x" / "train.parquet")


def contents(sample: Sample) -> tuple[object, ...]:
    images = [image.read_bytes() if isinstance(image, Path) else image for image in sample.images]
    names = [name for name in Sample.__dataclass_fields__ if name != "images"]
    return (*images, *(getattr(sample, name) for name in names))


FORMS = ["jsonl", "parquet", "saved", "hub"]


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_samples(form: str, tmp_path: Path) -> None:
    samples = write(form, records(), tmp_path).load()
    expected = [
        "toy:0:5402a9ee",
        "toy:1:2d9dc2f8",
    ]
    assert list(samples.uids)[:2] == expected
    assert [contents(sample) for sample in samples] == [
        (
            *([png(i)] if i % 2 else []),
            samples.uids[i],
            f"Größe {i}?",
            {"A": "größer", "B": f"kleiner {i}"},
            "B",
            f"kleiner {i}",
            f"Because {i}." if i % 3 else None,
            "toy" if i < 4 else "other",
            i,
            -1,
            {"hash": "00"} if i == 1 else {},
        )
        for i in range(6)
    ]
    assert [samples.light(i).uid for i in range(6)] == list(samples.uids)


@pytest.mark.parametrize("form", FORMS)
def test_bad_rows_are_left_out_of_every_format(form: str, tmp_path: Path) -> None:
    rows = records(40)
    rows[3]["images"][0]["bytes"] = png(3)[:30]
    rows[8]["answer_label"] = "C"
    samples = write(form, rows, tmp_path).load()
    assert samples.report.drops == {DropReason.CORRUPT_IMAGE: 1, DropReason.BAD_LABEL: 1}
    assert [sample.dataset_index for sample in samples] == [i for i in range(40) if i not in (3, 8)]
    assert list(samples.uids) == [sample.uid for sample in samples]


@pytest.mark.parametrize("form", ["parquet", "saved", "hub"])
def test_tables_stay_on_disk(form: str, tmp_path: Path) -> None:
    rows = records(20)
    for row in rows:
        if row["images"]:
            row["images"][0]["bytes"] += b"\0" * 100_000  # a decoder ignores what follows the picture
    samples = write(form, rows, tmp_path).load()
    pickled = pickle.dumps(samples)
    assert len(pickled) < 50_000  # ten pictures of 100 kB
    again = pickle.loads(pickled)
    assert [contents(sample) for sample in again] == [contents(sample) for sample in samples]
    assert len(again[1].images[0]) > 100_000


def test_mapping_options_of_a_table(tmp_path: Path) -> None:
    rows = [
        {"question": "a?", "options": {"A": "x", "B": "y", "C": "z"}, "answer_label": "C"},
        {"question": "b?", "options": {"A": "x", "B": "y", "C": None}, "answer_label": "A"},
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "x.parquet"))
    samples = Parquet(tmp_path / "x.parquet").load()
    assert [list(sample.options) for sample in samples] == [["A", "B", "C"], ["A", "B"]]
    assert [sample.dataset_name for sample in samples] == ["x", "x"]


def test_several_parquet_files(tmp_path: Path) -> None:
    for i, part in enumerate((records(6)[:2], records(6)[2:])):
        datasets.Dataset.from_list(part, features=FEATURES).to_parquet(str(tmp_path / f"train-{i}.parquet"))
    for path in (tmp_path, str(tmp_path / "train-*.parquet"), [str(tmp_path / f"train-{i}.parquet") for i in (0, 1)]):
        assert [sample.dataset_index for sample in Parquet(path).load()] == list(range(6))


def test_parquet_files_of_several_folders(tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(png(i))
        rows = [record(f"{name}?") | {"images": [f"{name}/x.png"]}]
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / name / "x.parquet"))
    files = [str(tmp_path / name / "x.parquet") for name in "ab"]
    with pytest.raises(DataError, match=r"one folder, got .*a, .*b.* give image_root"):
        Parquet(files).load()
    placed = Parquet(files, image_root=tmp_path).load()
    assert [sample.images for sample in placed] == [(tmp_path.resolve() / name / "x.png",) for name in "ab"]
    for file in files:
        datasets.Dataset.from_list([record(file)]).to_parquet(file)
    assert len(Parquet(files).load()) == 2  # without pictures there is nothing to find


def record(question: str) -> dict[str, Any]:
    return {"question": question, "options": '{"A": "x", "B": "y"}', "answer_label": "A"}


def test_tables_with_picture_files(tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(png(5))
    rows = [record | {"images": [name]} for record, name in zip(records(2), ("in.png", "/etc/passwd"), strict=True)]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "x.parquet"))
    samples = Parquet(tmp_path / "x.parquet", max_drop_share=0.5).load()
    assert samples[0].images == (tmp_path.resolve() / "in.png",)
    assert samples.report.drops == {DropReason.PATH_ESCAPE: 1}


def test_splits_of_a_saved_folder(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(records(), features=FEATURES)
    datasets.DatasetDict({"train": table, "test": table.select([0, 1])}).save_to_disk(str(tmp_path / "both"))
    assert len(SavedDataset(tmp_path / "both", split="test").load()) == 2
    with pytest.raises(DataError, match="train, test"):
        SavedDataset(tmp_path / "both").load()
    table.save_to_disk(str(tmp_path / "one"))
    with pytest.raises(DataError, match="leave"):
        SavedDataset(tmp_path / "one", split="train").load()


def test_lines_that_are_no_records(tmp_path: Path) -> None:
    good = [json.dumps(row | {"images": None}).encode() for row in records(97)]
    file = tmp_path / "x.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*good, b"", b"[1]", b'{"a": 1, "a": 2}', b"\xff\xfe"]))
    samples = JSONLines(file).load()
    assert (samples.report.read, samples.report.kept) == (100, 97)
    assert [(drop.row, drop.reason) for drop in samples.report.dropped] == [
        (i, DropReason.BAD_JSON) for i in (97, 98, 99)
    ]


@pytest.mark.parametrize("source", [JSONLines, Parquet, SavedDataset])
def test_nothing_there(source: type[JSONLines], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected .* at .*nowhere, found nothing"):
        source(tmp_path / "nowhere").load()


def test_something_else_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found a folder"):
        JSONLines(tmp_path).load()
    with pytest.raises(DataError, match="save_to_disk"):
        SavedDataset(tmp_path).load()
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"x\.parquet as Parquet"):
        Parquet(tmp_path / "x.parquet").load()
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="empty"):
        JSONLines(tmp_path / "empty.jsonl").load()


def test_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'some/set' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        DataError, match=r"no file or folder 'some/set' here .*Couldn't reach.*SavedDataset.*hf auth login"
    ):
        HubDataset("some/set", "test").load()


def test_hub_split_that_is_not_there(tmp_path: Path) -> None:
    write("hub", records(), tmp_path)
    with pytest.raises(DataError, match=r"cannot load the folder .*split 'dev'") as caught:
        HubDataset(str(tmp_path / "x"), "dev").load()
    assert "hf auth" not in str(caught.value)


class Holder:
    def __init__(self, source: Source) -> None:
        self.source = source


def build(setting: dict[str, Any]) -> Source:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Holder, "data")
    source: Source = parser.instantiate(parser.parse_object({"data": {"source": setting}})).data.source
    return source


def test_sources_by_name_in_a_config(tmp_path: Path) -> None:
    inner = {"class_path": "JSONLines", "init_args": {"path": "x.jsonl", "open_questions": True, "drop_log": "d"}}
    hub = {"class_path": "HubDataset", "init_args": {"name": "some/set", "split": "test", "revision": "abc"}}
    subset = {"class_path": "Subset", "init_args": {"source": hub, "dataset_name": ["a", "b"], "limit": 3}}
    mixture = {"class_path": "Mixture", "init_args": {"sources": [inner, subset], "weights": [1, 3], "size": 8}}
    assert build(mixture) == Mixture(
        [
            JSONLines("x.jsonl", open_questions=True, drop_log="d"),
            Subset(HubDataset("some/set", "test", revision="abc"), dataset_name=["a", "b"], limit=3),
        ],
        weights=[1.0, 3.0],
        size=8,
    )
    assert build({"class_path": "Parquet", "init_args": {"path": ["a", "b"]}}) == Parquet(["a", "b"])
    assert build({"class_path": "SavedDataset", "init_args": {"path": "a"}}) == SavedDataset("a")
    with pytest.raises(jsonargparse.ArgumentError, match="max_drop"):
        build({"class_path": "SavedDataset", "init_args": {"path": "a", "max_drop": 0.1}})


REAL = [
    ("text_mcq_medmcqa_dev", 2509, 1702, 0),
    ("text_mcq_medqa_dev_5opt", 796, 0, 0),
    ("text_mcq_medqa_train", 658, 0, 0),
    ("text_mcq_medxpertqa_text", 802, 0, 0),
    ("text_mcq_mmlu_medical_test", 616, 542, 0),
    ("text_mcq_pubmedqa_train", 302, 302, 0),
    ("vqa_medvlthinker_assets", 1, 0, 1),
    ("vqa_mmmu_pro_medical", 2, 0, 2),
    ("vqa_omnimedvqa", 6, 0, 6),
    ("vqa_rad_closed_yesno", 708, 0, 182),
]


@pytest.mark.parametrize(("name", "rows", "with_reasoning", "pictures"), REAL)
def test_real_files_lose_nothing(name: str, rows: int, with_reasoning: int, pictures: int, shared_data: Path) -> None:
    samples = JSONLines(shared_data / f"{name}.jsonl", max_drop_share=0.0).load()
    assert (len(samples), samples.report.drops) == (rows, {})
    assert sum(sample.reasoning is not None for sample in samples) == with_reasoning
    assert len({image for sample in samples for image in sample.images}) == pictures


def test_real_open_questions(shared_data: Path) -> None:
    path = shared_data / "vqa_rad_open.jsonl"
    assert len(JSONLines(path, open_questions=True, max_drop_share=0.0).load()) == 635
    with pytest.raises(DataError, match=r"635 of 635 records.*open_question 635.*open_questions=true"):
        JSONLines(path).load()


def test_real_questions_without_their_pictures(shared_data: Path) -> None:
    with pytest.raises(DataError, match=r"563 of 563 records.*missing_image 563"):
        JSONLines(shared_data / "annotations_only" / "omnimedvqa.jsonl").load()
