# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from cpu_strategies import needs_deepspeed
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy

from lightning_modules.zero import SWITCH, plain_values_only, prepare_deepspeed

pytestmark = needs_deepspeed


class Code:
    """Something that runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    plain = {"stage": ZeroStageEnum.weights, "scaler": LossScaler(2.0), "weight": torch.ones(2)}
    torch.save(plain, tmp_path / "plain")
    torch.save(Code(), tmp_path / "code")
    capsys.readouterr()  # DeepSpeed tells which accelerator it sees
    with plain_values_only():
        assert torch.load(tmp_path / "plain", weights_only=False)["scaler"].cur_scale == 2.0
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "code", weights_only=False)
    assert capsys.readouterr().out == ""
    assert SWITCH not in os.environ
    torch.load(tmp_path / "code", weights_only=False)  # as its caller asks for, once this is over
    assert capsys.readouterr().out == "run\n"


def test_batches_keep_their_types_and_a_speed_can_be_reported() -> None:
    strategy = DeepSpeedStrategy(stage=2, precision_plugin=DeepSpeedPrecision("bf16-mixed"))
    weights = torch.ones(2)
    assert strategy.precision_plugin.convert_input(weights).dtype == torch.bfloat16  # Lightning's way
    prepare_deepspeed(strategy)
    load = strategy.load_checkpoint
    prepare_deepspeed(strategy)  # a second `fit` of the same Trainer
    assert strategy.load_checkpoint is load
    assert strategy.precision_plugin.convert_input(weights) is weights
    assert strategy.config["train_micro_batch_size_per_gpu"] == 1
    chosen = DeepSpeedStrategy(config={"train_micro_batch_size_per_gpu": 3})
    prepare_deepspeed(chosen)
    assert chosen.config == {"train_micro_batch_size_per_gpu": 3}
    other = DDPStrategy()
    before = dict(vars(other))
    prepare_deepspeed(other)
    assert vars(other) == before
