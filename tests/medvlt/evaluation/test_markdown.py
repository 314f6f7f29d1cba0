# SPDX-License-Identifier: Apache-2.0
"""A report as Markdown: a small one word for word, and texts that must not break out of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from toy_runs import toy_run

from medvlt.errors import DataError
from medvlt.evaluation.alignment import align
from medvlt.evaluation.analysis import analyse_aligned
from medvlt.evaluation.markdown import SHOWN_FAILURES, markdown
from medvlt.evaluation.published import PUBLISHED
from medvlt.evaluation.runs import EvaluationRun, read_run
from medvlt.evaluation.wording import NO_INTERVAL

HOSTILE = 'A|B <script>alert(1)</script> `x` [l](http://h) *b* _i_ \x00\u202e\ud800 "q"\n# heading\n| a | b |'

GOLDEN = r"""# Two runs

Research software, not for clinical use.

## Notes

- **Warning: new: completions that never came: 1. They count as wrong.**

## Accuracy

Percent with a 95% interval.

| run | x (8) | y (4) | mean of benchmarks |
| --- | ---: | ---: | ---: |
| **new** | 75.0 (40.9 to 92.9) | 25.0 (4.6 to 69.9) | 50.0 (30.1 to 74.2) |
| **old** (baseline) | 25.0 (7.1 to 59.1) | 50.0 (15.0 to 85.0) | 37.5 (17.9 to 61.9) |
| chance | 25.0 | 25.0 | 25.0 |

## Details

| run | benchmark | questions | n | right | of | accuracy | 95% interval | interval by picture | chance | MDE | format | cut | failed | tokens | majority | pass@n | SD of repeats | flips |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| new | x | 8 | 1 | 6 | 8 | 75.0 | 40.9 to 92.9 |  | 25.0 | 63.4 | 100.0 | 0.0 | 0 | 12.6 |  |  |  |  |
| new | y | 4 | 1 | 1 | 4 | 25.0 | 4.6 to 69.9 |  | 25.0 | 74.7 | 75.0 | 0.0 | 1 | 11.0 |  |  |  |  |
| old | x | 8 | 1 | 2 | 8 | 25.0 | 7.1 to 59.1 |  | 25.0 | 63.4 | 100.0 | 0.0 | 0 | 12.6 |  |  |  |  |
| old | y | 4 | 1 | 2 | 4 | 50.0 | 15.0 to 85.0 |  | 25.0 | 100.0 | 100.0 | 0.0 | 0 | 11.5 |  |  |  |  |

## Compared with old

| run | benchmark | test | questions | difference, points | 95% interval | run better | baseline better | p | p (Holm) | McNemar p | MDE |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""  # noqa: E501


def runs_of(folder: Path) -> tuple[EvaluationRun, EvaluationRun]:
    right = {
        "new": {"x": [1, 1, 1, 1, 1, 1, 0, 0], "y": [1, 0, 0, 0]},
        "old": {"x": [1, 1, 0, 0, 0, 0, 0, 0], "y": [1, 1, 0, 0]},
    }
    failed = {"new": [("y", 3, 0)], "old": []}
    new, old = (
        read_run(toy_run(folder / name, name, {"x": 8, "y": 4}, correct=right[name], failed=failed[name]))
        for name in right
    )
    return new, old


def written(*runs: EvaluationRun, baseline: EvaluationRun | None = None, title: str = "Two runs") -> str:
    aligned = align(runs, baseline=baseline)
    return markdown(analyse_aligned(aligned, samples=500), aligned.runs, title=title)


