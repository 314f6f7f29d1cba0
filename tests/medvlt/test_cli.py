# SPDX-License-Identifier: Apache-2.0
"""Bad input of the Trainer commands: one message that names the mistake, exit code 2, nothing written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

import medvlt.cli  # noqa: F401 - before a test captures its output, as Lightning's logger keeps the stream it finds
from callbacks import RankWatchdog
from medvlt.__main__ import main
from medvlt.errors import readable


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small valid run in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    phantom = {"class_path": "Phantom", "init_args": {"split": "train", "size": 8}}
    settings = {
        "trainer": {
            "accelerator": "cpu", "max_steps": 1, "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False,
            "default_root_dir": str(tmp_path / "out"),
        },
        "model": {"class_path": "SFTModule", "init_args": {"backbone": {"name": str(tiny_folder)}}},
        "data": {
            "class_path": "SFTDataModule",
            "init_args": {
                "encoder": {"model": str(tiny_folder), "template": "plain"}, "train": phantom, "global_batch_size": 4
            },
        },
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(args)
    error = capsys.readouterr().err
    assert caught.value.code == 2, error
    message = error[error.index("medvlt: error: ") :]
    assert "usage:" not in error
    assert "Traceback" not in error
    assert "NoneType" not in message
    return message


def test_a_good_run_ends_well(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(config)])
    assert caught.value.code == 0
    written = yaml.safe_load((config.parent / "out" / "config.yaml").read_text())
    assert written["model"]["class_path"] == "lightning_modules.SFTModule"


BAD_OPTIONS = {
    "unknown trainer key": (["--trainer.max_epochz", "3"], "max_epochz"),
    "unknown model key": (["--model.init_args.max_lenght", "3"], "max_lenght"),
    "wrong type": (["--data.init_args.global_batch_size", "many"], "many"),
    "not in the choices": (["--data.init_args.loss_reduction", "median"], "median"),
    "wrong class": (["--model", "SFTModul"], "SFTModul"),
    "wrong class of a source": (["--data.init_args.train", "JSONLine"], "JSONLine"),
    "bad value of a setting": (["--model.init_args.optimization.warmup_ratio", "2"], "warmup_ratio"),
    "missing config": (["--config", "nowhere.yaml"], "nowhere.yaml"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, expected = BAD_OPTIONS[case]
    message = fails(capsys, "fit", "--config", str(config), *options)
    assert expected in message
    assert len(message.splitlines()) < 20, message
    assert not (config.parent / "out").exists()


def jsonl(folder: Path, *records: dict[str, object]) -> str:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


GOOD = {"question": "Q?", "options": {"A": "yes", "B": "no"}, "answer_label": "A", "answer": "yes", "reasoning": "r"}


def source(path: str) -> list[str]:
    return ["--data.init_args.train", "JSONLines", "--data.init_args.train.init_args.path", path]


def test_missing_data_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "/nowhere.jsonl" in fails(capsys, "fit", "--config", str(config), *source("/nowhere.jsonl"))


def test_records_without_options(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(config.parent, GOOD, GOOD | {"question": "R?", "options": None})
    message = fails(capsys, "fit", "--config", str(config), *source(path))
    assert "options" in message


def test_empty_data(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "records.jsonl" in fails(capsys, "fit", "--config", str(config), *source(jsonl(config.parent)))


def test_everything_too_long(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "fit", "--config", str(config), "--data.init_args.max_length", "3")
    assert "no training sample is left of 8: 8 longer than max_length=3" in message


def test_missing_backbone(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.init_args.backbone.name=/nowhere", "--data.init_args.encoder.model=/nowhere"]
    assert "/nowhere" in fails(capsys, "fit", "--config", str(config), *options)


def test_more_micro_batches_than_samples(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "fit", "--config", str(config), "--trainer.accumulate_grad_batches", "9")
    assert "4 samples (data.global_batch_size) and must fill 1 ranks x 9 micro-batches" in message


def test_unwritable_output(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "file").write_text("")
    message = fails(
        capsys, "fit", "--config", str(config), "--trainer.default_root_dir", str(config.parent / "file" / "x")
    )
    assert "cannot be written" in message


def test_settings_that_lightning_refuses(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "fit", "--config", str(config), "--trainer.accelerator", "cuda", "--trainer.devices", "1")
    assert "CUDAAccelerator" in message


def test_missing_checkpoint(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.ckpt" in fails(capsys, "fit", "--config", str(config), "--ckpt_path", "nowhere.ckpt")


def test_later_configs_and_options_win(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = config.parent / "later.yaml"
    later.write_text("trainer: {max_steps: 2}\nmodel: {init_args: {optimization: {learning_rate: 0.5}}}\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), "--config", str(later), "--trainer.max_steps", "3", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["max_steps"] == 3
    assert printed["trainer"]["accelerator"] == "cpu"
    assert printed["model"]["init_args"]["optimization"]["learning_rate"] == 0.5


def test_the_config_wins_over_a_checkpoint(config: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning would take the model's settings from the hyper-parameters that a checkpoint may hold."""
    keep = ["--trainer.enable_checkpointing", "true", "--trainer.callbacks", "ModelCheckpoint"]
    keep += ["--trainer.callbacks.dirpath", str(config.parent / "kept"), "--trainer.callbacks.filename", "kept"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), *keep])
    path = config.parent / "kept" / "kept.ckpt"
    checkpoint = torch.load(path, weights_only=False)
    other = {"_instantiator": "x", "backbone": {"name": "/somewhere/else"}, "optimization": {"learning_rate": 9.0}}
    torch.save(checkpoint | {"hyper_parameters": other}, path)
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(config), "--trainer.max_steps", "2", "--ckpt_path", str(path)])
    assert caught.value.code == 0
    written = yaml.safe_load((config.parent / "out" / "config.yaml").read_text())
    assert written["model"]["init_args"]["backbone"]["name"] == str(tiny_folder)


