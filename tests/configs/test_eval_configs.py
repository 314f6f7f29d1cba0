# SPDX-License-Identifier: Apache-2.0
"""The configs of `medvlt validate`: each is run as its header says, on a few questions with scripted answers."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from medvlt.__main__ import main
from medvlt.evaluation.benchmarks import MedVLThinkerEval
from medvlt.evaluation.benchmarks.building import ORIGINALS
from medvlt.evaluation.published import BENCHMARKS, QUESTIONS
from medvlt.evaluation.runs import iterate_records, read_run
from medvlt.paths import config_dir

CONFIGS = config_dir()
EVAL = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("eval/**/*.yaml"))
WHOLE = ("eval/six.yaml", "eval/text.yaml")
TEXT = ("medqa", "medmcqa", "pubmedqa", "mmlu_medical")
EACH = 4
"""Questions of each benchmark; the right answers are A, B, A, B."""

ANSWERS = {"eval/families/step_by_step.yaml": "Because.\nAnswer: A", "eval/families/direct.yaml": "A"}
N = {"eval/protocol_paper.yaml": 3, "eval/protocol_samples.yaml": 64}
CONTROLS = {"eval/blind.yaml": "blind", "eval/blank_pictures.yaml": "blank", "eval/rotated_options.yaml": "rotated"}
"""What the name of each control begins with."""


def settings_of(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    return settings


def launch_command(name: str) -> list[str]:
    """What a header says behind `Launch:`, in one line, so that it can be copied."""
    found = re.search(r"^# Launch: medvlt validate (.+)$", (CONFIGS / name).read_text(), re.MULTILINE)
    assert found is not None
    return shlex.split(found[1])


def rollout_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of the last callback, which is the one that samples."""
    last = settings["trainer"]["callbacks"][-1]
    assert last["class_path"].rpartition(".")[2] in ("RolloutCallback", "VLLMRolloutCallback")
    return dict(last["init_args"])


def printed(*arguments: str) -> dict[str, Any]:
    with redirect_stdout(StringIO()) as out, pytest.raises(SystemExit) as caught:
        main(["validate", *arguments, "--print_config"])
    assert not caught.value.code
    settings: dict[str, Any] = yaml.safe_load(out.getvalue())
    return settings


