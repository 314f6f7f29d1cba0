# SPDX-License-Identifier: Apache-2.0
"""Every shipped YAML, found by glob: parsed, printed, built, and run for two steps on a tiny model and tiny data."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from medvlt.__main__ import main
from medvlt.models.checkpoints import read_stored, read_weights
from medvlt.models.loading import Backbone, load_pretrained
from medvlt.models.policy import Policy
from medvlt.paths import config_dir

CONFIGS = config_dir()
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
HARDWARE = [name for name in FILES if name.startswith("hardware/")]
ALGORITHMS = [name for name in FILES if name.startswith("algorithms/")]
STRATEGIES = [name for name in FILES if name.startswith("strategies/")]
ADAPTERS = [name for name in FILES if name.startswith("adapters/")]
GRPO = [name for name in FILES if name.startswith("grpo/")]
EVAL = [name for name in FILES if name.startswith("eval/")]  # tests/configs/test_eval_configs.py
PREDICT = [name for name in FILES if name.startswith(("curate/", "distill/", "demo/probe"))]
RECIPES = [name for name in FILES if name.startswith(("demo/", "sft/", "grpo/", "curate/", "distill/"))]

M23K, PMC = (16_512, 16_639), (115_520, 115_583)
"""Fewest and most questions that the reference's selection can have."""

