# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import datasets
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medvlt.curation.card import (
    Spread,
    announce,
    cell,
    data_card,
    describe,
    left_out,
    markdown_table,
    write_dataset,
)
from medvlt.curation.selection import SelectionReport
from medvlt.data.drops import Drop, DropReason, ReadReport
from medvlt.data.mixture import Mixture, Subset
from medvlt.data.samples import SampleSet, Source, uids_fingerprint
from medvlt.data.sources import JSONLines, SavedDataset
from medvlt.errors import DataError
from medvlt.types import Sample


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def sample(number: int, **changes: object) -> Sample:
    plain = Sample(
        uid=f"toy:{number}",
        question=f"Which one is number {number}?",
        options={"A": "this", "B": "that one"},
        answer_label="A",
        answer="this",
        dataset_name="toy",
        dataset_index=number,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def toys() -> SampleSet:
    drops = (Drop(1, None, DropReason.BAD_LABEL, "a | b\n# c"), Drop(4, "u", DropReason.BAD_LABEL, "second"))
    samples = [
        sample(0, images=(png(56, 28), png(28, 280)), pass_count=0),
        sample(1, answer_label="B", answer="that one", reasoning="first this, then that"),
        sample(2, options={"A": "a", "B": "b", "C": "c"}, answer_label="C", answer="c", dataset_name="x|y"),
        sample(3, options={}, answer_label=None, answer="free", images=(png(56, 56),)),
    ]
    return SampleSet(samples, ReadReport("toys", 6, 4, drops))


@given(st.lists(st.text(max_size=5), max_size=6), st.randoms())
def test_a_fingerprint_names_the_questions_not_their_order(uids: list[str], random: object) -> None:
    shuffled = list(uids)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert uids_fingerprint(shuffled) == uids_fingerprint(uids)
    assert uids_fingerprint([*uids, "one more"]) != uids_fingerprint(uids)


def test_the_fingerprint_is_what_it_says() -> None:
    assert uids_fingerprint(["b:1", "a:2"]) == hashlib.sha256(b"a:2\nb:1\n").hexdigest()[:16]
    assert uids_fingerprint(["ab", "c"]) != uids_fingerprint(["a", "bc"])


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40))
def test_spreads_agree_with_sorting(values: list[int]) -> None:
    spread = Spread.of(values)
    place = 0.95 * (len(values) - 1)
    below, above = sorted(values)[int(place)], sorted(values)[min(int(place) + 1, len(values) - 1)]
    assert (spread.count, spread.least, spread.most) == (len(values), min(values), max(values))
    assert spread.median == pytest.approx(median(values))
    assert spread.high == pytest.approx(below + (place - int(place)) * (above - below))
    assert spread.mean == pytest.approx(sum(values) / len(values))


def test_facts() -> None:
    facts = describe(toys())
    assert facts.sources["toy"] == {
        "questions": 3, "with pictures": 2, "pictures": 3, "with reasoning": 1, "measured": 1,
    }  # fmt: skip
    assert facts.sources["x|y"]["questions"] == 1
    assert facts.labels == {0: {"(open)": 1}, 2: {"A": 1, "B": 1}, 3: {"C": 1}}
    assert facts.lengths["option (characters)"] == Spread.of([4, 8, 4, 8, 1, 1, 1])
    assert facts.lengths["reasoning (words)"] == Spread.of([4])
    assert facts.pictures["longer side (pixels)"] == Spread.of([56, 280, 56])
    # one token is 28 x 28 pixels, a picture has at least 4
    assert facts.pictures["tokens (28 x 28 pixels)"].most == 10
    assert facts.fingerprint == uids_fingerprint(f"toy:{i}" for i in range(4))


def test_the_card_is_markdown_that_nothing_breaks() -> None:
    card = data_card(
        describe(toys()),
        title="A *set* | <b>",
        provenance={"source": "```\n# no heading", "seed": 42},
        notes=["one\n## two"],
    )
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["pretty_name"] == "A *set* | <b>"
    assert yaml.safe_load(header)["size_categories"] == ["n<1K"]
    assert "not for clinical use" in body
    assert "\n# A \\*set\\* \\| \\<b\\>\n" in body
    assert "\n- one \\#\\# two\n" in body
    assert "\n| x\\|y | 1 | 0 | 0 | 0 | 0 |\n" in body
    assert "\n| bad\\_label | 2 | row 1: a \\| b \\# c |\n" in body
    assert "6 records read from toys, 2 could not be used." in body
    headings = [line for line in body.splitlines() if line.startswith("#")]
    names = ["Notes", "Sources", "Right letters", "Lengths", "Pictures", "Left out", "Provenance"]
    assert headings[1:] == [f"## {name}" for name in names]
    block = body.split("```json\n")[1].split("\n```")[0]
    assert json.loads(block) == {"source": "```\n# no heading", "seed": 42}


