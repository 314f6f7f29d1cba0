# SPDX-License-Identifier: Apache-2.0
"""Settings and refusals; what needs two processes is in `tests/distributed/test_two_processes.py`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cpu_strategies import HAS_DEEPSPEED
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    StrategyRegistry,
)
from torch import nn

from lightning_modules import FSDP1Strategy, FSDP2Strategy, SFTModule
from lightning_modules.strategies import check_strategy, syncs_once
from medvlt.errors import ConfigurationError
from medvlt.models.loading import Backbone
from medvlt.models.sharding import Sharding

OURS = pytest.mark.parametrize("kind", [FSDP1Strategy, FSDP2Strategy])


def parsed(tmp_path: Path, strategy: str) -> Any:
    """Reads it as the CLI reads a config, and builds what it names."""
    (tmp_path / "config.yaml").write_text(f"trainer: {{accelerator: cpu, devices: 2, strategy: {strategy}}}\n")
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_lightning_class_args(Trainer, "trainer")
    config = parser.parse_args(["--config", str(tmp_path / "config.yaml")])
    found = parser.instantiate_classes(config).trainer.strategy
    return found


@OURS
def test_settings_are_plain_yaml(kind: type, tmp_path: Path) -> None:
    options = "{gather_dtype: bfloat16, reshard_after_forward: false, timeout: '1:30:00'}"
    found = parsed(tmp_path, f"{{class_path: {kind.__name__}, init_args: {options}}}")
    assert type(found) is kind
    assert found.sharding == Sharding("bfloat16", reshard_after_forward=False)
    assert found._timeout == timedelta(minutes=90)


def test_names_for_the_command_line(tmp_path: Path) -> None:
    assert parsed(tmp_path, "fsdp2") == "fsdp2"
    assert type(Trainer(accelerator="cpu", devices=2, strategy="fsdp2", logger=False).strategy) is FSDP2Strategy
    assert StrategyRegistry["fsdp1"]["strategy"] is FSDP1Strategy


@OURS
def test_gathering_in_bfloat16_needs_autocast(kind: type) -> None:
    strategy = kind(gather_dtype="bfloat16")
    strategy.parallel_devices = [torch.device("cuda", 0)]
    strategy.cluster_environment = SimpleNamespace(local_rank=lambda: 0)
    with pytest.raises(ConfigurationError, match=r"needs trainer\.precision bf16-mixed, got '32-true'"):
        strategy.setup_environment()


def test_fsdp1_says_what_to_use_on_a_cpu() -> None:
    trainer = Trainer(accelerator="cpu", devices=1, strategy=FSDP1Strategy(), logger=False)
    with pytest.raises(ConfigurationError, match="needs GPUs; on CPUs use FSDP2Strategy"):
        trainer.strategy.setup_environment()


def test_fsdp1_cannot_add_up_offloaded_gradients() -> None:
    """torch would keep the last micro-batch's alone, and say nothing."""
    with pytest.raises(ConfigurationError, match="sync_gradients: step"):
        FSDP1Strategy(cpu_offload=True, sync_gradients="micro_batch")


