# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import json
import random
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rapidfuzz.fuzz
import yaml
from PIL import Image

from medvlt.__main__ import main
from medvlt.curation.contamination import CONTAMINATION, decontaminate, find_contamination
from medvlt.curation.contamination_report import json_lines, markdown, summary
from medvlt.data.samples import SampleSet, Source
from medvlt.data.sources import JSONLines, SavedDataset
from medvlt.data.writers import write_jsonl
from medvlt.errors import ConfigurationError, DataError
from medvlt.types import ImageSource, Sample

STEMS = (
    "A 60-year-old woman has a painless swelling of the left calf after a long flight. What is the next step?",
    "Which nerve runs with the profunda brachii artery along the humerus?",
    "A newborn vomits bile on the first day of life, and the film shows a double bubble. What is the diagnosis?",
    "Which enzyme is inhibited by allopurinol in the treatment of gout?",
)


def noise(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC)


def ask(uid: str, question: str, *images: ImageSource, answer: str = "yes") -> Sample:
    options = {"A": answer, "B": f"not {answer}"}
    return Sample(uid, question, options, "A", answer, images=images, dataset_name="s", dataset_index=uid)


@dataclass(frozen=True)
class Given(Source):
    samples: Sequence[Sample]

    def load(self) -> SampleSet:
        return SampleSet(list(self.samples))


@pytest.fixture
def train() -> list[Sample]:
    return [
        ask("t0", STEMS[0]),
        ask("t1", STEMS[1].upper(), answer="radial"),
        ask("t2", STEMS[0].replace("60", "fifty-five").replace("painless ", "")),
        ask("t3", STEMS[3]),
        ask("p0", "Is there a fracture of the femur?", noise(0)),
        ask("p1", "Which organ is enlarged?", noise(1)),
        ask("p2", "Which plane is this?", noise(2).transpose(Image.Transpose.ROTATE_90)),
    ]


@pytest.fixture
def evaluation() -> dict[str, list[Sample]]:
    return {
        "texts": [ask("e0", STEMS[0]), ask("e1", STEMS[1], answer="ulnar"), ask("e2", STEMS[2])],
        "films": [
            ask("f0", "Is there a fracture of the femur?", noise(7)),
            ask("f1", "Is the heart large?", noise(1)),
            ask("f2", "Which organ is enlarged?", noise(1)),
            ask("f3", "Where?", noise(2)),
        ],
        "clean": [ask("c0", STEMS[2])],
    }


def sets(evaluation: dict[str, list[Sample]]) -> dict[str, SampleSet]:
    return {name: SampleSet(samples) for name, samples in evaluation.items()}


def test_every_kind_is_found_and_nothing_else(train: list[Sample], evaluation: dict[str, list[Sample]]) -> None:
    found = find_contamination(SampleSet(train), sets(evaluation))
    assert [(pair.train_uid, pair.evaluation_set, pair.evaluation_uid, pair.kind) for pair in found.pairs] == [
        ("t0", "texts", "e0", "exact_text"),
        ("t1", "texts", "e1", "exact_text"),
        ("t2", "texts", "e0", "near_text"),
        ("p0", "films", "f0", "same_wording"),
        ("p1", "films", "f2", "same_picture_pixels"),  # the question most like it of the two about that picture
        ("p1", "films", "f2", "same_wording"),
        ("p2", "films", "f3", "near_picture"),
    ]
    assert found.matched() == {
        "t0": "exact_text", "t1": "exact_text", "t2": "near_text", "p1": "same_picture_pixels", "p2": "near_picture",
    }  # fmt: skip
    assert found.rows() == [
        ("texts", "exact_text", 2, 2),
        ("texts", "near_text", 1, 1),
        ("films", "same_picture_pixels", 1, 2),
        ("films", "near_picture", 1, 1),
        ("films", "same_wording", 2, 2),
    ]
    shared = found.pairs[4]
    assert (shared.others, shared.other_uids, shared.scores["wording"]) == (1, ("f1",), 1.0)


def test_kinds_are_counted_by_their_order(train: list[Sample], evaluation: dict[str, list[Sample]]) -> None:
    found = find_contamination(SampleSet(train), sets(evaluation))
    assert found.matched(["same_wording", "same_picture_pixels"]) == {"p0": "same_wording", "p1": "same_wording"}
    assert found.matched([]) == {}


