# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medvlt.curation.findings import MARKS, Findings
from medvlt.curation.ledger import Ledger, update_ledger
from medvlt.curation.probe import Probe
from medvlt.curation.quality import QualityRules, examine, picture_digests, quality
from medvlt.curation.quality_report import to_markdown
from medvlt.data.samples import SampleSet, Source
from medvlt.data.sources import JSONLines
from medvlt.errors import ConfigurationError, DataError
from medvlt.rewards.grade import GRADER_VERSION
from medvlt.types import Sample


class Listed(Source):
    """A source that is a list."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def load(self) -> SampleSet:
        return SampleSet(self.samples)


def question(number: int, stem: str, options: list[str], right: int = 0, picture: bytes | None = None) -> Sample:
    letters = dict(zip("ABCDE", options, strict=False))
    return Sample(
        f"toy:{number}", stem, letters, "ABCDE"[right], options[right], (picture,) if picture else (),
        dataset_name="toy", dataset_index=number,
    )  # fmt: skip


FOUR = ["Cyst", "Tumour", "Abscess", "Gout"]


def counts(robust: int, n: int = 16, pictures: int = 0, **more: int | str) -> dict[str, Any]:
    row = {"n": n, "strict": robust, "robust": robust, "format": n, "truncated": 0, "errors": 0, "mean_tokens": 9.0}
    return row | {"pictures": pictures, "grader": GRADER_VERSION} | more


def marked(findings: Findings) -> dict[str, list[str]]:
    return {name: uids for name in MARKS if (uids := findings.marked(name))}


def test_a_harmless_set_has_no_marks() -> None:
    samples = SampleSet([question(i, f"Finding {i}?", FOUR, i % 4) for i in range(8)])
    findings = examine(samples, QualityRules())
    assert marked(findings) == {}
    assert {name: len(values) for name, values in findings.marks.items()} == {
        "blind": 0, "duplicate": 8, "contradictory": 8, "caption_leak": 8, "length_bias": 8, "low_agreement": 0,
    }  # fmt: skip


def test_each_planted_question_is_marked_and_its_near_miss_is_not() -> None:
    long = "Idiopathic pulmonary fibrosis of both lower lobes"
    samples = SampleSet([
        question(0, "Which sign?", FOUR, 0, b"one"),
        question(1, "which sign", FOUR, 0, b"one"),  # duplicate
        question(2, "Which sign?", FOUR, 0, b"two"),  # another picture
        question(3, "Which mass?", FOUR, 0, b"one"),
        question(4, "Which mass?", FOUR, 1, b"one"),  # contradicts
        question(5, "Which mass?", FOUR, 2, b"three"),  # another picture
        question(6, "Where is the abscess?", FOUR, 2),  # gives it away
        question(7, "Where is the abscess or the cyst?", FOUR, 2),
        question(8, "Which disease?", [*FOUR, long], 4),  # longest
        question(9, "Which other disease?", [*FOUR, long], 3),
    ])  # fmt: skip
    assert marked(examine(samples, QualityRules())) == {
        "duplicate": ["toy:1"],
        "contradictory": ["toy:3", "toy:4"],
        "caption_leak": ["toy:6"],
        "length_bias": ["toy:8"],
    }


def test_blind_is_examined_for_picture_questions_with_enough_samples() -> None:
    samples = SampleSet([question(i, f"Finding {i}?", FOUR, 0, b"p") for i in range(5)] + [question(5, "Text?", FOUR)])
    rows = {
        "toy:0": counts(8), "toy:1": counts(7), "toy:2": counts(2, n=2), "toy:3": counts(3, n=3), "toy:5": counts(16),
    }  # fmt: skip
    findings = examine(samples, QualityRules(), blind=rows)
    assert findings.marks["blind"] == {"toy:0": True, "toy:1": False, "toy:3": True}
    assert findings.lucky_guesses == pytest.approx(3 / 4)
    fixed = examine(samples, QualityRules(blind_at_least=7), blind=rows)
    assert fixed.marks["blind"] == {"toy:0": True, "toy:1": True}


def test_low_agreement_needs_all_probes_and_readable_answers() -> None:
    samples = SampleSet([question(i, f"Finding {i}?", FOUR, 0, b"p") for i in range(7)])
    one = {f"toy:{i}": counts(0, pictures=1) for i in range(7)}
    two = {
        "toy:0": counts(0, pictures=1),
        "toy:1": counts(1, pictures=1),
        "toy:2": counts(0, pictures=1, format=10),  # ten readable answers, none right: guessing does that too often
        "toy:3": counts(0, pictures=1, format=11),
        "toy:4": counts(3, pictures=1, format=0),
        "toy:6": counts(13, pictures=1, format=11),  # more right than in the format
    }
    findings = examine(samples, QualityRules(), strong={"one": one, "two": two})
    assert findings.marks["low_agreement"] == {"toy:0": True, "toy:1": False, "toy:3": True, "toy:6": False}


@pytest.mark.parametrize(
    ("rules", "n", "message"),
    [
        (QualityRules(), 2, "with 4 options at least 3 readable answers are needed, and there are 2"),
        (QualityRules(blind_at_least=5), 4, "at least 5 readable answers are needed, and there are 4"),
        (QualityRules(blind_alpha=0.001), 4, "at least 5 readable answers are needed, and there are 4"),
    ],
)
def test_a_blind_probe_too_small_to_tell_anything(rules: QualityRules, n: int, message: str) -> None:
    samples = SampleSet([question(i, f"Finding {i}?", FOUR, 0, b"p") for i in range(2)])
    with pytest.raises(DataError, match=f"blind cannot be told of any question: .*{message}"):
        examine(samples, rules, blind={"toy:0": counts(1, n=1), "toy:1": counts(n, n=n)})


def test_a_strong_probe_too_small_to_tell_anything() -> None:
    samples = SampleSet([question(0, "Finding?", FOUR, 0, b"p"), question(1, "Other?", FOUR, 0, b"p")])
    small = {"toy:0": counts(0, pictures=1, format=10)}
    with pytest.raises(DataError, match=r"low_agreement .* 4 options at least 11 readable answers .* there are 10"):
        examine(samples, QualityRules(), strong={"big": small})
    with pytest.raises(DataError, match=r"low_agreement .* none with options was asked of all strong_probes"):
        examine(
            samples, QualityRules(),
            strong={"one": {"toy:0": counts(0, pictures=1)}, "two": {"toy:1": counts(0, pictures=1)}},
        )  # fmt: skip
    with pytest.raises(DataError, match="none with options with a picture has counts of blind_probe"):
        examine(SampleSet([question(0, "Text?", FOUR)]), QualityRules(), blind={"toy:0": counts(3)})


def test_probes_that_saw_the_wrong_thing() -> None:
    samples = SampleSet([question(0, "Finding?", FOUR, 0, b"p")])
    with pytest.raises(DataError, match="blind_probe was shown 1 pictures with question toy:0"):
        examine(samples, QualityRules(), blind={"toy:0": counts(3, pictures=1)})
    with pytest.raises(DataError, match="'big' was shown 0 of 1 pictures"):
        examine(samples, QualityRules(), strong={"big": {"toy:0": counts(3)}})
    with pytest.raises(DataError, match=r"blind_probe has no counts of these 1 questions"):
        examine(samples, QualityRules(), blind={"other:0": counts(3)})


def test_captions_are_compared_where_records_bring_them() -> None:
    caption = "Axial CT of the chest showing a large left pleural effusion with collapse"
    stem = "What does the axial CT of the chest showing a large left shadow mean?"
    samples = SampleSet([
        replace(question(0, stem, FOUR), extra={"Caption": caption}),
        replace(question(1, stem.replace("large", "small"), FOUR), extra={"Caption": caption}),
        replace(question(2, "What?", ["A large left pleural effusion with collapse", "x"]), extra={"Caption": caption}),
        question(3, stem, FOUR),
    ])  # fmt: skip
    assert marked(examine(samples, QualityRules(), caption_column="Caption"))["caption_leak"] == ["toy:0"]
    found = examine(samples, QualityRules(caption_words=7), caption_column="Caption")
    assert found.marked("caption_leak") == ["toy:0", "toy:1", "toy:2"]
    assert found.rules["right option alone quotes the caption"] == 1
    with pytest.raises(DataError, match="none of 4 records has a caption in 'Legend'"):
        examine(samples, QualityRules(), caption_column="Legend")


def test_pictures_are_read_only_where_words_are_alike(tmp_path: Path) -> None:
    class Forgetful(list[Sample]):
        reads: list[int] = []  # noqa: RUF012

        def __getitem__(self, index):  # type: ignore[no-untyped-def, override] # noqa: ANN001, ANN204
            Forgetful.reads.append(index)
            return super().__getitem__(index)

    Image.new("RGB", (30, 30)).save(tmp_path / "one.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "one.png").read_bytes())
    base = question(0, "Mass?", FOUR)
    samples = Forgetful([
        replace(base, images=(tmp_path / "one.png",)),
        replace(base, uid="toy:1", images=(tmp_path / "copy.png",)),
        replace(base, uid="toy:2", question="Other?", images=(tmp_path / "missing.png",)),
    ])  # fmt: skip
    assert examine(SampleSet(samples, uids=["0", "1", "2"]), QualityRules()).marked("duplicate") == ["toy:1"]
    assert Forgetful.reads == [0, 1, 2, 0, 1]
    samples[2] = replace(samples[2], question="mass")
    with pytest.raises(DataError, match=r"cannot read the picture .*missing\.png"):
        examine(SampleSet(samples, uids=["0", "1", "2"]), QualityRules())


def test_a_file_is_read_once_and_decoded_pictures_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.new("RGB", (3, 3)).save(path)
    digest = picture_digests()
    first = digest(path)
    assert digest(path.read_bytes()) == first
    path.unlink()
    assert digest(path) == first
    assert digest(Image.new("RGB", (3, 3))) != digest(Image.new("RGB", (3, 4)))


def test_open_questions_are_compared_and_nothing_else() -> None:
    one = Sample("q:0", "Where?", {}, None, "lung", dataset_name="q", dataset_index=0)
    findings = examine(SampleSet([one, replace(one, uid="q:1")]), QualityRules())
    assert marked(findings) == {"duplicate": ["q:1"]}
    assert not findings.marks["caption_leak"]


def with_ledger(path: Path, rows: Mapping[str, Mapping[str, Any]], name: str) -> None:
    probe = Probe(name, model="m", prompt="clean", sampling={"n": 16}, seed=1)
    update_ledger(path, lambda ledger: ledger.with_probe(probe, rows))


def test_marks_reach_the_ledger_and_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [question(i, f"Finding | {i} <b>?", FOUR, i % 4, b"p") for i in range(3)]
    samples.append(replace(samples[0], uid="toy:3"))
    ledger, report = tmp_path / "ledger.parquet", tmp_path / "quality.md"
    with_ledger(ledger, {"toy:0": counts(12), "toy:1": counts(3)}, "blind")
    with_ledger(ledger, {f"toy:{i}": counts(0, pictures=1) for i in range(4)}, "big")
    quality(Listed(samples), report, ledger, blind_probe="blind", strong_probes=["big"])
    found = Ledger.read(ledger)
    assert found.column("mark/blind") == {"toy:0": True, "toy:1": False}
    assert found.column("mark/duplicate") == {"toy:0": False, "toy:1": False, "toy:2": False, "toy:3": True}
    assert all(found.column("mark/low_agreement").values())
    assert set(found.marks) == set(MARKS)
    assert set(found.probes) == {"blind", "big"}
    record = json.loads((tmp_path / "quality.json").read_text())
    assert record["marks"]["duplicate"] == {
        "marked": 1, "examined": 4, "by_source": {"toy": {"marked": 1, "examined": 4}}, "uids": ["toy:3"],
    }  # fmt: skip
    text = report.read_text()
    assert "not for clinical use" in text
    assert "1 of 2 (50.0%)" in text
    assert "Finding \\| 0 \\<b\\>?" in text
    printed = capsys.readouterr().out
    assert "not for clinical use" in printed
    assert "(50.0%)" in printed
    with pytest.raises(DataError, match="set overwrite=true"):
        quality(Listed(samples), report, ledger)
    quality(Listed(samples), report, overwrite=True)
    assert Ledger.read(ledger).marks == found.marks


def test_stale_marks_are_taken_back(tmp_path: Path) -> None:
    """What stricter rules no longer test is not examined; what this run did not look for, or asked of, stays."""
    samples = [question(i, f"Finding {i}?", FOUR, i % 4, b"p") for i in range(3)]
    ledger = tmp_path / "ledger.parquet"
    with_ledger(ledger, {"toy:0": counts(4, n=4, errors=12), "toy:1": counts(9), "toy:2": counts(9)}, "blind")
    with_ledger(ledger, {f"toy:{i}": counts(0, pictures=1) for i in range(3)}, "big")
    quality(Listed(samples), tmp_path / "one", ledger, blind_probe="blind", strong_probes=["big"])
    assert Ledger.read(ledger).column("mark/blind") == {"toy:0": True, "toy:1": True, "toy:2": True}
    quality(Listed(samples[:2]), tmp_path / "two", ledger, blind_probe="blind", rules=QualityRules(blind_alpha=0.003))
    found = Ledger.read(ledger)
    assert found.column("mark/blind") == {"toy:1": False, "toy:2": True}
    assert found.column("mark/low_agreement") == {f"toy:{i}": True for i in range(3)}
    open_question = replace(samples[0], options={}, answer_label=None)
    quality(Listed([open_question]), tmp_path / "three", ledger)
    assert set(Ledger.read(ledger).column("mark/length_bias")) == {"toy:1", "toy:2"}


def test_a_mark_that_was_not_looked_for_is_not_made(tmp_path: Path) -> None:
    open_question = Sample("q:0", "Where?", {}, None, "lung", dataset_name="q", dataset_index=0)
    quality(Listed([open_question]), tmp_path / "q", tmp_path / "l.parquet")
    assert set(Ledger.read(tmp_path / "l.parquet").marks) == {"duplicate", "contradictory"}


def test_counts_of_another_grader_are_refused(tmp_path: Path) -> None:
    samples, ledger = [question(0, "Finding?", FOUR, 0, b"p")], tmp_path / "ledger.parquet"
    with_ledger(ledger, {"toy:0": counts(9, grader="0.9"), "other:1": counts(9, grader="0.1")}, "blind")
    with pytest.raises(DataError, match=r"1 counts of probe 'blind' .* version '0\.9' .* accept_grader_version=0\.9"):
        quality(Listed(samples), tmp_path / "q.md", ledger, blind_probe="blind")
    assert not Ledger.read(ledger).marks
    quality(Listed(samples), tmp_path / "q.md", ledger, blind_probe="blind", accept_grader_version="0.9")
    assert Ledger.read(ledger).about_marks["blind"]["grader_versions"] == {"blind": "0.9"}
    assert json.loads((tmp_path / "q.json").read_text())["grader_versions"] == {"blind": "0.9"}


def test_a_failed_run_can_be_repeated(tmp_path: Path) -> None:
    samples, ledger = Listed([question(0, "Which?", FOUR)]), tmp_path / "ledger.parquet"
    ledger.write_text("broken")
    with pytest.raises(DataError, match="not a whole Parquet file"):
        quality(samples, tmp_path / "q.md", ledger)
    ledger.unlink()
    quality(samples, tmp_path / "q.md", ledger)
    assert (tmp_path / "q.md").is_file()


def test_marks_may_come_before_any_probe(tmp_path: Path) -> None:
    quality(Listed([question(0, "Which?", FOUR)]), tmp_path / "q", tmp_path / "new.parquet")
    ledger = Ledger.read(tmp_path / "new.parquet")
    assert ledger.questions() == {"toy:0": ("toy", "0")}
    assert not ledger.probes
    assert (tmp_path / "q.md").is_file()


def test_probes_need_a_ledger_that_has_them(tmp_path: Path) -> None:
    source = Listed([question(0, "Which?", FOUR, 0, b"p")])
    with pytest.raises(ConfigurationError, match="give ledger"):
        quality(source, tmp_path / "q.md", blind_probe="blind")
    with_ledger(tmp_path / "l.parquet", {"toy:0": counts(1)}, "other")
    with pytest.raises(DataError, match="no probe 'blind'; its probes: other"):
        quality(source, tmp_path / "q.md", tmp_path / "l.parquet", blind_probe="blind")


@pytest.mark.parametrize(
    "settings",
    [
        {"blind_alpha": 0.0},
        {"agreement_alpha": 1.0},
        {"blind_at_least": 0},
        {"caption_words": 0},
        {"length_ratio": 0.5},
        {"length_gap": -1},
    ],
)
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        QualityRules(**settings)


def test_real_questions(shared_data: Path, tmp_path: Path) -> None:
    """VQA-RAD repeats questions and pictures, but no pair of both; no yes or no is given away by its question."""
    samples = JSONLines(shared_data / "vqa_rad_closed_yesno.jsonl", check_images="header").load()
    findings = examine(samples, QualityRules())
    assert len(findings.names) == 708
    assert marked(findings) == {}
    assert "vqa\\_rad\\_train | 542" in to_markdown(findings, samples, {})