@given(st.text(max_size=400))
def test_a_cell_is_one_line_without_open_bars(text: str) -> None:
    shown = cell(text)
    assert len(shown.splitlines()) <= 1
    assert "|" not in shown.replace("\\\\", "").replace("\\|", "")


def test_a_written_set_reads_back_with_its_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "set"
    facts = write_dataset(
        toys(), output, title="toys", provenance={"seed": 1, "path": tmp_path}, files={"x.png": b"png"}
    )
    again = SavedDataset(output, open_questions=True, max_drop_share=0).load()
    assert [question.uid for question in again] == [f"toy:{i}" for i in range(4)]
    assert [len(question.images) for question in again] == [2, 0, 0, 1]
    assert len(datasets.load_from_disk(str(output))) == 4
    assert uids_fingerprint(again.uids) == facts.fingerprint
    record = json.loads((output / "provenance.json").read_text(encoding="utf-8"))
    assert record["fingerprint"] == facts.fingerprint
    assert record["sources"] == {"toy": 3, "x|y": 1}
    assert record["dropped"] == {"bad_label": 2}
    assert record["provenance"] == {"seed": 1, "path": str(tmp_path)}
    assert (output / "x.png").read_bytes() == b"png"
    log = [json.loads(line) for line in (output / "drops.jsonl").read_text().splitlines()]
    assert [(line["row"], line["uid"]) for line in log] == [(1, None), (4, "u")]
    assert facts.fingerprint in (output / "README.md").read_text(encoding="utf-8")
    announce(facts, output)
    said = capsys.readouterr().out
    assert "4 questions: toy 3, x|y 1" in said
    assert "A 25.0%" in said
    assert "left out of 6 records: bad_label 2" in said
    assert str(output / "README.md") in said
    assert "not for clinical use" in said