def test_without_comparing_pictures_a_picture_question_still_matches_by_wording_only(
    train: list[Sample], evaluation: dict[str, list[Sample]]
) -> None:
    found = find_contamination(SampleSet(train), sets(evaluation), compare_pictures=False)
    kinds = {(pair.train_uid, pair.kind) for pair in found.pairs if pair.train_uid.startswith("p")}
    assert kinds == {("p0", "same_wording"), ("p1", "same_wording")}
    assert found.train_pictures is None


def test_questions_of_equal_text_are_all_found(train: list[Sample]) -> None:
    repeated = [replace(train[0], uid=f"r{number}") for number in range(30)]
    found = find_contamination(SampleSet(repeated[:2]), {"e": SampleSet(repeated)})
    assert [(pair.train_uid, pair.others, len(pair.other_uids)) for pair in found.pairs] == [
        ("r0", 29, 20),
        ("r1", 29, 20),
    ]
    assert found.rows() == [("e", "exact_text", 2, 30)]


def planted(text: str, picture: Path | None, side: str, count: int) -> SampleSet:
    images = () if picture is None else (picture,)
    return SampleSet([ask(f"{side}{number}", text, *images) for number in range(count)])


@pytest.mark.parametrize("pictured", [False, True])
def test_thousands_of_equal_questions_need_little_memory_and_time(tmp_path: Path, pictured: bool) -> None:
    path = tmp_path / "picture.png"
    noise(0).save(path)
    train, shelf = (planted(STEMS[0], path if pictured else None, side, 3_000) for side in "te")
    calls: list[int] = []
    tracemalloc.start()
    started = time.process_time()
    with pytest.MonkeyPatch.context() as patch:
        ratio = rapidfuzz.fuzz.ratio
        patch.setattr(rapidfuzz.fuzz, "ratio", lambda *texts: calls.append(1) or ratio(*texts))
        found = find_contamination(train, {"e": shelf})
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kinds = ["same_picture_bytes", "same_wording"] if pictured else ["exact_text"]
    assert found.rows() == [("e", kind, 3_000, 3_000) for kind in kinds]
    assert {(pair.evaluation_uid, pair.others, len(pair.other_uids)) for pair in found.pairs} == {("e0", 2_999, 20)}
    assert len(calls) == pictured  # one pair of different texts
    assert peak < 50e6
    assert seconds < 10


def test_a_template_filled_in_many_times_needs_little_memory() -> None:
    train, shelf = (
        SampleSet([ask(f"{side}{n}", f"Clearance at a weight of {start + n} kg?") for n in range(100)])
        for side, start in (("t", 0), ("e", 1000))
    )
    find_contamination(train, {"e": shelf})
    tracemalloc.start()
    found = find_contamination(train, {"e": shelf})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.rows() == [("e", "same_but_numbers", 100, 100)]
    assert found.matched() == {}
    assert peak < 1.5e6  # 10,000 matches that are kept need 3 MB


