# SPDX-License-Identifier: Apache-2.0
"""Two processes (gloo) against one, under each strategy: the same losses and gradients, and work counted once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cpu_fsdp1 import CPUFSDP1Strategy
from cpu_strategies import spawn
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from callbacks import RolloutCallback
from datamodules import PromptDataModule, SFTDataModule
from lightning_modules import FSDP2Strategy, GRPOModule, SFTModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.models.loading import Backbone, LoRA
from medvlt.models.optimization import Optimization
from medvlt.models.sharding import sharded_by
from medvlt.rollout.scripted import ScriptedEngine
from medvlt.rollout.transformers import TransformersEngine
from medvlt.types import Completion, Sample, SamplingParams, Verdict


class Recorder(Callback):
    """What is compared: the loss of each step, and the norm of its gradients before and after clipping.

    Saves after the first of them where it is told to.
    """

    def __init__(self, save_to: Path | None = None) -> None:
        self.save_to = save_to
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.clipped: list[float] = []
        self.without_picture: list[bool] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if pl_module.ends_step(args[2]):
            self.losses.append(float(trainer.callback_metrics["train/loss"]))
            if trainer.global_step == 1 and self.save_to is not None:
                trainer.save_checkpoint(self.save_to)
        self.without_picture.append(getattr(args[1], "packed", args[1]).pixel_values is None)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.norms.append(gradient_norm(optimizer, pl_module))

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self.norms:
            self.clipped.append(gradient_norm(optimizer, pl_module))


def gradient_norm(optimizer: torch.optim.Optimizer, module: LightningModule) -> float:
    # not the module's own parameters: FSDP2 shows gathered ones between forward and backward
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        return float(norm.full_tensor())
    if sharded_by(module) == "FSDP1":  # plain tensors, each rank's a part of the parameter
        square = norm**2
        dist.all_reduce(square)
        return float(square**0.5)
    return float(norm)


@dataclass(frozen=True)
class Run:
    """A run of supervised fine-tuning: three steps, of four samples each."""

    accumulate: int = 2
    lora: LoRA | None = None
    save_to: Path | None = None
    resume_from: Path | None = None


def train(folder: Path, strategy: Any, devices: int, run: Run) -> dict[str, Any]:
    """Most micro-batches are one text or one picture; afterwards there are 8 questions of validation."""
    seed_everything(4)  # of the adapters
    recorder = Recorder(run.save_to)
    callbacks: list[Callback] = [recorder]
    benchmarks = {}
    if run == Run():
        engine = ScriptedEngine(["<answer> A </answer>", "<answer> B </answer>"])
        callbacks.append(RolloutCallback(engine, SamplingParams(n=3)))
        benchmarks = {"seven": Phantom("test", 7, modality="text"), "one": Phantom("test", 1, modality="text")}
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, logger=False, enable_progress_bar=False, max_epochs=1,
        enable_model_summary=False, enable_checkpointing=False, callbacks=callbacks,
        num_sanity_val_steps=0, gradient_clip_val=1.0, accumulate_grad_batches=run.accumulate,
    )  # fmt: skip
    module = SFTModule(
        Backbone(str(folder), lora=run.lora, gradient_checkpointing=run.lora is not None),
        Optimization(learning_rate=1e-3),
    )
    encoder = PromptEncoder(str(folder), template="plain")
    data = SFTDataModule(Phantom("train", 12, seed=1), encoder, benchmarks, global_batch_size=4)
    trainer.fit(module, data, ckpt_path=run.resume_from)
    return {
        "losses": recorder.losses,
        "norms": recorder.norms,
        "clipped": recorder.clipped,
        "without_picture": recorder.without_picture,
        "groups": [(group["weight_decay"], len(group["params"])) for group in trainer.optimizers[0].param_groups],
        "trained": {
            n: full(p) for n, p in module.named_parameters() if p.requires_grad and sharded_by(module) != "FSDP1"
        },
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")},
    }


def full(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


class Parity:
    """A reward that a random model earns half of the time."""

    def __call__(self, sample: Sample, completion: Completion, verdict: Verdict) -> float | None:
        return float(sum(completion.token_ids[:3]) % 2)


class Reading(ScriptedEngine):
    """Notes what it is sent, and at which step; gathering weights is a step of all ranks.

    Like vLLM it keeps tensors before it reads them.
    """

    def __init__(self) -> None:
        super().__init__(["a b", "c", "d e f"])
        self.sent: list[tuple[int, dict[str, float]]] = []

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        kept = list(weights)
        self.sent.append((version, {name: float(tensor.double().norm()) for name, tensor in kept}))
        super().load_weights((), version=version)


def train_grpo(folder: Path, strategy: Any, devices: int, *, live: bool) -> dict[str, Any]:
    """Two iterations of six prompts and two optimizer steps; the engine is the live policy, or it is scripted."""
    seed_everything(4)
    recorder = Recorder()
    sampling = SamplingParams(n=3, temperature=0.9, max_tokens=10)
    rollout = (
        RolloutCallback(TransformersEngine(), group_sampling=sampling, seed=1)
        if live
        else RolloutCallback(Reading(), group_sampling=sampling, seed=1, parity=None)
    )
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, logger=False, enable_progress_bar=False, max_epochs=2,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[recorder, rollout], limit_val_batches=0,
    )  # fmt: skip
    module = GRPOModule(
        Backbone(str(folder)), Optimization(learning_rate=1e-3), rewards={"parity": Parity()}, kl_coef=0.1,
        advantage_scale="batch",
    )  # fmt: skip
    data = PromptDataModule(
        Phantom("train", 20, seed=1), PromptEncoder(str(folder), template="plain"), prompts_per_iteration=6,
        updates_per_iteration=2,
    )  # fmt: skip
    trainer.fit(module, data)
    iteration = data.buffer.iteration
    assert iteration is not None
    assert module._reference is not None
    reference = module._reference.copy
    if isinstance(reference, FullyShardedDataParallel):  # its root lets go of what a forward without backward gathered
        assert reference._handle.flat_param._full_param_padded.untyped_storage().size() == 0
    return {
        "sent": getattr(rollout.engine, "sent", []),
        "losses": recorder.losses,
        "norms": recorder.norms,
        "token_ids": [c.token_ids for group in iteration.groups for c in group.group.completions],
        "cursor": data.cursor,
        "state": data.state_dict()["iteration"]["ref_logprobs"],
        "statistics": {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/") and name != "train/loss"
        },
    }


LORA = LoRA(rank=2, components=("vision", "language"))


def ddp(rank: int, folder: Path, output: Path) -> None:
    found = {
        "sft": train(folder, DDPStrategy(process_group_backend="gloo"), 2, Run()),
        "grpo": train_grpo(folder, DDPStrategy(process_group_backend="gloo"), 2, live=True),
    }
    torch.save(found, output / f"{rank}.pt")


def fsdp2(rank: int, folder: Path, output: Path) -> None:
    reductions = counted_reductions()
    found: dict[str, Any] = {}

    def run(name: str, settings: Run, **options: Any) -> None:
        before = len(reductions)
        found[name] = train(folder, FSDP2Strategy(process_group_backend="gloo", **options), 2, settings)
        found[name]["reductions"] = len(reductions) - before

    run("sft", Run())
    run("sft, each micro-batch", Run(), sync_gradients="micro_batch")
    run("sft, offloaded", Run(), cpu_offload=True, reshard_after_forward=False)
    run("lora", Run(lora=LORA, save_to=output / "lora.ckpt"))
    run("lora, resumed", Run(lora=LORA, resume_from=output / "lora.ckpt"))
    plain = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    found["grpo"] = train_grpo(folder, plain, 2, live=False)
    torch.save(found, output / f"{rank}.pt")


def fsdp1(rank: int, folder: Path, output: Path) -> None:
    reductions = counted_reductions()
    found: dict[str, Any] = {}

    def run(name: str, settings: Run, **options: Any) -> None:
        before = len(reductions)
        found[name] = train(folder, CPUFSDP1Strategy(process_group_backend="gloo", **options), 2, settings)
        found[name]["reductions"] = len(reductions) - before

    run("sft", Run(save_to=output / "sft.ckpt"))
    run("sft, each micro-batch", Run(), sync_gradients="micro_batch", reshard_after_forward=False)
    run("sft, resumed", Run(resume_from=output / "sft.ckpt"))
    run("lora", Run(lora=LORA, save_to=output / "lora.ckpt"))
    run("lora, resumed", Run(lora=LORA, resume_from=output / "lora.ckpt"))
    found["grpo"] = train_grpo(folder, CPUFSDP1Strategy(process_group_backend="gloo"), 2, live=False)
    torch.save(found, output / f"{rank}.pt")


def counted_reductions() -> list[int]:
    """Returns a list that grows with every exchange of gradients."""
    sizes: list[int] = []
    plain = dist.reduce_scatter_single

    def counting(*args: Any, **kwargs: Any) -> Any:
        sizes.append(1)
        return plain(*args, **kwargs)

    dist.reduce_scatter_single = counting
    return sizes


@pytest.fixture(scope="module")
def alone(tiny_folder: Path) -> dict[str, Any]:
    """One process with the same global batches."""
    return {
        "sft": train(tiny_folder, "auto", 1, Run()),
        "lora": train(tiny_folder, "auto", 1, Run(lora=LORA)),
        "grpo": train_grpo(tiny_folder, "auto", 1, live=False),
    }


def in_two_processes(work: Any, folder: Path, output: Path) -> list[dict[str, Any]]:
    spawn(work, folder, output)
    return [torch.load(output / f"{rank}.pt") for rank in range(2)]


def assert_same_steps(ranks: list[dict[str, Any]], name: str, expected: dict[str, Any]) -> None:
    for rank in ranks:
        found = rank[name]
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4), name
        assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4), name
        assert found["clipped"] == pytest.approx([1.0] * len(found["clipped"]), rel=1e-4), name
        assert found["groups"] == expected["groups"], name
        assert not found["metrics"] or found["metrics"] == expected["metrics"], name


def assert_ranks_differed(ranks: list[dict[str, Any]], name: str) -> None:
    """Else the test would not be about a text on one rank and a picture on the other."""
    one, other = (rank[name]["without_picture"] for rank in ranks)
    assert any(a != b for a, b in zip(one, other, strict=True))


def assert_same_iterations(ranks: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """The same prompts, completions, losses and gradients, and every rank could write the same checkpoint."""
    assert any(loss != 0 for loss in expected["losses"])
    for rank in ranks:
        found = rank["grpo"]
        assert found["token_ids"] == expected["token_ids"]
        assert found["cursor"] == expected["cursor"] == 12
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4, abs=1e-6)
        assert found["norms"] == pytest.approx(expected["norms"], rel=1e-3)
        assert found["statistics"] == pytest.approx(expected["statistics"], rel=1e-3, abs=1e-5)
        assert [version for version, _ in found["sent"]] == [version for version, _ in expected["sent"]]
        for (_, norms), (_, others) in zip(found["sent"], expected["sent"], strict=True):
            assert norms == pytest.approx(others, rel=1e-4)
        for number, values in expected["state"].items():
            torch.testing.assert_close(found["state"][number], values, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_ddp(alone: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    ranks = in_two_processes(ddp, tiny_folder, tmp_path)
    assert_ranks_differed(ranks, "sft")
    assert_same_steps(ranks, "sft", alone["sft"])
    metrics = alone["sft"]["metrics"]  # equal on both ranks, of which one has no question of the second benchmark
    assert [metrics[f"val/{name}/count"] for name in ("seven", "one")] == [21, 3]
    assert 0 < metrics["val/seven/majority"] < metrics["val/seven/pass_at_3"] < 1
    assert {"val/one/majority", "val/one/pass_at_3"} <= set(metrics)
    assert min(alone["sft"]["norms"]) > 1.5  # else nothing would be clipped
    assert_same_iterations(ranks, train_grpo(tiny_folder, "auto", 1, live=True))


@pytest.mark.slow
def test_fsdp2(alone: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    """The live policy cannot sample while it is sharded; the engine is scripted, and reads the weights it is sent."""
    ranks = in_two_processes(fsdp2, tiny_folder, tmp_path)
    for name in ("sft", "sft, each micro-batch", "sft, offloaded"):
        assert_ranks_differed(ranks, name)
        assert_same_steps(ranks, name, alone["sft"])
    assert_same_steps(ranks, "lora", alone["lora"])
    assert_same_iterations(ranks, alone["grpo"])
    steps = len(alone["sft"]["losses"])
    for rank in ranks:
        units = rank["sft"]["reductions"] // steps
        assert units == 5  # two decoder layers, two vision blocks, the rest
        assert rank["sft"]["reductions"] == steps * units
        assert rank["sft, each micro-batch"]["reductions"] == 2 * steps * units
        check_resumed(rank["lora"], rank["lora, resumed"])
    stored = torch.load(tmp_path / "lora.ckpt", weights_only=True)
    assert stored["state_dict"].keys() == alone["lora"]["trained"].keys()
    assert all("lora_" in name for name in stored["state_dict"])


@pytest.mark.slow
def test_fsdp1(alone: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    ranks = in_two_processes(fsdp1, tiny_folder, tmp_path)
    for name in ("sft", "sft, each micro-batch"):
        assert_same_steps(ranks, name, alone["sft"])
    assert_same_steps(ranks, "lora", alone["lora"])
    assert_same_iterations(ranks, alone["grpo"])
    for rank in ranks:
        assert rank["sft, each micro-batch"]["reductions"] == 2 * rank["sft"]["reductions"] > 0
        check_resumed(rank["sft"], rank["sft, resumed"])
        check_resumed(rank["lora"], rank["lora, resumed"])
    stored = torch.load(tmp_path / "lora.ckpt", weights_only=True)
    assert stored["state_dict"].keys() == alone["lora"]["trained"].keys()


def check_resumed(whole: dict[str, Any], resumed: dict[str, Any]) -> None:
    """Bit for bit."""
    assert resumed["losses"] == whole["losses"][1:]
    assert resumed["norms"] == whole["norms"][1:]
    assert whole["trained"].keys() == resumed["trained"].keys()
    for name, tensor in whole["trained"].items():
        assert torch.equal(resumed["trained"][name], tensor), name
