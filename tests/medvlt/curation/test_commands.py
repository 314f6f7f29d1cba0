# SPDX-License-Identifier: Apache-2.0
"""`medvlt data`: every command is found by its words, explains itself, and says what is wrong with its options."""

from __future__ import annotations

import pytest

from medvlt.__main__ import main
from medvlt.curation.commands import COMMANDS, find


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["data", *arguments])
    written = capsys.readouterr()
    return int(caught.value.code or 0), written.out, written.err


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_is_a_documented_function(words: str) -> None:
    found, function, rest = find([*words.split(), "--output", "x"])
    assert (found, rest) == (words, ["--output", "x"])
    assert function.__doc__ is not None
    described = function.__doc__
    arguments = [name for name in function.__annotations__ if name != "return"]
    assert all(f"        {name}: " in described for name in arguments), arguments


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_has_help(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ended(capsys, *words.split(), "--help")
    assert code == 0
    assert f"medvlt data {words}" in out
    assert "--config" in out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ended(capsys, *arguments)
    assert code == 0
    assert all(f"\n  {words} " in out for words in COMMANDS)
    assert "not for clinical use" in out


@pytest.mark.parametrize("arguments", [["bild"], ["build"], ["build", "pmc"]])
def test_an_unknown_command_lists_the_known_ones(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ended(capsys, *arguments)
    assert code == 2
    assert "unknown command" in err
    assert "build pmc-vqa" in err


@pytest.mark.parametrize("words", COMMANDS)
def test_an_unknown_option_is_one_message(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ended(capsys, *words.split(), "--colour", "red")
    assert code == 2
    assert err.startswith("medvlt: error: ")
    assert "Traceback" not in err


def test_sources_go_by_their_short_names_and_mistakes_are_in_our_words(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ended(
        capsys,
        "select",
        "--source",
        "JSONLines",
        "--source.path",
        "nowhere.jsonl",
        "--selection.ledger",
        "no.parquet",
        "--output",
        "x",
    )
    assert code == 2
    assert "nowhere.jsonl" in err or "no.parquet" in err
