# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from medvlt.curation.quality import QualityRules, examine
from medvlt.curation.quality_report import EXAMPLES, report_paths, to_markdown, write_report
from medvlt.data.samples import SampleSet
from medvlt.types import Sample


def repeated(number: int, stem: str) -> Sample:
    return Sample(
        f"toy:{number}", stem, {"A": "Cyst", "B": "Gout"}, "B", "Gout", dataset_name="t", dataset_index=number
    )


SAMPLES = SampleSet([repeated(i, f"Finding {i // 2}?") for i in range(4 * EXAMPLES)])


@pytest.mark.parametrize(
    ("asked", "stem"),
    [("q.md", "q"), ("q.json", "q"), ("q", "q"), ("pmc_vqa.v1.2", "pmc_vqa.v1.2"), ("v1.2.md", "v1.2")],
)
def test_the_report_has_the_name_that_was_asked_for(asked: str, stem: str) -> None:
    assert report_paths(Path("runs", asked)) == (Path(f"runs/{stem}.md"), Path(f"runs/{stem}.json"))


def test_examples_are_the_marked_questions() -> None:
    text = to_markdown(examine(SAMPLES, QualityRules()), SAMPLES, {})
    section = text.split(f"## `duplicate`: {EXAMPLES} of {2 * EXAMPLES}")[1]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| toy:")]
    expected = [SAMPLES[2 * number + 1] for number in range(EXAMPLES)]
    assert rows == [[f"| {one.uid}", one.question, "A Cyst; B Gout", "B |"] for one in expected]


def test_both_files_say_what_the_software_is_not_for(tmp_path: Path) -> None:
    write_report(examine(SAMPLES, QualityRules()), SAMPLES, {"medvlt": "x"}, tmp_path / "q.md", tmp_path / "q.json")
    record = json.loads((tmp_path / "q.json").read_text())
    assert record["notice"] in (tmp_path / "q.md").read_text()
    assert "not for clinical use" in record["notice"]
    assert (record["questions"], record["medvlt"]) == (4 * EXAMPLES, "x")


def test_a_set_without_options_is_reported() -> None:
    samples = SampleSet([Sample("q:0", "Where?", {}, None, "lung", dataset_name="q", dataset_index=0)])
    assert "| q | 1 | not examined | 0 of 1 (0.0%) |" in to_markdown(examine(samples, QualityRules()), samples, {})


def test_a_report_that_cannot_be_made_leaves_no_file(tmp_path: Path) -> None:
    findings = examine(SAMPLES, QualityRules())
    with pytest.raises(KeyError):
        write_report(findings, SampleSet([]), {}, tmp_path / "q.md", tmp_path / "q.json")
    assert not list(tmp_path.iterdir())