def test_fsdp1_never_adds_up_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients that stay on a rank have the type of the gathered weights there: 64 micro-batches were off by 8e-3."""
    for settings in ({"sync_gradients": "step"}, {"cpu_offload": True}):
        with pytest.raises(ConfigurationError, match="adds up the gradients of micro-batches in that type"):
            FSDP1Strategy(gather_dtype="bfloat16", **settings)
    monkeypatch.setattr(FSDPStrategy, "setup", lambda self, trainer: None)
    chosen = []
    for settings in ({"gather_dtype": "bfloat16"}, {"cpu_offload": True}, {}, {"sync_gradients": "micro_batch"}):
        strategy = FSDP1Strategy(**settings)
        strategy._lightning_module = SFTModule(Backbone("unused"))
        strategy.parallel_devices = [torch.device("cpu")]
        strategy.cluster_environment = SimpleNamespace(local_rank=lambda: 0)
        strategy.setup(None)
        chosen.append(strategy._syncs_once)
    assert chosen == [False, True, True, False]


@pytest.mark.parametrize(("asked", "folder"), [(None, True), (True, True), (False, False)])
@OURS
def test_adapters_alone_are_one_file(kind: type, asked: bool | None, folder: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(kind.__base__, "setup", lambda self, trainer: None)

    def chosen(*, everything: bool) -> bool:
        strategy = kind(save_distributed_checkpoint=asked)
        module = SFTModule(Backbone("unused"))
        module.strict_loading = everything
        strategy._lightning_module = module
        strategy.parallel_devices = [torch.device("cpu")]
        strategy.cluster_environment = SimpleNamespace(local_rank=lambda: 0)
        strategy.setup(None)
        return (
            strategy._save_distributed_checkpoint if kind is FSDP2Strategy else strategy._state_dict_type == "sharded"
        )

    assert chosen(everything=True) is folder
    if asked:
        with pytest.raises(ConfigurationError, match="adapters alone cannot be resumed"):
            chosen(everything=False)
    else:
        assert chosen(everything=False) is False


def test_offloading_adds_a_backend_for_main_memory() -> None:
    """Norms of gradients in main memory cannot be added up by NCCL."""
    for offload, expected in ((True, "cpu:gloo,cuda:nccl"), (False, "nccl")):
        strategy = FSDP2Strategy(cpu_offload=offload)
        strategy.parallel_devices = [torch.device("cuda", 0)]
        strategy.cluster_environment = SimpleNamespace(local_rank=lambda: 0)
        assert strategy._get_process_group_backend() == expected


def test_what_cannot_train_a_policy_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"use FSDP2Strategy .*or FSDP1Strategy"):
        check_strategy(FSDPStrategy(), quantized=False)
    zero = {stage: [DeepSpeedStrategy(stage=stage)] if HAS_DEEPSPEED else [] for stage in (2, 3)}
    for splits in (FSDP1Strategy(), FSDP2Strategy(), ModelParallelStrategy(1, 1), *zero[3]):
        check_strategy(splits, quantized=False)
        with pytest.raises(ConfigurationError, match=r"cannot split weights that backbone\.quantization"):
            check_strategy(splits, quantized=True)
    for whole in (DDPStrategy(), *zero[2]):
        check_strategy(whole, quantized=True)


def test_what_is_not_sharded_moves_to_the_device_beside_offloaded_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SFTModule(Backbone("unused"))
    module.other, module.shards = nn.Linear(2, 2), nn.Linear(2, 2)
    monkeypatch.setattr(
        "lightning_modules.strategies.sharded_by", lambda child: "FSDP2" if child is module.shards else None
    )
    strategy = FSDP2Strategy(cpu_offload=True)
    strategy.parallel_devices = [torch.device("meta")]
    strategy.cluster_environment = SimpleNamespace(local_rank=lambda: 0)
    strategy.model = module
    strategy.model_to_device()
    assert module.other.weight.is_meta
    assert not module.shards.weight.is_meta
    assert module.device == torch.device("meta")


@pytest.mark.parametrize(
    ("asked", "device", "trained", "once"),
    [
        ("step", "cuda", 10, True),
        ("micro_batch", "cuda", 10, False),
        ("auto", "cpu", 10**9, True),
        ("auto", "cuda", 25, True),  # 100 bytes, a tenth of the memory below
        ("auto", "cuda", 26, False),
    ],
)
def test_gradients_are_added_up_where_there_is_room(
    asked: Any, device: str, trained: int, once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1000))
    module = nn.Module()
    with torch.device("meta"):
        module.trained = nn.Parameter(torch.empty(trained))
        module.frozen = nn.Parameter(torch.empty(10**9), requires_grad=False)
    assert syncs_once(asked, module, torch.device(device)) == once
    if asked == "auto" and device == "cuda":  # a smaller GPU elsewhere: all ranks must do the same
        monkeypatch.setattr("lightning_modules.strategies.gather", lambda value: [value, False])
        assert not syncs_once(asked, module, torch.device(device))
