# SPDX-License-Identifier: Apache-2.0
"""The chain of the demo: each command is parsed as typed, and its files are the ones the next command reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from medvlt import demo
from medvlt.errors import MedvltError
from medvlt.evaluation.results import BenchmarkResult


def test_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command is kept, and each evaluation leaves what it would; the runs themselves are in tests/configs."""
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/stale").write_text("")
    commands: list[list[str]] = []

    def record(arguments: list[str]) -> None:
        commands.append(list(arguments))
        if arguments[0] == "validate":
            folder = Path(arguments[arguments.index("--trainer.default_root_dir") + 1])
            folder.mkdir(parents=True)
            row = BenchmarkResult("phantom_text", 100, 40 if "untrained" in str(folder) else 80, 100, 1.0, 0.0, 9.0)
            (folder / "results.json").write_text(json.dumps({"benchmarks": [row.to_json()]}))

    monkeypatch.setattr(demo, "_run", record)
    demo.demo()
    assert [command[0] for command in commands] == ["tiny", "validate", "fit", "validate"]
    assert not Path("runs/demo/stale").exists()
    out = capsys.readouterr().out
    assert re.search(r"untrained .* 40\.0%.*30\.9% to 49\.8%", out)
    assert re.search(r"SFT .* 80\.0%", out)


def test_the_evaluated_checkpoint_is_the_one_that_is_written() -> None:
    from medvlt.paths import config_dir

    text = (config_dir() / "demo" / "sft.yaml").read_text()
    folder = re.search(r"dirpath: (\S+), filename: (\w+)", text)
    assert folder is not None
    assert f"--ckpt_path {folder[1].rstrip(',')}/{folder[2]}.ckpt" in " ".join(demo.STEPS)


def test_a_failed_step_stops_the_demo() -> None:
    with pytest.raises(MedvltError, match="`medvlt fit` ended with exit code 2"):
        demo._run(["fit", "--config", "nowhere.yaml"])


def test_tiny_writes_a_model_that_knows_the_words(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    demo.tiny(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for word in (" tachycardia", " normal", " RUQ", " assistant"):
        assert len(tokenizer(word)["input_ids"]) == 1, word
