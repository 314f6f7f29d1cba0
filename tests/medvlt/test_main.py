# SPDX-License-Identifier: Apache-2.0
"""The command as a user meets it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from medvlt import __version__
from medvlt.__main__ import OTHER_COMMANDS, TRAINER_COMMANDS, main


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "medvlt", *args], capture_output=True, text=True, check=False)


def test_help_names_every_command() -> None:
    finished = run("--help")
    assert finished.returncode == 0
    assert all(f"\n  {name} " in finished.stdout for name in TRAINER_COMMANDS | OTHER_COMMANDS)
    assert "not for clinical use" in finished.stdout


def test_version() -> None:
    assert run("--version").stdout.strip() == f"medvlt {__version__}"


@pytest.mark.parametrize("args", [["--help"], ["--version"], []])
def test_quick_answers_import_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\nfrom medvlt.__main__ import main\n"
        f"try:\n    main({args!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'lightning', 'transformers', 'jsonargparse', 'rich', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_help_is_quick() -> None:
    """Half a second is the promise; the test allows for a busy machine."""
    seconds = min(_seconds("--help") for _ in range(3))
    assert seconds < 1.5


def _seconds(*args: str) -> float:
    started = time.perf_counter()
    run(*args)
    return time.perf_counter() - started


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fitt"])
    assert "medvlt: error: unknown command 'fitt'; expected one of fit, validate" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["tiny", "--sise", "3"],
        ["tiny", "--size.layers", "many"],
        ["demo", "--keep"],
        ["export", "--dtype", "int4", "a", "b"],
    ],
)
def test_bad_options_of_small_commands(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(args)
    error = capsys.readouterr().err
    assert error.startswith("medvlt: error: ")
    assert args[1].lstrip("-") in error


def test_export_needs_to_know_what_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["export", "a.ckpt"])
    error = capsys.readouterr().err
    assert error.startswith("medvlt: error: ")
    assert "required" in error
    assert "output" in error
