# SPDX-License-Identifier: Apache-2.0
"""The command: three files, the same bytes each time, and clear refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from toy_runs import toy_run

from medvlt.errors import ConfigurationError, DataError, MissingExtraError
from medvlt.evaluation import report as command
from medvlt.evaluation.report import CSV_FILE, MARKDOWN_FILE, PAGE_FILE, report

FILES = (MARKDOWN_FILE, CSV_FILE, PAGE_FILE)


def two_runs(folder: Path) -> list[str]:
    benchmarks = {"x": 8, "y": 6}
    runs = [
        toy_run(folder / "a", "a", benchmarks, seed=1, share=2, thumbnails=True, failed=[("x", 1, 0)]),
        toy_run(folder / "b", "b", benchmarks, seed=2, share=2),
    ]
    about = json.loads((runs[0] / "run.json").read_text())
    about["label"] = "a <b>[red]\x1b[2J\ud800"  # what a terminal obeys, and half a character
    (runs[0] / "run.json").write_text(json.dumps(about))
    return [str(run) for run in runs]


def test_a_report_has_three_files_and_is_the_same_wherever_and_whenever_it_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = two_runs(tmp_path / "here")
    report(runs, baseline=runs[1], output=str(tmp_path / "one"), questions=2)
    printed = capsys.readouterr().out
    assert f"report: {tmp_path / 'one' / PAGE_FILE}" in printed
    assert "a <b>[red]\ufffd[2J\ufffd" in printed
    assert "completions that never came: 1" in " ".join(printed.split())
    moved = two_runs(tmp_path / "there")
    report(moved, baseline=moved[1], output=str(tmp_path / "two"), questions=2)
    for name in FILES:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes(), name
        assert str(tmp_path).encode() not in content
    report(runs, output=str(tmp_path / "one"), questions=2)  # takes the place of the first
    assert "Compared with" not in (tmp_path / "one" / MARKDOWN_FILE).read_text()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(FILES)


def test_without_the_packages_of_the_page_the_other_two_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise MissingExtraError("the package `matplotlib` is needed here")

    monkeypatch.setattr(command, "write_page", missing)
    output = tmp_path / "report"
    output.mkdir()
    (output / PAGE_FILE).write_text("of another evaluation")
    report(two_runs(tmp_path)[:1], output=str(output))
    assert sorted(path.name for path in output.iterdir()) == sorted((MARKDOWN_FILE, CSV_FILE))
    assert "matplotlib" in caplog.text


def test_mistakes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    output = str(tmp_path / "report")
    with pytest.raises(DataError, match="is not the folder of an evaluation"):
        report([str(tmp_path / "nowhere")], output=output)
    with pytest.raises(DataError, match=re.escape("there is no folder no/training")):
        report(runs, training=["no/training"], output=output)
    with pytest.raises(ConfigurationError, match="questions of at least 0"):
        report(runs, questions=-1, output=output)
    shorter = toy_run(tmp_path / "c", "c", {"x": 8, "y": 6}, left_out={("y", 5)})
    with pytest.raises(DataError, match="c lacks 1 of 6"):
        report([runs[1], str(shorter)], output=output)
    assert not Path(output).exists()
    report([runs[1], str(shorter)], output=output, intersect=True, questions=1)
    assert "y is compared on 5 of 6 questions" in (Path(output) / MARKDOWN_FILE).read_text()