def test_readable_drops_the_half_that_says_nothing() -> None:
    message = "Parser key \"model\":\n  - Option 'x' is not accepted\n  - Expected a <class 'NoneType'>\n\n"
    assert readable(message) == "Parser key \"model\":\n  - Option 'x' is not accepted"


def test_corrupt_and_huge_pictures(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    (config.parent / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    Image.new("L", (20_000, 20_000)).save(config.parent / "huge.png")
    rows = [GOOD | {"question": f"Q{n}?", "images": [name]} for n, name in enumerate(("corrupt.png", "huge.png"))]
    message = fails(capsys, "fit", "--config", str(config), *source(jsonl(config.parent, *rows)))
    assert "corrupt" in message
    assert "huge.png" in message


def test_some_too_long_is_no_failure(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [GOOD | {"question": f"Q{n}?"} for n in range(5)] + [GOOD | {"question": "word " * 300}]
    path = jsonl(config.parent, *rows)
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(config), *source(path), "--data.init_args.max_length", "200"])
    assert caught.value.code == 0
    assert "1 of 6 training samples are left out: 1 longer than max_length=200" in caplog.text


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_precisions_that_would_round_the_loss(precision: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "use 'bf16-mixed'" in fails(capsys, "fit", "--config", str(config), "--trainer.precision", precision)


def test_benchmark_names_head_metrics(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = config.parent / "later.yaml"
    bad = {"a/b": {"class_path": "Phantom", "init_args": {"split": "test", "size": 2}}}
    later.write_text(yaml.safe_dump({"data": {"init_args": {"benchmarks": bad}}}))
    assert "'a/b'" in fails(capsys, "fit", "--config", str(config), "--config", str(later))


@pytest.mark.parametrize("command", ["test", "predict"])
def test_other_verbs_write_completions(command: str, tiny_folder: Path, tmp_path: Path) -> None:
    """With names that would collide in a ModuleDict."""
    bench = {name: {"class_path": "Phantom", "init_args": {"split": "test", "size": 3}} for name in ("type", "v1.0")}
    engine = {"class_path": "ScriptedEngine", "init_args": {"texts": ["<think> r </think>\n<answer> A </answer>"]}}
    settings = {
        "trainer": {
            "accelerator": "cpu", "logger": False, "default_root_dir": str(tmp_path / "out"),
            "callbacks": [
                {"class_path": "RolloutCallback", "init_args": {"engine": engine, "sampling": {"n": 2}}},
                {"class_path": "EvaluationRecorder"}, {"class_path": "ResultsTable"},
            ],
        },
        "model": {"class_path": "RolloutModule"},
        "data": {
            "class_path": "BenchmarkDataModule",
            "init_args": {"encoder": {"model": str(tiny_folder)}, "benchmarks": bench},
        },
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as caught:
        main([command, "--config", str(path)])
    assert caught.value.code == 0
    lines = (tmp_path / "out" / "completions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(r["benchmark"], r["sample"]) for r in records] == [
        (n, s) for n in ("type", "v1.0") for _ in range(3) for s in (0, 1)
    ]
    assert all(r["correct"] == (r["answer_label"] == "A") and r["label"] == "A" for r in records)
    if command == "test":
        results = json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]
        assert [(row["questions"], row["count"]) for row in results] == [(3, 6), (3, 6)]


def test_the_live_policy_needs_a_backbone(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "trainer": {
            "accelerator": "cpu",
            "logger": False,
            "default_root_dir": str(tmp_path / "out"),
            "callbacks": [{"class_path": "RolloutCallback"}],
        },
        "model": {"class_path": "RolloutModule"},
        "data": {
            "class_path": "BenchmarkDataModule",
            "init_args": {
                "encoder": {"model": str(tiny_folder)},
                "benchmarks": {"b": {"class_path": "Phantom", "init_args": {"split": "test", "size": 2}}},
            },
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert "use a module with a backbone" in fails(capsys, "validate", "--config", str(path))


@pytest.mark.parametrize(
    ("strategy", "accelerator", "message"),
    [
        ("strategies/fsdp1.yaml", "cpu", "needs GPUs; on CPUs use FSDP2Strategy|requires a GPU accelerator"),
        ("strategies/zero2.yaml", "cpu", r"DeepSpeedStrategy needs NVIDIA GPUs, and trainer\.accelerator is cpu"),
        ("strategies/ddp.yaml", "gpu", "No supported gpu backend found"),
    ],
)
def test_strategies_that_this_machine_cannot_run(
    strategy: str, accelerator: str, message: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    said = fails(
        capsys, "fit", "--config", str(config), "--config", strategy, f"--trainer.accelerator={accelerator}"
    )  # fmt: skip
    assert re.search(message, said)
    assert not list((config.parent / "out").glob("*"))


def test_processes_that_torchrun_started_must_be_those_of_the_config(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning alone would train on fewer ranks than the config says."""
    started = {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for name, value in (started | {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "any"}).items():
        monkeypatch.setenv(name, value)
    said = fails(capsys, "fit", "--config", str(config), "--trainer.devices=2", "--trainer.strategy=ddp")
    assert "devices=2" in said
    assert "does not match the world size (1)" in said


def test_every_run_is_watched_once(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers: list[Trainer] = []
    monkeypatch.setattr(Trainer, "fit", lambda self, *args, **kwargs: trainers.append(self))
    own = "--trainer.callbacks+=RankWatchdog", "--trainer.callbacks.silence_seconds=9"
    for options, silence in (((), 45), (own, 9)):
        with pytest.raises(SystemExit):
            main(["fit", "--config", str(config), *options])
        found = [c for c in trainers[-1].callbacks if isinstance(c, RankWatchdog)]  # type: ignore[attr-defined]
        assert [watchdog.silence_seconds for watchdog in found] == [silence]
