# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import hashlib
import io
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import datasets
import jsonargparse
import numpy as np
import pandas
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medvlt.__main__ import main
from medvlt.curation import figures, pmc_vqa
from medvlt.curation.ledger import COUNTS, Ledger, Probe
from medvlt.curation.pmc_vqa import COLUMNS, PMCVQA, build_pmc_vqa, clean_row, read_rows
from medvlt.data.decode import image_size
from medvlt.data.drops import DropReason, RecordError
from medvlt.data.samples import Source, uids_fingerprint
from medvlt.data.sources import JSONLines
from medvlt.data.writers import encoded
from medvlt.errors import ConfigurationError, DataError
from medvlt.rewards.grade import GRADER_VERSION

CUT = " \t\n\r\x0b\x0c'\"\xa0\u200a"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def row(**changes: str) -> dict[str, str]:
    plain = ["f0.png", "What is shown?", "a liver", "A:a liver", "B:a lung", "C:N/A", "D:none", "A"]
    return dict(zip(COLUMNS, plain, strict=True)) | {
        name.replace("Choice_", "Choice "): value for name, value in changes.items()
    }


GOOD = [
    row(),
    row(Question=' "What, "really", is it?\u200a', Answer=" a lung\xa0", Choice_B=" B: 'a lung' ", Answer_label=" B "),
    row(Answer="N/A", Answer_label="C", Figure_path="f1.png"),
    row(Choice_D="D:ratio 1:2\nor more", Answer="ratio 1:2\nor more", Answer_label="D", Figure_path="f2.png"),
    row(Question="Größe?", Choice_A="A :größer", Answer="größer"),
]
BAD = [
    (row(Choice_B="a lung"), DropReason.BAD_OPTIONS),
    (row(Choice_B="C:a lung"), DropReason.BAD_OPTIONS),
    (row(Answer_label="E"), DropReason.BAD_LABEL),
    (row(Answer_label=""), DropReason.BAD_LABEL),
    (row(Answer="another"), DropReason.ANSWER_MISMATCH),
]
UNUSABLE = [  # the published set has these
    (row(Choice_B="B:none", Question="twins?"), DropReason.EQUAL_OPTIONS),
    (row(Choice_B="B:", Question="blank?"), DropReason.BAD_OPTIONS),
    (row(Figure_path="gone.png"), DropReason.MISSING_IMAGE),
    (row(Figure_path="damaged.png"), DropReason.CORRUPT_IMAGE),
]