SCRIPTS = {
    "grpo/m23k_3b.yaml": (M23K, 5, 320, 256, 32, True, 50, -1),
    "grpo/m23k_7b.yaml": (M23K, 5, 320, 256, 32, True, 50, -1),
    "grpo/m23k_32b.yaml": (M23K, 5, 645, 128, 16, True, 50, 2),
    "grpo/m23k_easy_to_hard_3b.yaml": (M23K, 5, 320, 256, 32, False, 100, -1),
    "grpo/m23k_easy_to_hard_7b.yaml": (M23K, 5, 320, 256, 32, False, 100, -1),
    "grpo/pmc_vqa_3b.yaml": (PMC, 1, 451, 256, 32, True, 50, -1),
    "grpo/pmc_vqa_7b.yaml": (PMC, 1, 451, 256, 32, True, 50, -1),
    "grpo/pmc_vqa_easy_to_hard_3b.yaml": (PMC, 1, 451, 256, 16, False, 100, 2),
    "grpo/pmc_vqa_easy_to_hard_7b.yaml": (PMC, 1, 451, 256, 32, False, 100, -1),
    "grpo/sft_m23k_rl_pmc_vqa_3b.yaml": (PMC, 1, 1805, 64, 8, True, 50, -1),
    "grpo/sft_m23k_rl_pmc_vqa_7b.yaml": (PMC, 1, 1805, 64, 8, True, 50, -1),  # 4 there: half a group
    "grpo/rl_m23k_rl_pmc_vqa_3b.yaml": (PMC, 1, 1805, 64, 8, True, 50, 3),
    "grpo/rl_m23k_rl_pmc_vqa_7b.yaml": (PMC, 1, 1805, 64, 8, True, 50, 3),
}
"""The reference's training scripts: questions, passes, iterations, prompts of an iteration, completions of a
micro-batch, shuffled or not, iterations between two checkpoints, checkpoints kept."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads only get in one another's way on tensors this small, tenfold on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(*args: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert not caught.value.code, f"exit code {caught.value.code}: medvlt {' '.join(args)}"


def verb(name: str) -> str:
    if name in PREDICT:
        return "predict"
    data = yaml.safe_load((CONFIGS / name).read_text())["data"]["class_path"]
    return "validate" if data == "BenchmarkDataModule" else "fit"


@cache
def printed_text(*args: str) -> str:
    with redirect_stdout(StringIO()) as out:
        run(*args, "--print_config")
    return out.getvalue()


def printed(*args: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(printed_text(*args))
    return settings


def launch_command(name: str) -> list[str]:
    """What a header says behind `Launch:`, in one line, so that it can be copied."""
    found = re.search(r"^# Launch: +(?:torchrun .+ -m )?medvlt (.+)$", (CONFIGS / name).read_text(), re.MULTILINE)
    assert found is not None
    return shlex.split(found[1])


def micro_batches(settings: dict[str, Any]) -> int:
    """Of a step, over all ranks."""
    trainer = settings["trainer"]
    return int(trainer["devices"] * trainer["num_nodes"] * trainer["accumulate_grad_batches"])


def groups_of_a_micro_batch(settings: dict[str, Any]) -> float:
    data = settings["data"]["init_args"]
    return float(data["prompts_per_iteration"] / data["updates_per_iteration"] / micro_batches(settings))


def callbacks_of(settings: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [c["init_args"] for c in settings["trainer"]["callbacks"] if c["class_path"].endswith(f".{kind}")]


def test_the_glob_finds_them_and_each_is_of_a_kind() -> None:
    assert len(RECIPES) >= 20
    assert sorted(SCRIPTS) == GRPO
    assert len(ALGORITHMS) >= 6
    assert sorted(RECIPES + HARDWARE + ALGORITHMS + STRATEGIES + ADAPTERS + EVAL) == FILES


def test_the_readme_has_a_row_for_each() -> None:
    rows = re.findall(r"^\| `([^`]+\.yaml)` \|", (CONFIGS / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == FILES


@pytest.mark.parametrize("name", FILES)
def test_header_says_how_to_launch(name: str) -> None:
    head = [line for line in (CONFIGS / name).read_text().splitlines() if line.startswith("#")]
    assert head
    assert any("--config" in line for line in head)


@pytest.mark.parametrize("name", RECIPES)
def test_printing_is_a_fixed_point(name: str, tmp_path: Path) -> None:
    first = printed(verb(name), "--config", name)
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(first))
    assert printed(verb(name), "--config", str(again)) == first


def short(value: Any) -> Any:
    """The value with class names in place of import paths."""
    if not isinstance(value, dict):
        return value
    return {key: part.rpartition(".")[2] if key == "class_path" else short(part) for key, part in value.items()}


def check_hardware(settings: dict[str, Any], fragment: str) -> None:
    wanted = yaml.safe_load((CONFIGS / fragment).read_text())
    strategy, found = wanted["trainer"].pop("strategy"), settings["trainer"]["strategy"]
    for key, value in wanted["trainer"].items():
        assert settings["trainer"][key] == value, (fragment, key)
    for key, value in wanted.get("model", {"init_args": {"backbone": {}}})["init_args"]["backbone"].items():
        assert settings["model"]["init_args"]["backbone"][key] == value, (fragment, key)
    if isinstance(strategy, str):
        assert found == strategy
    else:
        assert found["class_path"].endswith(f".{strategy['class_path']}")
        assert {key: found["init_args"][key] for key in strategy["init_args"]} == strategy["init_args"]


def test_several_gpus_share_the_weights() -> None:
    for fragment in HARDWARE:
        trainer = yaml.safe_load((CONFIGS / fragment).read_text())["trainer"]
        strategy = trainer["strategy"]
        assert (strategy == "auto") == (trainer["devices"] == 1), fragment
        assert strategy == "auto" or strategy["class_path"] == "FSDP2Strategy", fragment


def check_algorithm(settings: dict[str, Any], fragment: str) -> None:
    wanted = yaml.safe_load((CONFIGS / fragment).read_text())
    assert wanted.keys() == {"model", "data"}
    for part, values in wanted.items():
        assert values["init_args"]
        for key, value in values["init_args"].items():
            assert short(settings[part]["init_args"][key]) == value, (fragment, key)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith("sft/")])
def test_hardware_composes_with_sft_recipes(recipe: str) -> None:
    for fragment in HARDWARE:
        settings = printed("fit", "--config", recipe, "--config", fragment)
        check_hardware(settings, fragment)
        samples = settings["data"]["init_args"]["global_batch_size"]
        if fragment == "hardware/4x8gpu.yaml":  # too many ranks for the published recipes, as its header says
            samples = int(re.search(r"global_batch_size (\d+)", (CONFIGS / fragment).read_text())[1])  # type: ignore[index]
        assert samples % micro_batches(settings) == 0, fragment


@pytest.mark.parametrize("fragment", STRATEGIES + ADAPTERS)
def test_strategies_and_adapters_launch_as_their_headers_say(fragment: str) -> None:
    """And behind a recipe of the other kind; the class of the strategy before leaves nothing behind."""
    text = (CONFIGS / fragment).read_text()
    found = re.search(r"^#   medvlt (.+)$", text, re.MULTILINE)
    assert found is not None
    command = shlex.split(found[1])
    assert fragment in command
    wanted = yaml.safe_load(text)
    other = "grpo/pmc_vqa_3b.yaml" if command[2].startswith("sft/") else "sft/pmc_vqa_3b.yaml"
    for recipe in (command[2], other):
        settings = printed(*command[:2], recipe, *command[3:])
        if fragment in ADAPTERS:
            backbone = settings["model"]["init_args"]["backbone"]
            assert {name: backbone[name] for name in wanted["model"]["init_args"]["backbone"]} == (
                wanted["model"]["init_args"]["backbone"]
            )
        else:
            strategy = settings["trainer"]["strategy"]
            assert strategy["class_path"].endswith(f".{wanted['trainer']['strategy']['class_path']}")
            given = wanted["trainer"]["strategy"].get("init_args", {})
            assert {name: strategy["init_args"][name] for name in given} == given
            assert strategy["init_args"].get("data_parallel_size", "auto") == "auto"


@pytest.mark.parametrize("recipe", GRPO)
def test_fragments_compose_with_grpo_recipes(recipe: str) -> None:
    """Each algorithm, and the kinds of hardware in turn."""
    assert len(ALGORITHMS) >= len(HARDWARE)
    for number, algorithm in enumerate(ALGORITHMS):
        hardware = HARDWARE[number % len(HARDWARE)]
        settings = printed("fit", "--config", recipe, "--config", algorithm, "--config", hardware)
        check_algorithm(settings, algorithm)
        check_hardware(settings, hardware)
        assert groups_of_a_micro_batch(settings) % 1 == 0, hardware
        assert settings["model"]["init_args"]["optimization"]["learning_rate"] == 1e-6  # what no fragment names stays


@pytest.mark.parametrize("fragment", [name for name in HARDWARE if "gpu" in name])
def test_hardware_says_how_to_cut_grpo_steps(fragment: str) -> None:
    text = (CONFIGS / fragment).read_text()
    advice = re.search(r"for grpo/ add --trainer.accumulate_grad_batches (\d+)$", text, re.MULTILINE)
    assert advice is not None
    trainer = {"num_nodes": 1} | yaml.safe_load(text)["trainer"] | {"accumulate_grad_batches": int(advice[1])}
    for recipe in GRPO:
        data = yaml.safe_load((CONFIGS / recipe).read_text())["data"]
        assert groups_of_a_micro_batch({"trainer": trainer, "data": data}) in (1, 2, 4), recipe


@pytest.mark.parametrize("name", GRPO)
def test_grpo_recipes_have_the_numbers_of_the_scripts(name: str) -> None:
    """As launched by the command in the header."""
    questions, passes, iterations, prompts, completions, shuffled, every, kept = SCRIPTS[name]
    settings = printed(*launch_command(name))
    trainer, model, data = settings["trainer"], settings["model"]["init_args"], settings["data"]["init_args"]
    assert trainer["max_epochs"] == iterations
    assert {passes * (number // prompts) for number in questions} == {iterations}
    assert (data["prompts_per_iteration"], data["updates_per_iteration"], data["shuffle"]) == (prompts, 2, shuffled)
    assert data["train"]["class_path"].endswith(".M23k" if questions is M23K else ".PMCVQA")
    selection = data["train"]["init_args"]["selection"]
    assert (selection["probe"], selection["low"], selection["high"]) == ("qwen2_5_vl_3b", 1, 7)
    assert (selection["count"], selection["unmeasured"]) == ("strict", "drop")
    assert selection["order"] == ("source" if shuffled else "easy_to_hard")
    assert groups_of_a_micro_batch(settings) == completions / 8
    while_training, to_resume = callbacks_of(settings, "AtomicCheckpoint")
    assert (while_training["every_n_epochs"], while_training["save_top_k"]) == (every, kept)
    assert (to_resume["save_last"], to_resume["save_top_k"], to_resume["every_n_epochs"]) == (True, 0, 10)
    (rollouts,) = callbacks_of(settings, "VLLMRolloutCallback")
    groups = rollouts["group_sampling"]
    assert (groups["n"], groups["temperature"], groups["top_p"], groups["max_tokens"]) == (8, 1.0, 1.0, 4096)
    engine = rollouts["engine"]["init_args"]
    assert engine["max_model_len"] == data["max_prompt_tokens"] + 4096 == 2048 + 4096
    assert engine["max_images"] == 1  # vLLM keeps memory for as many pictures of the largest size
    assert (trainer["precision"], trainer["gradient_clip_val"]) == ("bf16-mixed", 1.0)
    optimization = model["optimization"]
    assert (optimization["learning_rate"], optimization["weight_decay"]) == (1e-6, 0.01)
    assert (optimization["schedule"], optimization["warmup_ratio"]) == ("constant", 0.0)
    assert optimization["betas"] == [0.9, 0.999]
    assert model["backbone"]["name"] == data["encoder"]["model"]
    assert (data["encoder"]["template"], data["seed"]) == ("reference", 1)
    assert model["backbone"]["freeze"] == (["vision", "projector"] if questions is M23K else [])


@pytest.mark.parametrize("name", ["grpo/m23k_32b.yaml", "sft/m23k_32b.yaml"])
def test_torchrun_starts_the_processes_that_the_trainer_expects(name: str) -> None:
    text = (CONFIGS / name).read_text()
    started = re.search(r"^# Launch: torchrun --nnodes (\d+) --nproc-per-node (\d+) ", text, re.MULTILINE)
    assert started is not None
    trainer = printed(*launch_command(name))["trainer"]
    assert (trainer["num_nodes"], trainer["devices"]) == (int(started[1]), int(started[2]))
    assert trainer["strategy"]["class_path"].endswith(".FSDP2Strategy")


@pytest.mark.parametrize("name", GRPO)
def test_grpo_recipes_are_the_reference_but_for_the_reduction(name: str) -> None:
    plain = printed("fit", "--config", name)
    reference = printed("fit", "--config", name, "--config", "algorithms/reference.yaml")
    assert plain["data"]["init_args"].pop("loss_reduction") == "token"
    assert reference["data"]["init_args"].pop("loss_reduction") == "micro_batch"
    assert plain == reference


@pytest.mark.parametrize("name", [name for name in GRPO if "_rl_" in name])
def test_a_chain_starts_from_what_its_header_exports(name: str) -> None:
    text = (CONFIGS / name).read_text()
    export = re.search(r"medvlt export \S+ (\S+)$", text, re.MULTILINE)
    checkpoint = re.search(r"CHECKPOINT is (\S+)$", text, re.MULTILINE)
    assert export is not None
    assert checkpoint is not None
    assert yaml.safe_load(text)["model"]["init_args"]["backbone"]["name"] == export[1]
    stage, size = re.fullmatch(r"grpo/(sft|rl)_m23k_rl_pmc_vqa_(3b|7b)\.yaml", name).groups()  # type: ignore[union-attr]
    first = CONFIGS / {"sft": "sft", "rl": "grpo"}[stage] / f"m23k_{size}.yaml"
    assert checkpoint[1].startswith(f"{yaml.safe_load(first.read_text())['trainer']['default_root_dir']}/")


def test_the_main_readme_shows_the_chain_of_the_recipe() -> None:
    """Its lines, run one after the other, are those of the header."""
    name = "grpo/sft_m23k_rl_pmc_vqa_3b.yaml"
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    block = re.search(r"^    CHECKPOINT=.+?\n\n", readme, re.MULTILINE | re.DOTALL)
    assert block is not None
    first, train, export, chain = (shlex.split(line) for line in block[0].strip().splitlines())
    header = (CONFIGS / name).read_text()
    assert f"#   CHECKPOINT is {first[0].removeprefix('CHECKPOINT=')}\n" in header
    assert train[1:] == launch_command("sft/m23k_3b.yaml")
    folder = yaml.safe_load(header)["model"]["init_args"]["backbone"]["name"]
    assert export == ["medvlt", "export", "$CHECKPOINT", folder]
    assert chain[1:] == launch_command(name)


@pytest.mark.parametrize("fragment", ALGORITHMS)
def test_algorithms_launch_as_their_headers_say(fragment: str) -> None:
    command = launch_command(fragment)
    assert fragment in command
    settings = printed(*command)
    assert groups_of_a_micro_batch(settings) == 4
    (rollouts,) = callbacks_of(settings, "VLLMRolloutCallback")
    assert rollouts["resampling_rounds"] == (10 if fragment == "algorithms/dapo.yaml" else 0)
    if fragment == "algorithms/dapo.yaml":
        overlong = settings["model"]["init_args"]["rewards"]["overlong"]["init_args"]
        assert overlong["max_tokens"] == rollouts["group_sampling"]["max_tokens"]
        assert overlong["cache_tokens"] == overlong["max_tokens"] * 4096 // 20480


def write_questions(path: Path, number: int = 32) -> None:
    record = {
        "options": {"A": "yes", "B": "no"},
        "answer_label": "A",
        "answer": "yes",
        "reasoning": "r",
    }
    path.write_text("\n".join(json.dumps({"question": f"Question {i}?"} | record) for i in range(number)))


def run_grpo(name: str, tiny_folder: Path, folder: Path, *more: str) -> Path:
    """Trains a real recipe for two iterations and returns the checkpoint that it leaves.

    A tiny model stands for the weights that would be downloaded, a file for the questions, the live policy for vLLM.
    """
    write_questions(folder / "rows.jsonl")
    sampler = "--trainer.callbacks.init_args."
    run(
        "fit", "--config", name, "--config", "hardware/cpu.yaml", f"--model.init_args.backbone.name={tiny_folder}",
        f"--data.init_args.encoder.model={tiny_folder}", "--data.init_args.train=JSONLines",
        "--data.init_args.train.init_args.path=rows.jsonl", "--data.init_args.prompts_per_iteration=4",
        "--trainer.accumulate_grad_batches=1", "--trainer.max_epochs=2", f"{sampler}engine=TransformersEngine",
        f"{sampler}group_sampling.max_tokens=6", *more,
    )  # fmt: skip
    (checkpoint,) = (folder / "runs").rglob("last.ckpt")
    return checkpoint


@pytest.mark.parametrize("name", GRPO)
def test_grpo_recipes_train_two_iterations(
    name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = run_grpo(name, tiny_folder, tmp_path)
    assert read_stored(checkpoint).step == 4
    columns = next((tmp_path / "runs").rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/kl", "train/reward", "lr-AdamW/pg1", "seconds/generate"} <= set(columns)


@pytest.mark.parametrize("fragment", ALGORITHMS)
def test_algorithms_learn(fragment: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a reward that a random model earns now and then, the weights move; weight decay is off."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "paid.py").write_text("def even(sample, completion, verdict): return completion.token_ids[0] % 2")
    paid = {"even": {"class_path": "FunctionReward", "init_args": {"function": "paid.even"}}}
    checkpoint = run_grpo(
        "grpo/m23k_3b.yaml", tiny_folder, tmp_path, "--config", fragment,
        f"--model.init_args.rewards={json.dumps(paid)}", "--model.init_args.optimization.weight_decay=0",
    )  # fmt: skip
    weights = read_weights(read_stored(checkpoint))
    start = Policy(load_pretrained(Backbone(str(tiny_folder)))).state_dict()
    moved = [name for name, tensor in start.items() if not torch.equal(weights[name], tensor)]
    assert any("layers.0.mlp" in name for name in moved)
    assert not any("visual" in name for name in moved)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("sft/")])
def test_recipes_train_two_steps(name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real recipe, with a tiny model for the weights that would be downloaded and a file for the gated data."""
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path / "rows.jsonl")
    run(
        "fit", "--config", name, "--config", "hardware/cpu.yaml", f"--model.init_args.backbone.name={tiny_folder}",
        f"--data.init_args.encoder.model={tiny_folder}", "--data.init_args.train=JSONLines",
        "--data.init_args.train.init_args.path=rows.jsonl", "--data.init_args.num_workers=0", "--trainer.max_epochs=1",
    )  # fmt: skip
    kept = list((tmp_path / "runs").rglob("*.ckpt"))
    assert any(path.name == "epoch=0-step=2.ckpt" for path in kept), kept
    metrics = next((tmp_path / "runs").rglob("metrics.csv")).read_text()
    assert "train/loss" in metrics
    assert "lr-AdamW" in metrics
    record = read_stored(kept[0]).record
    config = yaml.safe_load(record["config"])
    assert (config["trainer"]["max_epochs"], config["model"]["class_path"]) == (1, "lightning_modules.SFTModule")