def test_a_small_report_word_for_word(tmp_path: Path) -> None:
    new, old = runs_of(tmp_path)
    text = written(new, baseline=old)
    assert text.startswith(GOLDEN)
    x, y, mean = (line.split(" | ") for line in text[len(GOLDEN) :].splitlines()[:3])
    assert x[:5] + x[6:10] == ["| new", "x", "McNemar, exact", "8", "+50.0", "4", "0", "0.1250", "0.3750"]
    assert y[:5] + y[6:10] == ["| new", "y", "McNemar, exact", "4", "-25.0", "0", "1", "1.0000", "1.0000"]
    assert mean[:5] + mean[6:10] == [
        "| new", "mean of benchmarks", "sign flip", "12", "+12.5", "4", "1", "0.7500", "1.0000",
    ]  # fmt: skip
    assert "0 of 3 differences are significant at 0.05 after Holm's correction." in text
    assert "| new | y | y/3 | HTTP 500: no answer | 0 |" in text
    assert "| new | toy/model-3b |  | medvlthinker | n=1, greedy | 0 | robust, version 1 |" in text
    assert text.endswith("Research software, not for clinical use.\n")
    assert "published" not in text.partition("## How to read this")[0]


def test_every_table_has_as_many_cells_in_each_row(tmp_path: Path) -> None:
    settings = {"benchmarks": {"vqa_rad_closed": 272, "x": 6}, "n": 2, "failed": [("x", 1, 0)]}
    run = read_run(toy_run(tmp_path / "a", "A", **settings))
    control = read_run(toy_run(tmp_path / "b", "A", **settings, control={"name": "blind"}, pictures=False))
    other = read_run(toy_run(tmp_path / "c", "C", **settings, seed=1))
    text = written(run, control, baseline=other)
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert text.count("(published)") == len(PUBLISHED)
    row = next(line for line in text.splitlines() if "*GPT-4o* (published)" in line)
    assert row == "| *GPT-4o* (published) | 70.22 |  |  |"  # nothing beside x, and no mean of six
    assert "**A**: n=2, temperature 1.0; grader robust, version 1; prompt medvlthinker" in text
    assert "under the control" in text


def test_what_is_not_known_is_not_shown(tmp_path: Path) -> None:
    """No interval of differences that do not vary, no chance without options, no mean that is of all."""
    one, two = (read_run(toy_run(tmp_path / name, name, {"x": 8, "y": 8}, share=8)) for name in "ab")
    text = written(one, baseline=two, title="Alike")
    assert text.count(f"| +0.0 | {NO_INTERVAL} | 0 | 0 |") == 3
    third = read_run(toy_run(tmp_path / "c", "c", {"x": 8}, share=8))
    bare = replace(third, benchmarks={"x": replace(third.benchmarks["x"], options=({},) * 8)})
    assert "*only 1 of 2 benchmarks* |" in written(one, third)
    assert "| chance | 25.0 |" in written(bare, third)  # that of the first run that has options
    assert "| chance |  |\n" in written(bare)
    with pytest.raises(DataError, match="named 'mean'"):
        align([read_run(toy_run(tmp_path / "d", "d", {"mean": 2}))])


def test_texts_of_runs_stay_texts(tmp_path: Path) -> None:
    about = {"model": HOSTILE, "prompt": HOSTILE, "checkpoint": HOSTILE, "regraded_from": {"label": HOSTILE}}
    name = HOSTILE.replace("\ud800", "")
    aligned = align([read_run(toy_run(tmp_path / "a", HOSTILE, {name: 2}, about=about))])
    data = replace(analyse_aligned(aligned, samples=50), failures=((HOSTILE, HOSTILE, HOSTILE, 0, HOSTILE),))
    text = markdown(data, aligned.runs, title=HOSTILE)
    assert "<script" not in text.replace(r"\<script", "")
    assert not {"\x00", "\u202e", "\ud800"} & set(text)
    assert [line for line in text.splitlines() if line.startswith("# ")] == [text.splitlines()[0]]
    assert not re.search(r"(?<!\\)[`\[]", text.partition("## How to read this")[0])
    for line in text.splitlines():
        assert "| a | b |" not in line


def test_many_failures_are_counted(tmp_path: Path) -> None:
    failed = [("x", number, 0) for number in range(SHOWN_FAILURES + 5)]
    text = written(read_run(toy_run(tmp_path / "a", "A", {"x": 30}, failed=failed)))
    assert text.count("HTTP 500") == SHOWN_FAILURES
    assert "\n5 more.\n" in text
