# SPDX-License-Identifier: Apache-2.0
"""Rows of AdaptLLM/biomed-VQA-benchmark, as the reference reads them, and the folder that is built of them."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import jsonargparse
import pytest
import yaml
from PIL import Image

from medvlt.__main__ import main
from medvlt.curation.commands import import_sources
from medvlt.data import decode
from medvlt.data.drops import DropReason
from medvlt.data.phantom import Phantom
from medvlt.data.samples import SampleSet, Source
from medvlt.data.sources import JSONLines, SavedDataset
from medvlt.errors import ConfigurationError, DataError
from medvlt.evaluation.benchmarks import Benchmark, PathVQAClosed, PMCVQATest, SLAKEClosed, VQARADClosed
from medvlt.evaluation.benchmarks.originals import lettered


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(level: int) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("L", (8, 8), level).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


CLOSED = [
    ("Which is bigger, the heart or lung?", "Lung", "CLOSED"),
    ("What organ is this?", "Liver", "other"),
    ("Is there a mass?", "Yes", "CLOSED"),
    ("Which is bigger in this image, kidney or spleen?", "Liver", "CLOSED"),
]


def closed_rows(rows: list[tuple[str, str, str]] = CLOSED) -> list[dict[str, Any]]:
    return [
        {"image": png(number), "input": question, "label": answer, "answer_type": kind}
        for number, (question, answer, kind) in enumerate(rows)
    ]


def stored(rows: list[dict[str, Any]], place: Path) -> Path:
    """Stores rows as a Parquet file whose pictures are what `datasets` stores."""
    table = datasets.Dataset.from_list(rows)
    if "image" in table.column_names:
        table = table.cast_column("image", datasets.Image())
    place.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(str(place))
    return place


def hub(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """Stores rows as one configuration of a set in the Hub's layout."""
    stored(rows, folder / name / "test-00000.parquet")
    config = {"config_name": name, "data_files": [{"split": "test", "path": f"{name}/test-*.parquet"}]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': [config]})}---\n")
    return folder


def texts(samples: SampleSet) -> list[tuple[str, dict[str, str], str | None, str]]:
    return [(one.question, dict(one.options), one.answer_label, one.answer) for one in samples]


def test_closed_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = hub(tmp_path / "set", "SLAKE", closed_rows())
    samples = SLAKEClosed(source=place, expected=3).load()
    assert texts(samples) == [
        ("Which is bigger, the heart or lung?", {"A": "heart", "B": "lung"}, "B", "lung"),
        ("Is there a mass?", {"A": "Yes", "B": "No"}, "A", "Yes"),
        ("Which is bigger in this image, kidney or spleen?", {}, None, "Liver"),
    ]
    assert [one.dataset_index for one in samples] == [0, 2, 3]
    assert [one.extra["options_from"] for one in samples] == ["question", "question", "nothing"]
    assert {one.dataset_name for one in samples} == {"slake_closed"}
    assert samples[1].extra["hash"] == hashlib.sha256(b"Is there a mass?Yes").hexdigest()[:16]
    assert samples[1].images == (png(2)["bytes"],)
    assert [samples.light(i).uid for i in range(3)] == [one.uid for one in samples] == list(samples.uids)
    assert list(pickle.loads(pickle.dumps(samples))) == list(samples)

    def refuse(*_: object) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(decode, "_decode", refuse)
    again = SLAKEClosed(source=str(place), expected=3, check_images="header").load()
    assert again.uids == samples.uids
    with pytest.raises(AssertionError, match="decoded"):
        SLAKEClosed(source=place, expected=3).load()


def test_path_vqa_is_yes_or_no_whatever_it_asks(tmp_path: Path) -> None:
    rows = closed_rows([("What is present?", "no", "CLOSED"), ("Is it left or right?", "yes", "closed")])
    samples = PathVQAClosed(source=stored(rows, tmp_path / "rows.parquet"), expected=2).load()
    assert [(dict(one.options), one.answer_label) for one in samples] == [
        ({"A": "Yes", "B": "No"}, "B"),
        ({"A": "Yes", "B": "No"}, "A"),
    ]
    assert samples.light(0).extra["options_from"] == "set"


def test_what_is_lost_is_an_error(tmp_path: Path) -> None:
    place = stored(closed_rows(), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"expected 416 questions, got 3 questions, 413 lost\. None was unusable"):
        SLAKEClosed(source=place).load()
    with pytest.raises(DataError, match="expected 2 questions, got 3, 1 too many"):
        SLAKEClosed(source=place, expected=2, max_lost=9).load()
    with pytest.raises(DataError, match=r"1 questions are open.*slake_closed:3:.*max_open=0.*options_file"):
        SLAKEClosed(source=place, expected=3, max_open=0).load()
    damaged = closed_rows()
    damaged[2]["image"]["bytes"] = b"\x89PNG broken"
    damaged[0]["label"] = ""
    place = stored(damaged, tmp_path / "damaged.parquet")
    with pytest.raises(DataError) as caught:
        SLAKEClosed(source=place, expected=3, max_lost=1).load()
    message = str(caught.value)
    assert "2 lost. Unusable 2: bad_field 1 (e.g. row 0:" in message
    assert "corrupt_image 1 (e.g. row 2:" in message
    assert "First: row 0, slake_closed:2:" in message
    assert "max_lost=2 (now 1)" in message
    with pytest.raises(DataError, match=r"expected 7 questions, got 1 questions, 6 lost\. Unusable 2"):
        SLAKEClosed(source=place, expected=7, max_lost=5).load()
    left = SLAKEClosed(source=place, expected=3, max_lost=2).load()
    assert left.report.drops == {DropReason.BAD_FIELD: 1, DropReason.CORRUPT_IMAGE: 1}
    assert [one.dataset_index for one in left] == [3]
    for settings in ({"max_lost": -1}, {"max_open": -1}, {"expected": 0}):
        with pytest.raises(ConfigurationError, match="must be at least"):
            SLAKEClosed(**settings)  # type: ignore[arg-type]


def test_other_rows_are_told(tmp_path: Path) -> None:
    place = tmp_path / "rows.jsonl"
    place.write_text(json.dumps({"question": "q", "answer": "yes"}))
    with pytest.raises(
        DataError, match=r"columns answer_type, image, input, label, or records.*columns: answer, quest"
    ):
        VQARADClosed(source=place).load()
    with pytest.raises(ConfigurationError, match="revision"):
        VQARADClosed(source=place, revision="main").load()


def test_options_of_a_file_go_first(tmp_path: Path) -> None:
    place, file = stored(closed_rows(), tmp_path / "rows.parquet"), tmp_path / "options.jsonl"
    question, answer, _ = CLOSED[3]
    lines = [
        {"question": "Is there  a mass?", "options": ["No", "Yes"]},
        {"question": question, "options": ["Liver", "Lung"]},
        {"hash": hashlib.sha256(f"{question}{answer}".encode()).hexdigest()[:16], "options": ["Kidney", "Liver"]},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    samples = SLAKEClosed(source=place, expected=3, max_open=0, options_file=file).load()
    assert [(list(one.options.values()), one.answer_label) for one in samples] == [
        (["heart", "lung"], "B"),
        (["No", "Yes"], "B"),
        (["Kidney", "Liver"], "B"),
    ]
    assert [one.extra["options_from"] for one in samples] == ["question", "file", "file"]
    wrong = {
        '{"question": "Is there a mas?", "options": ["Yes", "No"]}': "1 entries are of no closed question .*a mas",
        '{"question": "What organ is this?", "options": ["Liver", "Lung"]}': "1 entries are of no closed question",
        '{"question": "Is there a mass?", "options": ["in", "out"]}': r"1 entries lack.* a mass.*\(in, out; .*: Yes\)",
        '{"question": "q", "options": ["a"]}': "two or more",
        '{"question": "q", "options": ["a", " a"]}': "different",
        '{"options": ["a", "b"]}': "expected `options`",
        "[]": "entry 1",
        '{"question": "q", "options": ["a", "b"]}\n{"question": "q", "options": ["b", "a"]}': "entry 2: other options",
    }
    for text, told in wrong.items():
        file.write_text(text)
        with pytest.raises(DataError, match=told):
            SLAKEClosed(source=place, options_file=file).load()


def test_pmc_vqa(tmp_path: Path) -> None:
    row = {
        "image": png(1),
        "input": "Question: What is shown?\nThe choices are:\n(A) CT\n(B) MRI\n(C) CT\n(D) ",
        "label": "B",
    }
    rows = [row | {"A": "CT", "B": "MRI", "C": "CT ", "D": ""}]
    samples = PMCVQATest(source=stored(rows, tmp_path / "rows.parquet"), expected=1).load()
    options = {"A": "CT", "B": "MRI", "C": "CT (the same as A)", "D": "(blank)"}
    assert texts(samples) == [("What is shown?", options, "B", "MRI")]
    numbers = [row | {"A": 0, "B": 1, "C": 2, "D": None}]
    samples = PMCVQATest(source=stored(numbers, tmp_path / "numbers.parquet"), expected=1).load()
    assert list(samples[0].options.values()) == ["0", "1", "2", "(blank)"]
    odd = ["", "", "x", "x", "x", " x (the same as C)", "(blank)"]
    assert len(set(lettered(odd).values())) == len(odd)


def test_built_read_back_and_named_in_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, built = hub(tmp_path / "set", "SLAKE", closed_rows()), tmp_path / "built"
    words = ["data", "build", "benchmark", "--benchmark", "slake_closed", "--source", str(place), "--output"]
    with pytest.raises(SystemExit) as caught:
        main([*words, str(built)])
    assert caught.value.code == 2
    assert "413 lost" in capsys.readouterr().err
    assert not built.exists()
    with pytest.raises(SystemExit) as caught:
        main([*words, str(built), "--expected", "3"])
    assert caught.value.code == 0
    assert "3 questions" in capsys.readouterr().out
    card = (built / "README.md").read_text()
    assert "question 2, nothing 1" in card
    assert "1 questions stay open" in card
    for setting in (
        '"expected": 3',
        '"max_lost": 0',
        '"max_open": 1',
        '"options_file": null',
        '"benchmark": "slake_closed"',
    ):
        assert setting in card
    first = SLAKEClosed(source=place, expected=3).load()
    for again in (SLAKEClosed(source=built, expected=3), Benchmark(built, expected=3, max_open=1)):
        assert again.load().uids == first.uids
        assert list(again.load()) == list(first)
    for source in (built, SavedDataset(built, open_questions=True)):
        with pytest.raises(ConfigurationError, match="options_file is for original rows"):
            SLAKEClosed(source=source, expected=3, options_file="gone.jsonl").load()
        with pytest.raises(DataError, match=r"expected questions of vqa_rad_closed only, got slake_closed \(3\)"):
            VQARADClosed(source=source, expected=3).load()
    with pytest.raises(SystemExit) as caught:
        main([*words, str(tmp_path / "other"), "--images", "x"])
    assert "slake_closed has no option images" in capsys.readouterr().err

    import_sources()
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--benchmarks", type=dict[str, Source])
    text = f"""
benchmarks:
  mine:
    class_path: Benchmark
    init_args:
      source: {built}
      expected: 3
      max_open: 1
  slake_closed:
    class_path: SLAKEClosed
    init_args: {{source: {place}, expected: 3}}
"""
    parsed = parser.parse_string(text)
    assert parser.dump(parser.parse_string(parser.dump(parsed))) == parser.dump(parsed)
    sources = parser.instantiate(parsed).benchmarks
    assert [source.load().uids for source in sources.values()] == [first.uids] * 2
    assert [source.expected_rows for source in sources.values()] == [3, 3]


def test_any_source_is_a_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [
        {"question": f"q{n}", "options": {"A": "x", "B": "y"}, "answer_label": "A", "dataset_name": "ab"[n % 2]}
        for n in range(5)
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"question": "no options"}\n{"question": ""}\n')
    with pytest.raises(DataError, match=r"expected all records, got 5 questions, 2 lost.*no_question 1"):
        Benchmark(file).load()
    source = JSONLines(file, max_drop_share=0.5)
    with pytest.raises(DataError, match="2 lost"):
        Benchmark(source).load()
    assert len(Benchmark(source, max_lost=2).load()) == 5
    few = Benchmark(source, dataset_name="b", expected=2, max_lost=2).load()
    assert [one.dataset_name for one in few] == ["b", "b"]
    assert len(Benchmark(source, dataset_name="b", expected=2).load()) == 2  # the unusable ones are of others
    with pytest.raises(DataError, match="expected 3 questions, got 2 questions, 1 lost"):
        Benchmark(source, dataset_name="b", expected=3).load()
    with pytest.raises(DataError, match="2 lost"):
        Benchmark(source, dataset_name="b").load()
    for name, count in (("a", 3), ("b", 2)):
        assert len(Benchmark(file, dataset_name=name, expected=count).load()) == count
    with pytest.raises(DataError, match=r"no question of c; its data sets: a \(3\), b \(2\), rows \(2\)"):
        Benchmark(file, dataset_name=["a", "c"]).load()
    with pytest.raises(DataError, match=r"got 0 questions, 2 lost.*First: row 5, row 6\. Correct the source$"):
        Benchmark(file, dataset_name="rows", max_lost=2).load()
    with pytest.raises(DataError, match="3 too many"):
        Benchmark(source, expected=2, max_lost=2).load()
    with pytest.raises(ConfigurationError, match="revision"):
        Benchmark(source, revision="main").load()
    file.write_text("\n".join(json.dumps(line | {"images": ["gone.png"]}) for line in lines))
    with pytest.raises(DataError, match=r"expected 5 questions, got 0 questions, 5 lost\. Unusable 5") as caught:
        Benchmark(file, expected=5, max_lost=5).load()
    assert not any(word in str(caught.value) for word in ("max_drop_share", "drop_log"))
    drawn = Benchmark(Phantom("test", 7, modality="picture"), expected=7).load()
    assert drawn.uids == Phantom("test", 7, modality="picture").load().uids


def test_real_pictures_through_a_benchmark(shared_data: Path) -> None:
    samples = Benchmark(shared_data / "vqa_rad_closed_yesno.jsonl", expected=708, check_images="header").load()
    assert len(set(samples.uids)) == 708
    with pytest.raises(DataError, match="expected 709 questions, got 708 questions, 1 lost"):
        Benchmark(shared_data / "vqa_rad_closed_yesno.jsonl", expected=709, check_images="header").load()