def test_matches_are_those_of_a_plain_loop_over_all_pairs(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        noise(number).save(path)
    rng = random.Random(0)

    def side(name: str, count: int) -> list[Sample]:
        return [
            ask(f"{name}{number}", rng.choice(STEMS), *rng.sample(paths, rng.choice((0, 0, 1, 2))))
            for number in range(count)
        ]

    train, shelf = side("t", 40), side("e", 60)
    expected: dict[tuple[str, str], list[str]] = {}
    for one, other in itertools.product(train, shelf):
        if one.question == other.question:
            kind = "same_wording" if one.images or other.images else "exact_text"
            expected.setdefault((one.uid, kind), []).append(other.uid)
        if set(one.images) & set(other.images):
            expected.setdefault((one.uid, "same_picture_bytes"), []).append(other.uid)
    found = find_contamination(SampleSet(train), {"e": SampleSet(shelf)})
    assert {(p.train_uid, p.kind): {p.evaluation_uid, *p.other_uids} for p in found.pairs if p.others <= 20} == {
        key: set(uids) for key, uids in expected.items() if len(uids) <= 21
    }
    assert {(p.train_uid, p.kind): 1 + p.others for p in found.pairs} == {k: len(v) for k, v in expected.items()}
    for pair in found.pairs:  # the one worded most alike comes first
        if pair.kind == "same_picture_bytes":
            question = train[int(pair.train_uid[1:])].question
            wording = {o.question == question for o in shelf if o.uid in expected[pair.train_uid, pair.kind]}
            assert (pair.scores["wording"] == 1) == (True in wording)


def test_questions_that_differ_in_their_numbers_alone_are_reported_and_kept(tmp_path: Path) -> None:
    train = [
        ask("changed", "Normal GFR is 125?", answer="true"),
        ask("spelled", "What becomes of five ligaments?"),
        ask("other", STEMS[3]),
    ]
    shelf = [ask("e0", "Normal GFR is 90", answer="false"), ask("e1", "What becomes of 5 ligaments?")]
    found = find_contamination(SampleSet(train), {"e": SampleSet(shelf)})
    assert [(pair.train_uid, pair.kind) for pair in found.pairs] == [
        ("changed", "same_but_numbers"),
        ("spelled", "near_text"),
    ]
    assert (found.pairs[0].train_answer, found.pairs[0].evaluation_answer) == ("true", "false")
    decontaminate(Given(train), {"e": Given(shelf)}, tmp_path / "report.md", tmp_path / "clean")
    assert {s.dataset_index for s in SavedDataset(path=tmp_path / "clean").load()} == {"changed", "other"}
    report = (tmp_path / "report.md").read_text()
    assert "### e, same_but_numbers" in report
    assert "training: Normal GFR is 125? Right: true" in report
    assert "evaluation: Normal GFR is 90 Right: false" in report


def test_card_of_the_cleaned_set_tells_of_unreadable_pictures(tmp_path: Path) -> None:
    noise(0).save(tmp_path / "whole.png")
    cut = (tmp_path / "whole.png").read_bytes()[:500]  # its size can be read
    train = [ask("a", STEMS[0]), ask("b", "What is it?", cut)]
    shelf = [ask("c", "Where?", noise(0)), ask("d", "Where?", tmp_path / "gone.png")]
    decontaminate(Given(train), {"e": Given(shelf)}, tmp_path / "r.md", tmp_path / "clean")
    card = (tmp_path / "clean" / "README.md").read_text()
    assert "could not be read, and so were not compared: 1 of the training set, 1 of the evaluation sets" in card


def test_texts_without_words_and_unreadable_pictures_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    found = find_contamination(
        SampleSet([ask("a", "???"), ask("b", "What is it?", b"no picture")]),
        {"e": SampleSet([ask("c", "!"), ask("d", "Where is it?", noise(0))])},
    )
    assert found.wordless == 2
    assert found.train_pictures is not None
    assert [uid for uid, _ in found.train_pictures.unreadable] == ["b"]
    assert "1 pictures of the training set cannot be read" in caplog.text
    assert "1 training pictures could not be read" in summary(found, CONTAMINATION)
    assert "1 unreadable and so not compared" in markdown(found, CONTAMINATION, {}, source="s")


def test_nothing_to_compare_with_is_refused(train: list[Sample]) -> None:
    with pytest.raises(ConfigurationError, match="at least one evaluation set"):
        find_contamination(SampleSet(train), {})


def test_report_has_counts_thresholds_and_pairs_and_the_lines_have_all(
    train: list[Sample], evaluation: dict[str, list[Sample]], tmp_path: Path
) -> None:
    given = {name: Given(samples) for name, samples in evaluation.items()}
    decontaminate(Given(train), given, tmp_path / "report.md")
    report = (tmp_path / "report.md").read_text()
    for expected in (
        "5 of 7 questions of memory match", "| texts | exact_text | 2 | 2 | 3 |", "Nothing was found of: clean.",
        '"similarity": 0.65', '"agreement": 0.77', "### films, near_picture", "not for clinical use",
    ):  # fmt: skip
        assert expected in report
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [line["train_uid"] for line in lines] == ["t0", "t1", "t2", "p0", "p1", "p1", "p2"]
    found = find_contamination(SampleSet(train), sets(evaluation))
    assert lines == [json.loads(line) for line in json_lines(found)]


def test_marks_of_markdown_in_a_question_are_text(tmp_path: Path) -> None:
    question = "What do <b>stars</b> | *mean* in\n# this `long` line about nothing?"
    decontaminate(Given([ask("a", question)]), {"e": Given([ask("b", question)])}, tmp_path / "report.md")
    line = next(x for x in (tmp_path / "report.md").read_text().splitlines() if "training: " in x)
    assert (
        line == r"  - training: What do \<b\>stars\</b\> \| \*mean\* in \# this \`long\` line about nothing? Right: yes"
    )


@pytest.mark.parametrize(
    ("drop", "left"),
    [(None, ["t3", "p0"]), (["same_wording"], ["t0", "t1", "t2", "t3", "p2"]), ([], None)],
)
def test_output_is_the_training_set_without_the_matches(
    train: list[Sample], evaluation: dict[str, list[Sample]], tmp_path: Path, drop: Any, left: list[str] | None
) -> None:
    given = {name: Given(samples) for name, samples in evaluation.items()}
    output = tmp_path / "clean"
    decontaminate(Given(train), given, tmp_path / "report.md", output, drop=drop)
    indices = [sample.dataset_index for sample in SavedDataset(path=output).load()]
    assert indices == (left or [sample.uid for sample in train])
    provenance = json.loads((output / "provenance.json").read_text())
    assert sum(provenance["left_out"].values()) == len(train) - len(indices)
    told = provenance["provenance"]
    assert told["rules"]["text"]["similarity"] == 0.65
    assert told["evaluation"]["texts"]["questions"] == 3
    assert {"evaluation_set": "films", "kind": "near_picture", "train_questions": 1, "evaluation_questions": 1} in (
        told["matches"]
    )


def test_mistakes_are_told_before_the_work(train: list[Sample], tmp_path: Path) -> None:
    given = {"e": Given(train)}
    with pytest.raises(ConfigurationError, match="drop: expected kinds out of exact_text"):
        decontaminate(Given(train), given, tmp_path / "r.md", drop=["everything"])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match=r"ending in \.md"):
        decontaminate(Given(train), given, tmp_path / "r.txt")
    (tmp_path / "r.jsonl").touch()
    with pytest.raises(DataError, match=r"r\.jsonl exists"):
        decontaminate(Given(train), given, tmp_path / "r.md")
    with pytest.raises(DataError, match="no question is left"):
        decontaminate(Given(train), given, tmp_path / "r.md", tmp_path / "clean", overwrite=True)


