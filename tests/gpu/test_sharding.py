# SPDX-License-Identifier: Apache-2.0
"""FSDP2 and FSDP1 on GPUs against one GPU: a step is the same in every precision, offloaded or not.

With one GPU the machinery of FSDP2 runs with a single rank; FSDP1 needs two, or it shards nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cpu_strategies import spawn
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.distributed.tensor import DTensor

from datamodules import SFTDataModule
from lightning_modules import FSDP1Strategy, FSDP2Strategy, SFTModule
from medvlt.data.encoder import PromptEncoder
from medvlt.data.phantom import Phantom
from medvlt.models.loading import Backbone, LoRA
from medvlt.models.optimization import Optimization
from medvlt.models.sharding import sharded_by
from medvlt.rollout.weights import hub_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

FSDP2: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("32-true", {}),
    "bf16-mixed": ("bf16-mixed", {}),
    "gathered in bfloat16": ("bf16-mixed", {"gather_dtype": "bfloat16", "sync_gradients": "micro_batch"}),
    "offloaded": ("32-true", {"cpu_offload": True}),
    "offloaded and gathered in bfloat16": ("bf16-mixed", {"gather_dtype": "bfloat16", "cpu_offload": True}),
    "not resharded": ("32-true", {"reshard_after_forward": False, "save_distributed_checkpoint": False}),
    "lora": ("bf16-mixed", {}),
}
FSDP1: dict[str, tuple[str, dict[str, Any]]] = {
    name: FSDP2[name] for name in ("float32", "bf16-mixed", "gathered in bfloat16", "offloaded", "lora")
}


class Recorder(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.places: set[str] = set()
        self.dtypes: set[torch.dtype] = set()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if pl_module.ends_step(args[2]):
            self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.places |= {parameter.device.type for parameter in parameters if parameter.numel()}
        self.dtypes |= {parameter.grad.dtype for parameter in parameters if parameter.grad is not None}
        assert pl_module.device.type == "cuda"


def train(
    folder: Path, strategy: Any, ranks: int, precision: str, name: str, checkpoint: Path | None
) -> dict[str, Any]:
    """Three steps of four samples, texts and pictures, in two micro-batches; gradients are clipped."""
    seed_everything(4)  # of the adapters
    recorder = Recorder()
    trainer = Trainer(
        accelerator="gpu", devices=ranks, strategy=strategy, precision=precision, logger=False, max_epochs=1,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, callbacks=[recorder],
        gradient_clip_val=1.0, accumulate_grad_batches=2,
    )  # fmt: skip
    backbone = Backbone(str(folder), lora=LoRA(rank=2) if name == "lora" else None)
    module = SFTModule(backbone, Optimization(learning_rate=1e-3))
    encoder = PromptEncoder(str(folder), template="plain")
    trainer.fit(module, SFTDataModule(Phantom("train", 12, seed=1), encoder, global_batch_size=4))
    if checkpoint is not None:
        trainer.save_checkpoint(checkpoint)
    policy = module.loaded_policy()
    split = sharded_by(policy)
    return {
        "losses": recorder.losses,
        "places": recorder.places,
        "dtypes": recorder.dtypes,
        "split": split,
        "weights": {key: whole(tensor).float().cpu() for key, tensor in hub_weights(policy)},
    }


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def work(rank: int, ranks: int, folder: Path, kind: str, output: Path) -> None:
    torch.cuda.set_device(rank)
    strategies = {"FSDP2": (FSDP2Strategy, FSDP2), "FSDP1": (FSDP1Strategy, FSDP1)}
    strategy, cases = strategies[kind]
    found = {}
    for name, (precision, options) in cases.items():
        found[name] = train(folder, strategy(**options), ranks, precision, name, output / f"{name}.ckpt")
        dist.destroy_process_group()  # the next one chooses its backends
    torch.save(found, output / f"{rank}.pt")


@pytest.mark.parametrize("kind", ["FSDP2", "FSDP1"])
def test_steps_equal_those_of_one_gpu(kind: str, tiny_folder: Path, tmp_path: Path) -> None:
    ranks = min(2, torch.cuda.device_count())
    if kind == "FSDP1" and ranks < 2:
        pytest.skip("FSDP1 needs two GPUs; on one it shards nothing")
    spawn(work, ranks, tiny_folder, kind, tmp_path, ranks=ranks)
    for name, (precision, options) in (FSDP2 if kind == "FSDP2" else FSDP1).items():
        expected = train(tiny_folder, "auto", 1, precision, name, None)
        tolerance = 1e-3 if precision == "32-true" else 2e-2
        for rank in range(ranks):
            found = torch.load(tmp_path / f"{rank}.pt")[name]
            assert found["split"] == kind
            assert found["losses"] == pytest.approx(expected["losses"], rel=tolerance), name
            assert found["dtypes"] == {torch.float32}, name
            assert found["places"] == {"cpu" if options.get("cpu_offload") else "cuda"}, name
            for key, weight in expected["weights"].items():  # three steps of Adam move a weight by at most 3e-3
                assert (found["weights"][key] - weight).abs().mean() < (2e-4 if precision == "32-true" else 1e-3), key
        folder = options.get("save_distributed_checkpoint") is None and name != "lora"
        assert (tmp_path / f"{name}.ckpt").is_dir() is folder
