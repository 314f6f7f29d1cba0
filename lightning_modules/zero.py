# SPDX-License-Identifier: Apache-2.0
"""What Lightning's DeepSpeedStrategy needs in order to train a policy."""

from __future__ import annotations

import os
import pkgutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy

from medvlt.models.deepspeed_folder import KNOWN_CLASSES

SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Goes before the argument `weights_only` of `torch.load`."""


def prepare_deepspeed(strategy: Strategy) -> None:
    """Adapts a DeepSpeedStrategy, whichever way it was made; other strategies are left as they are.

    - Batches reach the module as the loader made them. Lightning would round their loss weights and log-probabilities
      to bfloat16 under `bf16-mixed`, and fails on batches that are frozen dataclasses.
    - DeepSpeed is told a size of micro-batches, with which it only reports speed; Lightning looks for it in a sampler
      of batches, and a packed batch has none.
    - Checkpoints are read without running code from them, unless `weights_only=False` is asked for.

    Args:
        strategy: Of the Trainer, before the model is loaded.
    """
    plugin: Any = strategy.precision_plugin
    if not isinstance(strategy, DeepSpeedStrategy) or "convert_input" in vars(plugin):
        return
    plugin.convert_input = lambda batch: batch
    # DeepSpeed calls them by their old names, and torch says so at every start of a run
    warnings.filterwarnings("ignore", r".*(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated", FutureWarning)
    assert isinstance(strategy.config, dict)
    strategy.config.setdefault("train_micro_batch_size_per_gpu", 1)
    load = strategy.load_checkpoint

    def without_code(checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        if weights_only is False:
            return load(checkpoint_path, weights_only)
        with plain_values_only():
            return load(checkpoint_path, weights_only)

    setattr(strategy, "load_checkpoint", without_code)  # noqa: B010 - mypy refuses the plain assignment


@contextmanager
def plain_values_only() -> Iterator[None]:
    """Makes `torch.load` read tensors, plain values and known classes of DeepSpeed, whatever its caller asks for."""
    known = [pkgutil.resolve_name(name) for name in KNOWN_CLASSES]
    # DeepSpeed asks for pickle in so many words, and torch has this switch for such libraries
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1"
    try:
        with torch.serialization.safe_globals(known):
            yield
    finally:
        del os.environ[SWITCH]
        os.environ.update({} if before is None else {SWITCH: before})
