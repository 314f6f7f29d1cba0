# SPDX-License-Identifier: Apache-2.0
"""FSDP2 and FSDP1 as Lightning strategies with settings that fit a policy."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import torch
from lightning.fabric.utilities.device_dtype_mixin import _update_properties
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import FSDPPrecision, Precision
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
    StrategyRegistry,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.optim import Optimizer

from medvlt.distributed import gather
from medvlt.errors import ConfigurationError
from medvlt.models.optimization import whole_shape
from medvlt.models.sharding import Sharding, sharded_by

logger = logging.getLogger(__name__)

SyncGradients: TypeAlias = Literal["auto", "step", "micro_batch"]

TIMEOUT = timedelta(minutes=30)
"""As Lightning's."""


class FSDP2Strategy(ModelParallelStrategy):
    """Splits weights, gradients and optimizer state over all ranks (FSDP2, `fully_shard`).

    Lightning's `ModelParallelStrategy` without its second dimension, with what it leaves to its users: gradients are
    exchanged once per optimizer step where there is room for them (`sync_gradients`; it always does so after each
    micro-batch), shards may stay in main memory, and adapters are saved alone. In a config
    `strategy: fsdp2`, or with settings `strategy: {class_path: FSDP2Strategy, init_args: {...}}`.

    Args:
        gather_dtype: See `medvlt.models.sharding.Sharding`; "bfloat16" needs precision `bf16-mixed`.
        cpu_offload: See there.
        reshard_after_forward: See there.
        sync_gradients: "step" adds up the micro-batches of an optimizer step on each rank and exchanges their sum:
            traffic of one micro-batch, for the memory of all gradients, not split (4 bytes per trained parameter).
            "micro_batch" exchanges after each: as many times the traffic, the memory of a shard. The same sums, up to
            rounding. "auto" is "step" where those gradients take at most a tenth of the GPU, and on a CPU.
        save_distributed_checkpoint: True writes a folder with a file per rank, False a file with everything, made
            whole on rank 0. None writes a folder, and a file where adapters alone are saved.
        process_group_backend: As in torch; None for the device's own, and gloo beside it for `cpu_offload`.
        timeout: Longest wait for another rank, such as "0:30:00". It must cover rank 0's reading of the weights.
    """

    def __init__(
        self,
        gather_dtype: Literal["bfloat16"] | None = None,
        cpu_offload: bool = False,
        reshard_after_forward: bool = True,
        sync_gradients: SyncGradients = "auto",
        save_distributed_checkpoint: bool | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint is not False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.sharding = Sharding(gather_dtype, cpu_offload, reshard_after_forward)
        self.sync_gradients = sync_gradients
        self._folder_asked = save_distributed_checkpoint

    def setup_environment(self) -> None:
        """Starts the process group; all ranks are one data-parallel group.

        Raises:
            ConfigurationError: If weights gathered in bfloat16 would meet activations in float32.
        """
        _check_precision(self.sharding, self.precision_plugin)
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Moves the module to its device, and chooses between folder and file."""
        self._save_distributed_checkpoint = _writes_folder(self.lightning_module, self._folder_asked)
        self._syncs_once = syncs_once(self.sync_gradients, self.lightning_module, self.root_device)
        super().setup(trainer)

    def model_to_device(self) -> None:
        """Moves all but offloaded shards: a policy is where it belongs once it is built, with its buffers."""
        if not self.sharding.cpu_offload:
            super().model_to_device()
            return
        assert self.model is not None
        for child in self.model.children():
            if sharded_by(child) is None:
                child.to(self.root_device)
        _update_properties(self.model, device=self.root_device)

    @contextmanager
    def block_backward_sync(self) -> Generator[None]:
        """Keeps gradients on their rank during a backward pass; Lightning asks for it while it accumulates."""
        assert self.model is not None
        roots = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        blocked = roots if self._syncs_once else []
        for module in blocked:
            module.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for module in blocked:
                module.set_requires_gradient_sync(True, recurse=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Collects the weights, or the adapters alone: frozen weights are not made whole to be thrown away."""
        if _saves_all_weights(self.lightning_module):
            return super().lightning_module_state_dict()
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        return get_model_state_dict(self.model, options=options)

    def _get_process_group_backend(self) -> str:
        # norms of offloaded gradients are added up between main memories, which NCCL cannot
        if self.sharding.cpu_offload and self._process_group_backend is None and self.root_device.type == "cuda":
            return "cpu:gloo,cuda:nccl"
        return str(super()._get_process_group_backend())


class FSDP1Strategy(FSDPStrategy):
    """Splits the same over all ranks with torch's older FSDP (`FullyShardedDataParallel`); needs GPUs.

    Lightning's `FSDPStrategy` cannot train a policy: it refuses to clip gradients by their norm, cannot read our
    batches, and rounds the head and the rotary frequencies to bfloat16 under `bf16-mixed`. FSDP2 is newer and needs
    less memory, and reads the weights once instead of on every rank; this one is for machines where FSDP2 fails.

    Args:
        gather_dtype: As for `FSDP2Strategy`.
        cpu_offload: As for `FSDP2Strategy`; not together with `gather_dtype`.
        reshard_after_forward: As for `FSDP2Strategy`.
        sync_gradients: As for `FSDP2Strategy`; always "step" with `cpu_offload`, and always "micro_batch" with
            `gather_dtype`: gradients that stay on their rank are added up in the type of the gathered weights.
        save_distributed_checkpoint: As for `FSDP2Strategy`.
        process_group_backend: As in torch.
        timeout: Longest wait for another rank, such as "0:30:00".
    """

    def __init__(
        self,
        gather_dtype: Literal["bfloat16"] | None = None,
        cpu_offload: bool = False,
        reshard_after_forward: bool = True,
        sync_gradients: SyncGradients = "auto",
        save_distributed_checkpoint: bool | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> None:
        if gather_dtype is not None and (cpu_offload or sync_gradients == "step"):
            raise ConfigurationError(
                f"FSDP1Strategy with gather_dtype={gather_dtype!r} adds up the gradients of micro-batches in that type "
                "unless they are exchanged after each, as sync_gradients: auto does, and that it cannot with "
                f"cpu_offload; got sync_gradients={sync_gradients!r} and cpu_offload={cpu_offload}: leave gather_dtype "
                "out, or use FSDP2Strategy"
            )
        if cpu_offload and sync_gradients == "micro_batch":
            raise ConfigurationError(
                "FSDP1Strategy with cpu_offload=True would keep only the gradient of the last micro-batch if gradients "
                "are exchanged after each; set sync_gradients: step"
            )
        super().__init__(cpu_offload=cpu_offload, process_group_backend=process_group_backend, timeout=timeout)
        self.sharding = Sharding(gather_dtype, cpu_offload, reshard_after_forward)
        self.sync_gradients = sync_gradients
        self._folder_asked = save_distributed_checkpoint

    @property
    def precision_plugin(self) -> FSDPPrecision:
        """Lightning's, with what `PolicyPrecision` changes."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        if isinstance(precision_plugin, FSDPPrecision):
            precision_plugin = PolicyPrecision(precision_plugin.precision, self)
        self._precision_plugin = precision_plugin

    def setup_environment(self) -> None:
        """Starts the process group.

        Raises:
            ConfigurationError: On a CPU, or if weights gathered in bfloat16 would meet activations in float32.
        """
        if self.root_device.type == "cpu":
            raise ConfigurationError("FSDP1Strategy needs GPUs; on CPUs use FSDP2Strategy (strategy: fsdp2)")
        _check_precision(self.sharding, self.precision_plugin)
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Chooses between folder and file for checkpoints."""
        asked = self.sync_gradients
        if self.sharding.gather_dtype is not None:
            asked = "micro_batch"
        elif self.sharding.cpu_offload:
            asked = "step"
        self._syncs_once = syncs_once(asked, self.lightning_module, self.root_device)
        folder = _writes_folder(self.lightning_module, self._folder_asked)
        self._state_dict_type = "sharded" if folder else "full"
        super().setup(trainer)

    @contextmanager
    def block_backward_sync(self) -> Generator[None]:
        """Keeps gradients on their rank during a backward pass; Lightning asks for it while it accumulates."""
        with ExitStack() as stack:
            for root in self.roots() if self._syncs_once else []:
                stack.enter_context(root.no_sync())
            yield

    def roots(self) -> list[FullyShardedDataParallel]:
        """Returns the outermost wrapped modules that are trained."""
        assert self.model is not None
        return FullyShardedDataParallel.fsdp_modules(self.model, root_only=True)


class PolicyPrecision(FSDPPrecision):
    """Lightning's precision under FSDP1, for batches that are no plain collections, and with clipping by norm.

    Args:
        precision: Of the Trainer.
        strategy: Whose modules know their norm: a rank has only parts of the gradients.
    """

    def __init__(self, precision: Any, strategy: FSDP1Strategy) -> None:
        super().__init__(precision)
        self._strategy = strategy

    def convert_input(self, data: Any) -> Any:
        """Returns the batch as it is: its numbers are float32 already."""
        return data

    def clip_grad_by_norm(self, optimizer: Optimizer, clip_val: int | float) -> None:
        """Clips by the norm over all ranks."""
        for root in self._strategy.roots():
            root.clip_grad_norm_(clip_val)


def syncs_once(asked: SyncGradients, module: nn.Module | None, device: torch.device) -> bool:
    """Returns whether ranks exchange gradients once per optimizer step, or after each micro-batch: all of them alike.

    Args:
        asked: The setting.
        module: Holds the trained parameters, whole or as shards.
        device: Holds the gradients meanwhile.
    """
    if asked != "auto" or device.type == "cpu":
        return asked != "micro_batch"
    assert module is not None
    count = sum(math.prod(whole_shape(p)) for p in module.parameters() if p.requires_grad)
    # the smallest GPU decides
    once = all(gather(bool(4 * count <= torch.cuda.get_device_properties(device).total_memory / 10)))
    logger.info(
        "gradients (%.1f GB in float32) are exchanged %s", 4e-9 * count, "once per step" if once else "per micro-batch"
    )
    return once


def check_strategy(strategy: Strategy, *, quantized: bool) -> None:
    """Refuses a strategy that cannot train a policy, before anything is loaded.

    Args:
        strategy: Of the Trainer.
        quantized: Whether base weights are stored in four bits.

    Raises:
        ConfigurationError: If it is Lightning's own FSDP1, or would split quantised weights.
    """
    if isinstance(strategy, FSDPStrategy) and not isinstance(strategy, FSDP1Strategy):
        raise ConfigurationError(
            "Lightning's FSDPStrategy cannot train a policy: it cannot clip gradients by norm or read our batches, and "
            "rounds rotary frequencies; use FSDP2Strategy (strategy: fsdp2), or FSDP1Strategy (strategy: fsdp1)"
        )
    splits = isinstance(strategy, (FSDPStrategy, ModelParallelStrategy)) or (
        isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3
    )
    if quantized and splits:
        raise ConfigurationError(
            f"{type(strategy).__name__} cannot split weights that backbone.quantization stores in four bits; use a "
            "strategy that keeps them whole on each rank (auto, ddp), or leave quantization out"
        )


def _check_precision(sharding: Sharding, plugin: Precision) -> None:
    if sharding.gather_dtype is not None and plugin.precision != "bf16-mixed":
        raise ConfigurationError(
            f"gather_dtype={sharding.gather_dtype!r} of the strategy needs trainer.precision bf16-mixed, got "
            f"{plugin.precision!r}; set it, or leave gather_dtype out"
        )


def _saves_all_weights(module: LightningModule | None) -> bool:
    """False where a checkpoint holds the adapters alone."""
    assert module is not None
    return bool(module.strict_loading)


def _writes_folder(module: LightningModule | None, asked: bool | None) -> bool:
    """Returns whether a checkpoint is a folder.

    Raises:
        ConfigurationError: If a folder is asked for where only adapters are saved: its reader wants every weight.
    """
    everything = _saves_all_weights(module)
    if asked and not everything:
        raise ConfigurationError(
            "save_distributed_checkpoint=True of the strategy writes a folder, from which adapters alone cannot be "
            "resumed; leave it out: they are written as one file"
        )
    return everything if asked is None else asked


StrategyRegistry.register("fsdp1", FSDP1Strategy, description="FSDP1 over all ranks, for the policies of medvlt")
StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 over all ranks, for the policies of medvlt")