def test_nothing_is_replaced_unasked_and_nothing_harmed_by_a_failure(tmp_path: Path) -> None:
    write_dataset(toys(), tmp_path / "set", title="old", provenance={})
    before = {path: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    with pytest.raises(DataError, match="overwrite"):
        write_dataset(toys(), tmp_path / "set", title="new", provenance={})
    with pytest.raises(DataError, match="overwrite"):  # at once, not after an hour of measuring
        write_dataset(SampleSet([None]), tmp_path / "set", title="new", provenance={})  # type: ignore[list-item]
    with pytest.raises(DataError, match="no question is left"):
        write_dataset(SampleSet([]), tmp_path / "set", title="new", provenance={}, overwrite=True)
    for name in ("README.md", "state.json", "../outside", "a/b"):
        with pytest.raises(DataError, match="name"):
            write_dataset(toys(), tmp_path / "set", title="new", provenance={}, files={name: b""}, overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["set"]
    write_dataset(toys()[1:2], tmp_path / "set", title="new", provenance={}, overwrite=True)
    assert len(SavedDataset(tmp_path / "set").load()) == 1


def test_what_a_selection_left_out_is_told_apart_from_what_was_broken(tmp_path: Path) -> None:
    whole = toys()
    report = SelectionReport("chosen", 4, 1, parts=(whole.report,), left_out={"below the band": 3})
    chosen = SampleSet([whole[0]], report)
    assert left_out(report) == {"below the band": 3}
    write_dataset(chosen, tmp_path / "set", title="chosen", provenance={})
    card = (tmp_path / "set" / "README.md").read_text(encoding="utf-8")
    assert "6 records read from chosen, 2 could not be used. 3 were left out on purpose: below the band 3." in card
    record = json.loads((tmp_path / "set" / "provenance.json").read_text(encoding="utf-8"))
    assert (record["read"], record["dropped"], record["left_out"]) == (6, {"bad_label": 2}, {"below the band": 3})


def test_pictures_are_not_held_in_memory(tmp_path: Path) -> None:
    class Lazy(Sequence[Sample]):
        alive = 0

        def __len__(self) -> int:
            return 30

        def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
            return sample(index, images=(Counted(png(28, 28)),))

    class Counted(bytes):
        most = alive = 0

        def __init__(self, content: bytes) -> None:
            Counted.alive += 1
            Counted.most = max(Counted.most, Counted.alive)

        def __del__(self) -> None:
            Counted.alive -= 1

    describe(SampleSet(Lazy(), uids=[f"toy:{i}" for i in range(30)]))
    assert Counted.most <= 2


def test_real_questions(tmp_path: Path, shared_data: Path) -> None:
    samples = JSONLines(shared_data / "vqa_rad_closed_yesno.jsonl", check_images="header").load()[:40]
    facts = write_dataset(samples, tmp_path / "set", title="VQA-RAD", provenance={})
    again = SavedDataset(tmp_path / "set", check_images="header").load()
    assert describe(again).sources == facts.sources
    assert describe(again).pictures == facts.pictures
    assert facts.sources["vqa_rad_train"]["questions"] + facts.sources["vqa_rad_test"]["questions"] == 40


def test_what_no_report_tells_of_was_not_chosen(tmp_path: Path) -> None:
    class Held(Source):
        def __init__(self, samples: list[Sample]) -> None:
            self.samples = samples

        def load(self) -> SampleSet:
            return SampleSet(self.samples)

    class Toys(Source):
        def load(self) -> SampleSet:
            return toys()

    assert describe(Subset(Toys(), limit=1).load()).left_out == {"not chosen by the source": 3}
    mixture = Mixture([Toys(), Toys()], weights=[1.0, 0.0], size=3).load()
    assert describe(mixture).left_out == {"not chosen by the source": 1}
    repeated = Mixture([Toys()], weights=[1.0], size=7, repeat=True).load()
    assert describe(repeated).left_out == {}
    others = [sample(number, dataset_name="others") for number in range(10, 14)]
    both = Mixture([Toys(), Held(others)], weights=[3.0, 1.0], size=8, repeat=True).load()  # 4 + 2 again, 2 of 4
    assert describe(both).left_out == {"not chosen by the source": 2}
    assert describe(Subset(Mixture([Toys()], [1.0], 8, repeat=True), limit=8).load()).left_out == {}
    assert describe(Mixture([Toys(), Toys()]).load()).left_out == {}  # the second time they are duplicates
    facts = write_dataset(Subset(Toys(), limit=1).load(), tmp_path / "set", title="t", provenance={})
    record = json.loads((tmp_path / "set" / "provenance.json").read_text(encoding="utf-8"))
    assert record["left_out"] == {"not chosen by the source": 3}
    assert record["read"] == record["questions"] + sum(record["left_out"].values()) + sum(record["dropped"].values())
    assert "not chosen by the source 3." in (tmp_path / "set" / "README.md").read_text(encoding="utf-8")
    assert "not chosen by the source 3" in facts.summary()


def test_a_path_of_undecodable_bytes_costs_no_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = os.fsdecode(b"caf\xe9")
    facts = write_dataset(toys(), tmp_path / "set", title=odd, provenance={"source": tmp_path / odd}, notes=[odd])
    announce(facts, tmp_path / odd)
    assert "caf\\udce9" in capsys.readouterr().out
    record = json.loads((tmp_path / "set" / "provenance.json").read_text(encoding="utf-8"))
    assert os.fsencode(record["provenance"]["source"]).endswith(b"caf\xe9")
    assert "caf" in (tmp_path / "set" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("output", "message"), [(".", "name"), ("", "name"), ("..", "name"), ("runs", "other things")])
@pytest.mark.parametrize("overwrite", [True, False])
def test_an_impossible_place_is_refused_before_the_work(
    output: str, message: str, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "checkpoint").touch()
    monkeypatch.chdir(tmp_path)
    unreadable = SampleSet([None])  # type: ignore[list-item]
    with pytest.raises(DataError, match=message if overwrite or message == "name" else "overwrite"):
        write_dataset(unreadable, output, title="new", provenance={}, overwrite=overwrite)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        write_dataset(unreadable, "file", title="new", provenance={}, overwrite=True)


def test_numbers_stand_at_the_right() -> None:
    lines = markdown_table(("a|b", "n", "share"), [("x*", 1000, 0.25), ("y", 2, 1.0)]).splitlines()
    assert lines == ["| a\\|b | n | share |", "| --- | ---: | ---: |", "| x\\* | 1,000 | 0.2 |", "| y | 2 | 1.0 |"]
    assert markdown_table(("a", "b"), []).splitlines() == ["| a | b |", "| --- | --- |"]
