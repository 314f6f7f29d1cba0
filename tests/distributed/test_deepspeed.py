# SPDX-License-Identifier: Apache-2.0
"""ZeRO-2 and ZeRO-3 in two processes against one: losses, norms, schedules, weights sent and saved, resumed runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_strategies import Kind, needs_deepspeed, spawn, strategy
from kill_and_resume import OddTokens, Reading
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import enable_wrap

from callbacks import RolloutCallback
from datamodules import PromptDataModule, SFTDataModule
from lightning_modules import GRPOModule, PolicyModule, SFTModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.models.building import build_policy
from medvlt.models.checkpoints import read_stored, read_weights
from medvlt.models.loading import Backbone, LoRA
from medvlt.models.optimization import Optimization
from medvlt.models.sharding import shard, sharded_by
from medvlt.rollout.weights import hub_weights
from medvlt.types import SamplingParams

ADAPTERS = LoRA(rank=2, components=("language", "vision"))


class Recorder(Callback):
    """Keeps what each optimizer step was like, and saves after one of them."""

    def __init__(self, save_after: int, checkpoint: Path) -> None:
        self.save_after, self.checkpoint = save_after, checkpoint
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.rates: list[float] = []
        self.without_pictures = 0
        self.sharded_by: str | None = None
        self.weights: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not hasattr(trainer.model, "get_global_grad_norm"):  # DeepSpeed adds gradients up after this
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.without_pictures += getattr(args[1], "packed", args[1]).pixel_values is None
        if (args[2] + 1) % trainer.accumulate_grad_batches:
            return
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        if hasattr(trainer.model, "get_global_grad_norm"):
            self.norms.append(float(trainer.model.get_global_grad_norm()))
        if trainer.global_step == self.save_after:
            trainer.save_checkpoint(self.checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, PolicyModule)
        policy = pl_module.loaded_policy()
        self.sharded_by = sharded_by(policy)
        self.weights = {name: weight.clone() for name, weight in hub_weights(policy)}
        trainer.save_checkpoint(self.checkpoint.with_name(f"{self.checkpoint.name} end"))


def fit(folder: Path, kind: Kind, case: str, output: Path, *, resume: bool = False) -> dict[str, Any]:
    """SFT of all weights, clipped; or GRPO with a KL penalty, of all weights or of adapters."""
    torch.manual_seed(0)  # of the adapters
    accumulate = 2 if case == "grpo lora" else 1
    checkpoint = output / case
    recorder = Recorder(0 if resume else 2, checkpoint)
    backbone = Backbone(str(folder), lora=ADAPTERS if case == "grpo lora" else None)
    # a large eps: where a gradient is nothing but rounding, Adam would divide it by itself and move a whole step
    optimization = Optimization(learning_rate=1e-3, schedule="cosine", warmup_ratio=0.3, weight_decay=0.1, eps=1e-4)
    encoder = PromptEncoder(str(folder), template="plain")
    callbacks: list[Callback] = [recorder]
    module: PolicyModule
    data: SFTDataModule | PromptDataModule
    if case == "sft":
        module = SFTModule(backbone, optimization)
        data = SFTDataModule(Phantom("train", 8, seed=1), encoder, global_batch_size=2)
    else:
        sampling = SamplingParams(n=3, temperature=0.9, max_tokens=10)
        engine = Reading(["a b", "c", "d e f"])
        callbacks.append(RolloutCallback(engine, group_sampling=sampling, seed=1, parity=None))
        module = GRPOModule(
            backbone, optimization, rewards={"parity": OddTokens()}, kl_coef=0.1, advantage_scale="batch",
        )  # fmt: skip
        data = PromptDataModule(Phantom("train", 16, seed=1), encoder, prompts_per_iteration=8, updates_per_iteration=2)
    trainer = Trainer(
        accelerator="cpu", devices=1 if kind == "single" else 2, strategy=strategy(kind), logger=False,
        enable_progress_bar=False, max_epochs=1 if case in ("sft", BF16) else 2, enable_model_summary=False,
        enable_checkpointing=False, callbacks=callbacks, limit_val_batches=0, gradient_clip_val=1.0,
        accumulate_grad_batches=accumulate, precision="bf16-mixed" if case == BF16 else "32-true",
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=checkpoint if resume else None)
    return {
        "losses": recorder.losses,
        "norms": recorder.norms,
        "rates": recorder.rates,
        "steps": trainer.global_step,
        "without_pictures": recorder.without_pictures,
        "sharded_by": recorder.sharded_by,
        "weights": recorder.weights,
        "decay": [group["weight_decay"] for group in trainer.optimizers[0].param_groups],
        "iteration": data.state_dict().get("iteration"),
    }


def check_fsdp1(folder: Path) -> None:
    """What FSDP1 sends of a policy with adapters that do something; its strategy trains on GPUs only."""
    torch.manual_seed(0)
    policy = build_policy(Backbone(str(folder), lora=ADAPTERS), ranks=2)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    whole = {name: weight.clone() for name, weight in hub_weights(policy)}
    with enable_wrap(wrapper_cls=FullyShardedDataParallel, device_id=torch.device("cpu"), use_orig_params=True):
        wrapped = shard(policy, None)
    assert sharded_by(wrapped) == "FSDP1"
    for _ in range(2):
        sent = {name: weight.clone() for name, weight in hub_weights(wrapped)}
        assert sent.keys() == whole.keys()
        assert all(torch.equal(sent[name], weight) for name, weight in whole.items())


CASES = ("sft", "grpo full", "grpo lora")
BF16 = "grpo bf16"
RESUMED = ("sft", "grpo lora")  # in the middle of an epoch, and at the end of an iteration


def work(rank: int, folder: Path, kind: Kind, output: Path) -> None:
    results = {case: fit(folder, kind, case, output) for case in CASES}
    bf16 = fit(folder, kind, BF16, output)
    resumed = {case: fit(folder, kind, case, output, resume=True) for case in RESUMED}
    if kind == "zero2":
        check_fsdp1(folder)
    torch.save({"results": results, "resumed": resumed, "bf16": bf16}, output / f"{rank}.pt")


def work_alone(rank: int, folder: Path, output: Path) -> None:
    torch.save({case: fit(folder, "single", case, output) for case in CASES}, output / "alone.pt")


@pytest.fixture(scope="module")
def alone(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("alone")
    spawn(work_alone, tiny_folder, output, ranks=1)  # as fresh as the two: other tests of this process leave traces
    return torch.load(output / "alone.pt")  # type: ignore[no-any-return]


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_two_processes_equal_one_and_resume_exactly(
    kind: Kind, alone: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    """All of it in one start of the processes, which costs more than the training."""
    spawn(work, tiny_folder, kind, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for case, one in alone.items():
        several = [rank["results"][case] for rank in ranks]
        # a text on one rank and a picture on the other
        assert sum(rank["without_pictures"] for rank in several) > one["without_pictures"]
        for rank in several:
            assert rank["sharded_by"] == ("DeepSpeed ZeRO-3" if kind == "zero3" else None)
            assert rank["losses"] == pytest.approx(one["losses"], rel=1e-4, abs=1e-6)
            assert rank["norms"] == pytest.approx(one["norms"], rel=1e-4)
            assert rank["rates"] == pytest.approx(one["rates"])
            assert rank["steps"] == one["steps"] == 4
            assert rank["decay"] == one["decay"]  # of matrices and vectors, which ZeRO-3 cannot tell by their shapes
            assert rank["weights"].keys() == one["weights"].keys()
            for name, weight in one["weights"].items():
                torch.testing.assert_close(rank["weights"][name], weight, rtol=0, atol=1e-5)
        assert min(one["norms"]) > 1  # all gradients are clipped
        check_saved(tmp_path / case, several[0]["weights"])
    iteration = ranks[0]["bf16"]["iteration"]
    assert iteration["old_logprobs"]
    for number, old in iteration["old_logprobs"].items():  # the first iteration: reference and policy are the same
        assert torch.equal(iteration["ref_logprobs"][number], old)
    for case in RESUMED:
        for rank in ranks:
            whole, rest = rank["results"][case], rank["resumed"][case]
            assert rest["steps"] == 4
            for name in ("losses", "norms", "rates"):
                assert rest[name] == whole[name][2:], name
            assert all(torch.equal(weight, whole["weights"][name]) for name, weight in rest["weights"].items())


def check_saved(checkpoint: Path, weights: dict[str, Tensor]) -> None:
    """The last checkpoint holds what was sent at the end, or the adapters alone; reading it runs no code."""
    stored = read_stored(checkpoint.with_name(f"{checkpoint.name} end"))
    assert (stored.kind, stored.step) == ("deepspeed", 4)
    saved = {name.removeprefix("backbone."): tensor for name, tensor in read_weights(stored).items()}
    if stored.backbone.lora is None:
        assert all(torch.equal(saved.pop(name), weight) for name, weight in weights.items())
        assert not saved
    else:
        assert len(saved) == 2 * (2 * 7 + 2 * 5)
        assert all(".lora_" in name for name in saved)