def test_command_reads_its_sets_from_yaml(
    train: list[Sample], evaluation: dict[str, list[Sample]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(train, tmp_path / "train.jsonl")
    write_jsonl(evaluation["texts"], tmp_path / "texts.jsonl")
    source = {"class_path": "JSONLines", "init_args": {"path": str(tmp_path / "train.jsonl")}}
    other = {"class_path": "JSONLines", "init_args": {"path": str(tmp_path / "texts.jsonl")}}
    settings = {
        "train": source, "evaluation": {"texts": other}, "report": str(tmp_path / "report.md"),
        "drop": ["exact_text"], "text": {"similarity": 0.9, "long_similarity": 0.9}, "compare_pictures": False,
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as caught:
        main(["data", "decontaminate", "--config", str(tmp_path / "config.yaml")])
    assert caught.value.code == 0
    assert "2 of 7 training questions (28.6%) are contaminated" in capsys.readouterr().out
    assert '"similarity": 0.9' in (tmp_path / "report.md").read_text()


def test_real_sets_known_to_overlap(shared_data: Path) -> None:
    # MedXpertQA took questions of the banks that MedQA is made of, and had most of them worded anew
    train = JSONLines(path=shared_data / "text_mcq_medqa_train.jsonl").load()
    expert = JSONLines(path=shared_data / "text_mcq_medxpertqa_text.jsonl").load()
    articles = JSONLines(path=shared_data / "text_mcq_pubmedqa_train.jsonl").load()
    found = find_contamination(train, {"expert": expert, "articles": articles}, compare_pictures=False)
    assert [row[:3] for row in found.rows()] == [("expert", "exact_text", 3), ("expert", "near_text", 8)]
