# SPDX-License-Identifier: Apache-2.0
"""The chain of the demo: each command is parsed as typed, and its files are the ones the next command reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medvlt import demo
from medvlt.errors import MedvltError
from medvlt.paths import config_dir


def played(monkeypatch: pytest.MonkeyPatch, folder: Path, *, vllm: bool, control: bool) -> list[list[str]]:
    """Plays the demo without running its commands; the runs themselves are in tests/configs."""
    monkeypatch.chdir(folder)
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/stale").write_text("")
    commands: list[list[str]] = []

    def record(arguments: list[str]) -> float:
        commands.append(list(arguments))
        return 125.0 if "demo/grpo" in " ".join(arguments) else 10.0

    monkeypatch.setattr(demo, "_run", record)
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: object() if vllm else None)
    demo.demo(control=control)
    return commands


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands = played(monkeypatch, tmp_path, vllm=True, control=False)
    assert [c[0] for c in commands] == [
        "tiny",
        "validate",
        "fit",
        "validate",
        "export",
        "predict",
        "fit",
        "validate",
        "validate",
        "report",
    ]
    assert [commands[5][-1], commands[6][-1]] == ["demo/probe.yaml", "demo/grpo.yaml"]
    assert not Path("runs/demo/stale").exists()
    assert f"Look at {tmp_path / 'runs/demo/report/report.html'}" in capsys.readouterr().out.replace("\n", "")


def test_the_report_is_of_what_was_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = played(monkeypatch, tmp_path, vllm=True, control=True)
    evaluated = {option(c, "--trainer.default_root_dir") for c in commands if c[0] == "validate"}
    labels = [option(c, "--trainer.callbacks.init_args.label") for c in commands if c[0] == "validate"]
    assert len(set(labels)) == len(labels) == len(evaluated)
    trained = {
        yaml.safe_load((config_dir() / option(c, "--config")).read_text())["trainer"]["default_root_dir"]
        for c in commands
        if c[0] == "fit"
    }
    reports = [c for c in commands if c[0] == "report"]
    reported = {word for c in reports for word in c[1:] if word.endswith(("_evaluated", "untrained", "_blind"))}
    assert reported == evaluated
    assert set(yaml.safe_load(option(reports[-1], "--training"))) == trained
    assert [option(c, "--baseline") for c in reports] == ["runs/demo/control_evaluated", "runs/demo/sft_evaluated"]


def test_the_control_has_the_seconds_of_probing_and_grpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = played(monkeypatch, tmp_path, vllm=True, control=True)
    assert option(commands[9], "--trainer.max_time") == "00:00:02:15"
    assert commands[10][0] == "validate"


def test_without_vllm_the_live_policy_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = played(monkeypatch, tmp_path, vllm=False, control=False)
    assert [commands[5][-1], commands[6][-1]] == ["demo/probe_transformers.yaml", "demo/grpo_transformers.yaml"]
    assert "vLLM is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(("config", "stage"), [("sft", "sft"), ("grpo", "grpo"), ("grpo_transformers", "grpo")])
def test_the_evaluated_checkpoint_is_the_one_that_is_written(config: str, stage: str) -> None:
    settings = yaml.safe_load((config_dir() / "demo" / f"{config}.yaml").read_text())["trainer"]
    (keeper,) = [c["init_args"] for c in settings["callbacks"] if c["class_path"] == "AtomicCheckpoint"]
    assert "dirpath" not in keeper
    written = f"{settings['logger']['init_args']['save_dir']}/checkpoints/{keeper['filename']}.ckpt"
    assert f"--ckpt_path {written}" in " ".join(demo.STEPS)
    assert written == f"runs/demo/{stage}/checkpoints/{stage}.ckpt"


def test_what_is_selected_is_what_was_probed() -> None:
    """The questions, the model and the ledger of the probe are those that GRPO names."""
    for probe_name, grpo_name in (("probe", "grpo"), ("probe_transformers", "grpo_transformers")):
        probe, grpo = (yaml.safe_load((config_dir() / f"demo/{n}.yaml").read_text()) for n in (probe_name, grpo_name))
        train = grpo["data"]["init_args"]["train"]["init_args"]
        (asked,) = probe["data"]["init_args"]["benchmarks"].values()
        assert train["source"] == asked
        sampler, ledger = (callback["init_args"] for callback in probe["trainer"]["callbacks"])
        assert train["selection"]["ledger"] == ledger["path"]
        assert 1 == train["selection"]["low"] < train["selection"]["high"] < sampler["sampling"]["n"]
        assert probe["data"]["init_args"]["encoder"] == grpo["data"]["init_args"]["encoder"]
        assert grpo["model"]["init_args"]["backbone"]["name"] == grpo["data"]["init_args"]["encoder"]["model"]


@pytest.mark.parametrize(("ours", "twin"), demo.WITHOUT_VLLM.items())
def test_the_twins_differ_in_the_engine_alone(ours: str, twin: str) -> None:
    settings = [yaml.safe_load((config_dir() / name).read_text()) for name in (ours, twin)]
    for setting in settings:
        callback = setting["trainer"]["callbacks"][0]
        callback["class_path"] = callback["init_args"]["engine"] = None
    if "probe" in ours:  # vLLM loads the model by itself, and the module needs none
        assert settings[0].pop("model") == {"class_path": "RolloutModule"}
        assert settings[1].pop("model")["init_args"]["backbone"]["name"] == "runs/demo/sft_model"
    assert settings[0] == settings[1]


def test_a_failed_step_stops_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MedvltError, match="`medvlt fit` ended with exit code 2"):
        demo._run(["fit", "--config", "[nowhere].yaml"])
    assert "$ medvlt fit --config '[nowhere].yaml'" in capsys.readouterr().out


def test_tiny_writes_a_model_that_knows_the_words(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    demo.tiny(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for word in (" tachycardia", " normal", " RUQ", " assistant"):
        assert len(tokenizer(word)["input_ids"]) == 1, word
