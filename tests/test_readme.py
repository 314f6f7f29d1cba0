# SPDX-License-Identifier: Apache-2.0
"""The README runs: its code block as it stands, its commands as far as they parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from medvlt.__main__ import main
from medvlt.paths import resolve_config

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert (tmp_path / "runs" / "readme" / "results.json").is_file()


def test_every_named_target_and_config_exists(capsys: pytest.CaptureFixture[str]) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^    make (\w+)", README, re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    names = [name for name in re.findall(r"--config (\S+\.yaml)", README) if not name.startswith("my_")]
    assert names
    for name in names:
        assert resolve_config(name).is_file()


def test_the_printing_command_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = re.findall(r"^    (medvlt .*--print_config)$", README, re.MULTILINE)
    with pytest.raises(SystemExit) as caught:
        main(shlex.split(line)[1:])
    assert not caught.value.code
    assert "class_path: lightning_modules.SFTModule" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", re.findall(r"^    (medvlt data [^#\n]+?) *(?:#.*)?$", README.replace("\\\n", ""), re.MULTILINE)
)
def test_data_commands_parse(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    if " my_" in line:
        pytest.skip("its file is the reader's own")
    with pytest.raises(SystemExit) as caught:
        main([*shlex.split(line)[1:], "--print_config"])
    assert not caught.value.code, capsys.readouterr().err


def test_the_map_names_what_is_there() -> None:
    for row in re.findall(r"^\| (`[^|]+`) \|", README.split("## Map of the house")[1].split("## ")[0], re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", row):
            assert (REPOSITORY / name).is_dir(), name


def test_it_says_what_it_is_not() -> None:
    assert "not for clinical use" in README