@pytest.mark.parametrize("fragment", ADAPTERS)
def test_adapters_learn(fragment: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a real recipe; the checkpoint holds adapters alone."""
    if "qlora" in fragment:
        pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    checkpoint = run_grpo("grpo/m23k_3b.yaml", tiny_folder, tmp_path, "--config", fragment)
    weights = read_weights(read_stored(checkpoint))
    assert weights
    assert all(".lora_" in name and tensor.dtype == torch.float32 for name, tensor in weights.items())


def test_the_grpo_demos_differ_in_the_engine_alone() -> None:
    demos = [yaml.safe_load((CONFIGS / f"demo/{name}.yaml").read_text()) for name in ("grpo", "grpo_transformers")]
    samplers = [demo["trainer"]["callbacks"].pop(0) for demo in demos]
    assert demos[0] == demos[1]
    assert [sampler.pop("class_path") for sampler in samplers] == ["VLLMRolloutCallback", "RolloutCallback"]
    engines = [sampler["init_args"].pop("engine") for sampler in samplers]
    assert [engine["class_path"] for engine in engines] == ["VLLMEngine", "TransformersEngine"]
    assert engines[0]["init_args"]["dtype"] == "float32"  # the trainer's; vLLM may run on a GPU, where it would be half
    assert samplers[0] == samplers[1]


def test_grpo_demo_runs(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe a few questions, select (a random model is never right), train two iterations, validate, export."""
    monkeypatch.chdir(tmp_path)
    model = [f"--model.init_args.backbone.name={tiny_folder}", f"--data.init_args.encoder.model={tiny_folder}"]
    few = "--data.init_args.benchmarks.phantom.init_args.size=16"
    run("predict", "--config", "demo/probe_transformers.yaml", *model, few)
    selected = "--data.init_args.train.init_args"
    run(
        "fit", "--config", "demo/grpo_transformers.yaml", *model, f"{selected}.source.init_args.size=16",
        f"{selected}.selection.low=0", f"{selected}.selection.high=8",
        *(f"--data.init_args.benchmarks.phantom_{kind}.init_args.size=4" for kind in ("text", "picture")),
        "--data.init_args.prompts_per_iteration=8", "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=2",
    )  # fmt: skip
    assert read_stored(tmp_path / "runs/demo/grpo/checkpoints/grpo.ckpt").step == 2
    results = json.loads((tmp_path / "runs/demo/grpo/results.json").read_text())
    assert {row["count"] for row in results["benchmarks"]} == {4}


def test_demo_configs_run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo itself with a few questions: train, keep a checkpoint, evaluate it."""
    monkeypatch.chdir(tmp_path)
    model = [f"--model.init_args.backbone.name={tiny_folder}", f"--data.init_args.encoder.model={tiny_folder}"]
    few = [f"--data.init_args.benchmarks.phantom_{kind}.init_args.size=4" for kind in ("text", "picture")]
    train = ["--data.init_args.train.init_args.size=40", "--trainer.max_epochs=2"]
    run("fit", "--config", "demo/sft.yaml", *model, *few, *train)
    checkpoint = tmp_path / "runs/demo/sft/checkpoints/sft.ckpt"
    run("validate", "--config", "demo/evaluate.yaml", *model, *few, "--ckpt_path", str(checkpoint))
    for folder in ("sft", "evaluation"):
        results = json.loads((tmp_path / "runs/demo" / folder / "results.json").read_text())
        assert {row["benchmark"]: row["count"] for row in results["benchmarks"]} == {
            "phantom_text": 4,
            "phantom_picture": 4,
        }