def write_csv(path: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([[entry[name] for name in columns] for entry in rows])
    return path


def picture(path: Path, width: int, height: int, seed: int = 0) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for number, size in enumerate([(60, 40), (3000, 60), (20, 20), (60, 3000)]):
        picture(images / f"f{number}.png", *size, seed=number)
    (images / "damaged.png").write_bytes((images / "f0.png").read_bytes()[:100])
    return tmp_path


def published(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The rules of §1.4, plainly."""
    kept: list[dict[str, Any]] = []
    for entry in rows:
        cleaned = {name: value.strip(CUT) for name, value in entry.items()}
        options = {}
        for letter in "ABCD":
            parts = cleaned[f"Choice {letter}"].split(":", 1)
            if len(parts) == 2 and parts[0].strip(CUT) == letter:
                options[letter] = parts[1].strip(CUT)
        label = cleaned["Answer_label"]
        if len(options) == 4 and label in options and options[label] == cleaned["Answer"]:
            kept.append(
                {"question": cleaned["Question"], "options": options, "answer_label": label, "dataset_index": len(kept)}
            )
    return kept


def test_the_set_is_what_the_rules_say(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [GOOD[0], BAD[0][0], UNUSABLE[0][0], *GOOD[1:], *(bad for bad, _ in [*UNUSABLE[1:], *BAD[1:]]), GOOD[0]]
    write_csv(folder / "train.csv", rows)
    log = folder / "left.jsonl"
    build_pmc_vqa(folder / "train.csv", folder / "images", folder / "out", max_drop_share=0.7, drop_log=log)
    samples = PMCVQA(source=folder / "out").load()
    unusable = [entry["Question"] for entry, _ in UNUSABLE[:2]]
    expected = [
        record
        for record in published(rows)
        if record["question"] not in unusable and record["dataset_index"] not in (7, 8)  # the two without a figure
    ]
    assert [record["dataset_index"] for record in expected] == [0, 2, 3, 4, 5, 9]  # as published, with gaps
    assert [
        {name: getattr(sample, name) for name in expected[0]} for sample in samples
    ] == expected  # fmt: skip
    assert samples[1].question == 'What, "really", is it?'
    assert {sample.dataset_name for sample in samples} == {"pmc_vqa"}
    sizes = {sample.extra["pmc_figure"]: image_size(sample.images[0]) for sample in samples}
    assert sizes == {"f0.png": (60, 40), "f1.png": (1400, 28), "f2.png": (28, 28)}
    assert encoded(samples[0].images[0]) == (folder / "images" / "f0.png").read_bytes()
    left = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [(line["row"], line["reason"]) for line in left] == [
        (number, reason.value) for number, entry in enumerate(rows) for bad, reason in [*BAD, *UNUSABLE] if entry is bad
    ]
    assert (folder / "out" / "drops.jsonl").read_bytes() == log.read_bytes()
    said = capsys.readouterr().out
    assert "6 questions: pmc_vqa 6" in said
    assert "missing_image 1" in said
    assert str(folder / "out" / "README.md") in said
    assert not (folder / "out.work").exists()
    assert "has 15 rows" in (folder / "out" / "README.md").read_text(encoding="utf-8")


def test_the_reference_rule_gives_the_published_sizes(folder: Path) -> None:
    rows = [row(Question=f"{n}?", Figure_path=f"f{n}.png") for n in range(4)]
    write_csv(folder / "train.csv", rows)
    build_pmc_vqa(folder / "train.csv", folder / "images", folder / "out", resize="reference")
    samples = PMCVQA(source=folder / "out").load()
    assert [image_size(sample.images[0]) for sample in samples] == [(60, 40), (1024, 20), (28, 28), (20, 1024)]
    assert json.loads((folder / "out" / "provenance.json").read_text())["provenance"]["figures_resized"] == 3


TEXTS = st.text(alphabet="AB:,\"' \n\xa0xN/", max_size=6)


@given(st.lists(st.fixed_dictionaries({name: TEXTS for name in COLUMNS}), max_size=8))
def test_any_row_is_cleaned_as_the_plain_rules_say(rows: list[dict[str, str]]) -> None:
    for entry in rows:  # else hardly any row would be good
        entry |= {f"Choice {letter}": f"{letter}:{entry[f'Choice {letter}']}" for letter in "ACD"}
        entry |= {"Answer_label": "A", "Answer": entry["Choice A"][2:]}
    kept: list[Any] = []
    for entry in rows:
        try:
            record = dict(clean_row(entry, len(kept)))
        except RecordError:
            continue
        kept.append({name: record[name] for name in ("question", "options", "answer_label", "dataset_index")})
    assert kept == published(rows)


def test_the_file_is_read_as_pandas_reads_it(tmp_path: Path) -> None:
    rows = [*GOOD, row(Question='say "x"', Answer="NaN", Choice_A="", Choice_B="null"), row(Question="a\nb,c")]
    path = write_csv(tmp_path / "x.csv", rows, columns=(*COLUMNS[::-1],))
    path.write_bytes(path.read_bytes() + b"\n\n")
    frame = pandas.read_csv(path, dtype=str, keep_default_na=False)
    assert list(read_rows(path)) == frame.to_dict("records")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(read_rows(path)) == frame.to_dict("records")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "index,Figure_path,Caption,Question,Choice A,Choice B,Choice C,Choice D,Answer,split\n",
            "at fault: Answer_label",
        ),
        ("", "nothing"),
        (",".join([*COLUMNS, "Question"]) + "\n", "at fault: Question"),
        (",".join(COLUMNS) + "\n", "it is empty"),
        (b"\xff\xfe\x00", "UTF-8"),
        (",".join(COLUMNS) + '\n"' + "x" * 200_000, "field"),
    ],
)
def test_another_file_is_refused_at_once(content: str | bytes, message: str, folder: Path) -> None:
    path = folder / "train.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        build_pmc_vqa(path, folder / "images", folder / "out")
    assert not (folder / "out").exists()


@pytest.mark.parametrize("shift", ["extra field", "moved by one"])
def test_shifted_columns_are_one_clear_error_before_any_figure(shift: str, folder: Path) -> None:
    lines = []
    for number in range(30):
        values = [row(Question=f"{number}?")[name] for name in COLUMNS]
        lines.append([str(number), *values] if shift == "extra field" else [*values[1:], values[0]])
    buffer = io.StringIO()
    csv.writer(buffer).writerows([list(COLUMNS), *lines])
    (folder / "train.csv").write_text(buffer.getvalue(), encoding="utf-8")
    with pytest.raises(DataError, match="Are the columns shifted") as caught:
        build_pmc_vqa(folder / "train.csv", folder / "images", folder / "out")
    message = str(caught.value)
    assert "30 of 30 records" in message
    assert ("has 9 fields, the header 8" in message) == (shift == "extra field")
    assert "30" in message
    assert sorted(path.name for path in folder.iterdir() if path.name != "cache") == ["images", "train.csv"]


def test_too_many_missing_figures_stop_the_build_and_keep_the_work(folder: Path) -> None:
    rows = [row(Question=f"{n}?", Figure_path=name) for n, name in enumerate(["f1.png", "f2.png", "f7.png", "f8.png"])]
    write_csv(folder / "train.csv", rows)
    log = folder / "log.jsonl"
    with pytest.raises(DataError, match=r"2 of 4 rows .*missing_image 2.*f7\.png"):
        build_pmc_vqa(folder / "train.csv", folder / "images", folder / "out", drop_log=log)
    assert len(log.read_text().splitlines()) == 2
    assert not (folder / "out").exists()
    for name in ("f7.png", "f8.png"):
        picture(folder / "images" / name, 30, 30)
    build_pmc_vqa(folder / "train.csv", folder / "images", folder / "out", drop_log=log)
    assert len(PMCVQA(source=folder / "out").load()) == 4
    assert log.read_text() == ""
    with pytest.raises(DataError, match="overwrite"):
        build_pmc_vqa(folder / "train.csv", folder / "images", folder / "out")
    with pytest.raises(DataError, match="folder of figures"):
        build_pmc_vqa(folder / "train.csv", folder / "elsewhere", folder / "out", overwrite=True)
    with pytest.raises(DataError, match="cannot read"):
        build_pmc_vqa(folder / "gone.csv", folder / "images", folder / "out", overwrite=True)


SLOW_BUILD = """
import sys, time
from medvlt.curation import figures, pmc_vqa
fast = figures.open_image
figures.open_image = lambda path: (time.sleep(0.04), fast(path))[1]
pmc_vqa.build_pmc_vqa(*sys.argv[1:], threads=2)
"""


def test_a_killed_build_goes_on_and_ends_as_an_undisturbed_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"g{number}.png" for number in range(50)]
    for number, name in enumerate(names):
        picture(folder / "images" / name, 1030 + number, 30 + number, seed=number)
    rows = [row(Question=f"{name}?", Figure_path=name) for name in names] + [UNUSABLE[3][0]]
    write_csv(folder / "train.csv", rows)
    places = folder / "train.csv", folder / "images"
    journal = folder / "out.work" / "figures.jsonl"
    process = subprocess.Popen([sys.executable, "-c", SLOW_BUILD, *map(str, places), str(folder / "out")])
    until = time.monotonic() + 60
    while not (journal.is_file() and journal.read_bytes().count(b"\n") > 12):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "out").exists()
    done = journal.read_bytes().count(b"\n") - 1
    seen: list[Path] = []
    original = figures.open_image
    monkeypatch.setattr(figures, "open_image", lambda path: (seen.append(path), original(path))[1])
    build_pmc_vqa(*places, folder / "out")
    assert len(seen) == len(set(seen)) == 51 - done < 40
    build_pmc_vqa(*places, folder / "undisturbed")
    first, second = (PMCVQA(source=folder / name).load() for name in ("out", "undisturbed"))
    assert list(first) == list(second)
    assert uids_fingerprint(first.uids) == uids_fingerprint(second.uids)
    assert not list(folder.glob("*.work"))


def test_named_in_yaml_with_a_selection(folder: Path) -> None:
    write_csv(folder / "train.csv", [row(Question=f"{n}?") for n in range(4)])
    build_pmc_vqa(folder / "train.csv", folder / "images", folder / "out")
    uids = PMCVQA(source=folder / "out").load().uids
    counts = dict.fromkeys(COUNTS, 0) | {"n": 16}
    rows = {uid: counts | {"strict": strict} for uid, strict in zip(uids, (0, 7, 8, 1), strict=True)}
    probe = Probe("small", model="m", prompt="reference", sampling={"n": 16}, seed=42, grader_version=GRADER_VERSION)
    Ledger().with_probe(probe, rows).write(folder / "ledger.parquet")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=Source)
    settings = {
        "source": str(folder / "out"),
        "selection": {"ledger": str(folder / "ledger.parquet"), "probe": "small"},
    }
    config = yaml.safe_dump({"source": {"class_path": "PMCVQA", "init_args": settings}})
    parsed = parser.parse_string(config)
    assert parser.dump(parser.parse_string(parser.dump(parsed))) == parser.dump(parsed)
    samples = parser.instantiate(parsed).source.load()
    assert [(sample.dataset_index, sample.pass_count) for sample in samples] == [(1, 7), (3, 1)]


def test_any_stored_form_and_the_name_on_the_hub(folder: Path) -> None:
    picture(folder / "f.png", 30, 30)
    record = {"question": "q?", "options": {"A": "a", "B": "b"}, "answer": "a", "images": ["f.png"]}
    (folder / "x.jsonl").write_text(json.dumps(record))
    assert PMCVQA(source=folder / "x.jsonl").load()[0].answer_label == "A"
    assert PMCVQA(source=JSONLines(folder / "x.jsonl", dataset_name="mine")).load()[0].dataset_name == "mine"
    assert PMCVQA().source == "UCSC-VLAA/MedVLThinker-pmc_vqa"


def test_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(folder / "train.csv", [row(Question=f"{n}?") for n in range(3)])
    words = ["data", "build", "pmc-vqa", "--csv", str(folder / "train.csv"), "--images", str(folder / "images")]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--output", str(folder / "out"), "--resize", "reference"])
    assert caught.value.code == 0
    assert "3 questions" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main([*words, "--output", str(folder / "out")])
    assert caught.value.code == 2
    assert "overwrite" in capsys.readouterr().err


def test_what_a_user_keeps_beside_the_set_is_never_removed(folder: Path) -> None:
    write_csv(folder / "train.csv", [row(Question=f"{n}?", Figure_path=f"f{n}.png") for n in range(4)])
    mine = folder / "out.work" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(DataError, match=r"out\.work, found other things"):
        build_pmc_vqa(folder / "train.csv", folder / "images", folder / "out")
    assert mine.read_text() == "mine"
    mine.rename(folder / "notes.txt")
    build_pmc_vqa(folder / "train.csv", folder / "images", folder / "out")
    assert not (folder / "out.work").exists()


def test_the_work_is_locked_until_the_set_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(folder / "train.csv", [row(Question=f"{n}?", Figure_path=f"f{n}.png") for n in range(4)])
    places = folder / "train.csv", folder / "images", folder / "out"
    refused: list[str] = []
    write = pmc_vqa.write_dataset

    def meanwhile(*args: Any, **settings: Any) -> Any:
        monkeypatch.setattr(pmc_vqa, "write_dataset", write)
        with pytest.raises(DataError, match="another process") as caught:
            build_pmc_vqa(*places)
        refused.append(str(caught.value))
        return write(*args, **settings)

    monkeypatch.setattr(pmc_vqa, "write_dataset", meanwhile)
    build_pmc_vqa(*places)
    assert len(refused) == 1
    assert len(PMCVQA(source=folder / "out").load()) == 4


def test_settings_reach_the_figures_and_the_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_csv(folder / "train.csv", [row(Question=f"{n}?", Figure_path=f"f{n}.png") for n in range(4)])
    together = threading.Barrier(2, timeout=20)
    original = figures.open_image
    monkeypatch.setattr(figures, "open_image", lambda path: (together.wait(), original(path))[1])
    limits = {"max_decoded_pixels": 60 * 40, "max_drop_share": 0.5, "threads": 2}
    build_pmc_vqa(table, folder / "images", folder / "out", **limits)
    record = json.loads((folder / "out" / "provenance.json").read_text())
    assert record["dropped"] == {"image_too_large": 2}
    assert record["provenance"]["csv_sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
    with pytest.raises(ConfigurationError, match="max_decoded_pixels"):
        build_pmc_vqa(table, folder / "images", folder / "new", max_decoded_pixels=0)


def test_of_stored_pictures_only_headers_are_read(folder: Path) -> None:
    record = {"question": "q?", "options": {"A": "a", "B": "b"}, "answer": "a", "images": ["images/damaged.png"]}
    (folder / "x.jsonl").write_text(json.dumps(record))
    assert len(PMCVQA(source=folder / "x.jsonl").load()) == 1
    with pytest.raises(DataError, match="corrupt_image"):
        PMCVQA(source=JSONLines(folder / "x.jsonl")).load()


def test_a_mistyped_path_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^there is no file or folder 'data/pmc_vqaa' here"):
        PMCVQA(source="data/pmc_vqaa").load()