def write_questions(path: Path, names: tuple[str, ...]) -> None:
    Image.new("RGB", (64, 48), (200, 30, 30)).save(path.parent / "a.png")
    rows = [
        {
            "question": f"Question {i} of {name}?", "options": {"A": f"yes {i}", "B": f"no {i}"},
            "answer_label": "AB"[i % 2], "images": ["a.png"], "dataset_name": name, "dataset_index": i,
        }
        for name in names
        for i in range(EACH)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def stand_ins(names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """A file in the place of each gated or remote set; the six are still read by their own class."""
    file = {"source": "rows.jsonl", "expected": EACH}
    return {
        name: {"class_path": "MedVLThinkerEval", "init_args": {"benchmark": name, **file}}
        if name in BENCHMARKS
        else {"class_path": "Benchmark", "init_args": {"dataset_name": name, **file}}
        for name in names
    }


@pytest.mark.parametrize("name", EVAL)
def test_it_runs_as_its_header_says(
    name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = launch_command(name)
    assert name in command
    root = Path(settings_of(name)["trainer"]["default_root_dir"])
    own = name == "eval/my_benchmark.yaml"
    names = ("my_benchmark",) if own else {WHOLE[0]: BENCHMARKS, WHOLE[1]: TEXT}.get(name, BENCHMARKS[:2])
    write_questions(Path("my_benchmark.jsonl" if own else "rows.jsonl"), names)
    data: dict[str, Any] = {"encoder": {"model": str(tiny_folder)}}
    Path("small.yaml").write_text(yaml.safe_dump({
        "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true", "enable_progress_bar": False},
        "data": {"init_args": data if own else data | {"benchmarks": stand_ins(names)}},
    }, sort_keys=False))  # fmt: skip
    answer = ANSWERS.get(name, "<think> because </think>\n<answer> A </answer>")
    engine = {"class_path": "ScriptedEngine", "init_args": {"texts": [answer]}}
    if "--trainer.callbacks.init_args.engine.model" in command:  # the scripted engine has no name
        del command[-2:]
    more = [f"--data.init_args.benchmarks.my_benchmark.init_args.expected={EACH}"] if own else []
    if "--ckpt_path" in command:
        del command[-2:]
        more = [f"--model.init_args.backbone.name={tiny_folder}"]
    with pytest.raises(SystemExit) as caught:
        main([
            "validate", *command, "--config", "small.yaml",
            f"--trainer.callbacks.init_args.engine={json.dumps(engine)}", *more,
        ])  # fmt: skip
    assert not caught.value.code
    run = read_run(root)
    assert tuple(run.benchmarks) == names
    for answers in run.benchmarks.values():
        assert (answers.questions, answers.n) == (EACH, N.get(name, 1))
        assert answers.scores.tolist() == ([0, 1] if name == "eval/rotated_options.yaml" else [1, 0]) * 2
    control = run.about["control"]
    assert (control["name"] if control else "").lower().startswith(CONTROLS.get(name, ""))
    assert bool(control) == (name in CONTROLS)
    shown = {tuple(Path(picture).name for picture in record["pictures"]) for record in iterate_records(root)}
    if name == "eval/blind.yaml":
        assert shown == {()}
    else:
        assert (shown == {("a.png",)}) == (name != "eval/blank_pictures.yaml")
    assert list((root / "completions").glob("*.parquet"))
    results = json.loads((root / "results.json").read_text())
    assert {row["benchmark"] for row in results["benchmarks"]} == set(names)


def test_the_protocol_is_that_of_the_reference() -> None:
    six = settings_of("eval/six.yaml")
    greedy = {"n": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 4096}
    assert rollout_of(six)["sampling"] == greedy
    assert rollout_of(settings_of("eval/text.yaml"))["sampling"] == greedy
    assert rollout_of(settings_of("eval/protocol_paper.yaml"))["sampling"] == greedy | {"n": 3}
    samples = rollout_of(settings_of("eval/protocol_samples.yaml"))["sampling"]
    assert samples == greedy | {"n": 64, "temperature": 0.5, "top_p": 0.95}
    assert rollout_of(six)["engine"]["init_args"]["max_images"] == 7
    data = six["data"]["init_args"]
    assert (data["encoder"]["template"], data["batch_size"]) == ("reference", 256)
    assert {name: source["init_args"] for name, source in data["benchmarks"].items()} == {
        name: {"benchmark": name} for name in BENCHMARKS
    }


def test_the_six_have_the_published_counts() -> None:
    counts = [2000, 170, 2000, 3362, 416, 272]
    assert list(QUESTIONS.values()) == counts
    assert [MedVLThinkerEval(name).expected_rows for name in BENCHMARKS] == counts
    assert f"{sum(counts):,} in all" in (CONFIGS / "eval/six.yaml").read_text()


def test_the_original_sources_take_the_places_of_the_published_ones() -> None:
    command = ["--config", "eval/six.yaml", "--config", "eval/six_from_sources.yaml"]
    sources = printed(*command)["data"]["init_args"]["benchmarks"]
    assert {name: source["init_args"]["expected"] for name, source in sources.items()} == dict(QUESTIONS)
    assert {name: ORIGINALS[name].__name__ for name in BENCHMARKS} == {
        name: source["class_path"].rpartition(".")[2] for name, source in sources.items()
    }


def test_the_text_sets_have_the_counts_of_the_header() -> None:
    sources = printed("--config", "eval/text.yaml")["data"]["init_args"]["benchmarks"].values()
    counts = [source["init_args"]["expected"] for source in sources]
    assert counts == [1273, 4183, 1000, 1089]
    assert f"{sum(counts):,} in all" in (CONFIGS / "eval/text.yaml").read_text()


def test_lists_of_callbacks_are_alike_and_every_folder_is_used_once() -> None:
    """A list takes the place of the one before, so each has to be whole."""
    settings = {name: settings_of(name) for name in EVAL}
    roots = [s["trainer"]["default_root_dir"] for s in settings.values()]
    assert len({*roots}) == len(EVAL)
    engine = rollout_of(settings["eval/six.yaml"])["engine"]
    for name in EVAL:
        if "callbacks" not in settings[name]["trainer"]:
            continue
        kinds = [callback["class_path"] for callback in settings[name]["trainer"]["callbacks"]]
        assert kinds[:-1] == ["ResultsTable", "EvaluationRecorder"], name
        rollout = rollout_of(settings[name])
        assert (rollout["seed"], rollout["store"]) == (42, True), name
        if kinds[-1] == "VLLMRolloutCallback" and name != "eval/text.yaml":
            assert rollout["engine"] == engine, name
        if kinds[-1] == "RolloutCallback":
            assert rollout["engine"]["class_path"] == "OpenAIEngine", name
            assert rollout["sampling"] == rollout_of(settings["eval/six.yaml"])["sampling"], name
            assert settings[name]["data"]["init_args"]["encoder"]["model"] == "", name
            assert "key" not in json.dumps(rollout).replace("api_key_variable", ""), name


def test_fragments_go_behind_one_another() -> None:
    settings = printed(
        "--config", "eval/text.yaml", "--config", "eval/endpoint.yaml", "--config", "eval/families/step_by_step.yaml",
        "--config", "eval/rotated_options.yaml", "--trainer.callbacks.init_args.sampling.n", "3",
    )  # fmt: skip
    data = settings["data"]["init_args"]
    assert tuple(data["benchmarks"]) == TEXT
    assert (data["encoder"]["model"], data["encoder"]["template"]) == ("", "step_by_step")
    assert data["control"]["class_path"].endswith("RotatedOptions")
    rollout = rollout_of(settings)
    assert rollout["engine"]["class_path"].endswith("OpenAIEngine")
    assert (rollout["sampling"]["n"], rollout["sampling"]["temperature"], rollout["store"]) == (3, 0.0, True)
    assert (
        settings["trainer"]["default_root_dir"]
        == settings_of("eval/rotated_options.yaml")["trainer"]["default_root_dir"]
    )


def test_a_benchmark_of_ones_own_takes_ten_lines() -> None:
    text = (CONFIGS / "eval/my_benchmark.yaml").read_text()
    assert len([line for line in text.splitlines() if not line.startswith("#")]) <= 10
