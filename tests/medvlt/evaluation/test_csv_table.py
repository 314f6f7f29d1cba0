# SPDX-License-Identifier: Apache-2.0
"""A report as CSV is read back exactly, and no text in it is a formula."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from toy_runs import toy_run

from medvlt.evaluation.analysis import analyse
from medvlt.evaluation.csv_table import HEAD, csv_table
from medvlt.evaluation.published import PUBLISHED
from medvlt.evaluation.runs import read_run
from medvlt.evaluation.scores import MEAN
from medvlt.evaluation.wording import NO_INTERVAL


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_every_number_is_read_back_exactly(tmp_path: Path) -> None:
    settings = {"benchmarks": {"vqa_rad_closed": 272, "x": 10}, "n": 3}
    run, base, control = (
        read_run(
            toy_run(tmp_path / name, name, **settings, seed=seed, control={"name": "blind"} if seed == 2 else None)
        )
        for seed, name in enumerate(("A", "B", "C"))
    )
    data = analyse([run, control], baseline=base, samples=200)
    table = rows(csv_table(data))
    assert {row["section"] for row in table} == {"score", "comparison", "control", "published"}
    found = {(row["section"], row["run"], row["benchmark"], row["measure"]): row for row in table}
    assert len(found) == len(table)
    score = data.runs[0].benchmarks[1]
    row = found["score", "A", "x", "accuracy"]
    assert tuple(float(row[name]) for name in ("value", "low", "high")) == score.accuracy
    assert (row["questions"], row["n"]) == ("10", "3")
    assert float(found["score", "A", "x", "pass_at_2"]["value"]) == score.pass_at_k[2]
    times = [int(found["score", "A", "x", f"questions_right_{number}_times"]["value"]) for number in range(4)]
    assert tuple(times) == score.pass_counts
    assert float(found["score", "A", MEAN, "accuracy"]["low"]) == data.runs[0].macro.low
    one = data.comparisons[0]
    assert float(found["comparison", one.run, one.benchmark, "difference"]["high"]) == one.difference.high
    p_row = found["comparison", one.run, one.benchmark, "p_adjusted"]
    assert (p_row["other"], float(p_row["value"]), p_row["test"]) == ("B", one.p_adjusted, one.test)
    assert float(found["control", "A", "x", "consistency"]["value"]) == data.controls[1].consistency
    published = [row for row in table if row["section"] == "published"]
    assert [float(row["value"]) for row in published] == pytest.approx(
        [row.scores["vqa_rad_closed"] / 100 for row in PUBLISHED], abs=1e-12
    )
    assert {row["benchmark"] for row in published} == {"vqa_rad_closed"}


@pytest.mark.parametrize("label", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\r=1"])
def test_no_text_is_a_formula_and_negative_numbers_stay_numbers(tmp_path: Path, label: str) -> None:
    run = read_run(toy_run(tmp_path / "a", label, {label: 2}, correct={label: [0, 0]}))
    base = read_run(toy_run(tmp_path / "b", "B", {label: 2}, correct={label: [1, 1]}))
    table = rows(csv_table(analyse([run], baseline=base, samples=50)))
    named = [row for row in table if row["run"] != "B"]
    assert {row["run"] for row in named} == {f"'{label}"}
    assert {row["benchmark"] for row in table} - {MEAN} == {f"'{label}"}
    (row,) = (row for row in named if row["measure"] == "difference")
    assert (row["value"], row["low"], row["high"], row["remark"]) == ("-1.0", "", "", NO_INTERVAL)


def test_quotes_commas_and_lines_come_back(tmp_path: Path) -> None:
    label = 'a,"b"\nc;d'
    table = rows(csv_table(analyse([read_run(toy_run(tmp_path / "a", label, {"x": 2}))], baseline=None, samples=50)))
    assert tuple(table[0]) == HEAD
    assert {row["run"] for row in table} == {label}
