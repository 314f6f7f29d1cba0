# SPDX-License-Identifier: Apache-2.0
"""LightningCLI with our classes: `fit`, `validate`, `test` and `predict`, configured by YAML.

The only module that imports Lightning and the three sibling packages.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse
import torch.distributed
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DeepSpeedStrategy

import callbacks
import datamodules
import lightning_modules
from callbacks import RankWatchdog
from lightning_modules import PolicyModule
from medvlt.curation.commands import import_sources
from medvlt.data import controls
from medvlt.distributed import lost_message, lost_rank, world
from medvlt.errors import ConfigurationError, own_words, readable
from medvlt.losses import policy
from medvlt.paths import check_sibling
from medvlt.rewards import base as rewards
from medvlt.rollout import openai, scripted, transformers, vllm
from medvlt.watchdog import Finding, end_process, noted_finding

OURS = (callbacks, datamodules, lightning_modules)
NAMED_IN_YAML = (*OURS, controls, openai, policy, rewards, scripted, transformers, vllm)
"""Modules whose classes a config may name without a module, besides all sources: a class is known once imported."""

CHECKPOINT_KEYWORDS = ("best", "last", "hpc", "registry")
"""Values of `ckpt_path` that Lightning resolves itself."""

for _package in OURS:
    check_sibling(_package)
# DeepSpeed says on standard output which device it found, also in the middle of what `--print_config` prints
logging.getLogger("DeepSpeed").addFilter(lambda record: not record.getMessage().startswith("Setting "))
import_sources()


class MedvltCLI(LightningCLI):
    """LightningCLI whose config always wins and whose mistakes are reported before anything is written."""

    def _parse_ckpt_path(self) -> None:
        """Leaves the config as it is: Lightning would replace `model:` by what a checkpoint stores, silently."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """As Lightning's, but `predict` keeps no batches: callbacks write what is wanted, and memory must not grow."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.set_defaults({"return_predictions": False})
        return parser

    def before_instantiate_classes(self) -> None:
        """Checks that the results can be written and the checkpoint is there, before a model is loaded."""
        settings = self.config[self.subcommand]
        root = settings.trainer.default_root_dir
        check_writable(Path(root) if root else Path.cwd())
        checkpoint = settings.get("ckpt_path")
        if checkpoint and checkpoint not in CHECKPOINT_KEYWORDS and not Path(checkpoint).exists():
            raise ConfigurationError(
                f"ckpt_path: there is no checkpoint {checkpoint}; give the path of a file or folder, or one of "
                f"{', '.join(CHECKPOINT_KEYWORDS)}"
            )

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """As Lightning's, but the Trainer knows the checkpoint from the beginning, so that `setup` can look at it."""
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if arguments.get("ckpt_path") and arguments["ckpt_path"] not in CHECKPOINT_KEYWORDS:
            self.trainer.ckpt_path = arguments.pop("ckpt_path")
        return arguments

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """As Lightning's, with a `RankWatchdog` before all other callbacks unless the config has one."""
        given = config.get("callbacks") or []
        given = list(given) if isinstance(given, list | tuple) else [given]
        if not any(isinstance(callback, RankWatchdog) for callback in given):
            given.insert(0, RankWatchdog())
        return super()._instantiate_trainer(config | {"callbacks": given}, callbacks)

    def instantiate_classes(self) -> None:
        """Builds Trainer, model and data; what a setting refuses is reported in its own words."""
        try:
            super().instantiate_classes()
            check_processes(self.trainer)
        except ValueError as error:
            raise ConfigurationError(own_words(error)) from error
        check_machine(self.trainer)
        if isinstance(self.model, PolicyModule):  # its checkpoints say how they came to be
            self.model.run_config = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False)


def run(args: Sequence[str]) -> None:
    """Runs a Trainer command.

    Args:
        args: Command and options, such as `["fit", "--config", "my.yaml"]`.

    A process whose job has lost another rank ends here, at once and with code 75, or 1 if that rank had an error of its
    own (`medvlt.watchdog`): to leave in the ordinary way it would destroy a process group that waits for that rank.

    Raises:
        ConfigurationError: If an option or a config file is wrong, or Lightning refuses the settings.
    """
    # Lightning's remarks on what is meant here: training without validation, and torch's own renaming
    warnings.filterwarnings("ignore", message=r"Total length of `list` across ranks is zero")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    # LightningCLI reads the command line itself, and strategies that start processes repeat it
    sys.argv = [sys.argv[0], *args]
    try:
        MedvltCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "exit_on_error": False,
                **{command: {"exit_on_error": False} for command in LightningCLI.subcommands()},
            },
        )
    except jsonargparse.ArgumentError as error:
        raise ConfigurationError(f"{readable(str(error))}\n(options: medvlt {args[0]} --help)") from error
    except MisconfigurationException as error:  # Lightning's own word for settings that contradict one another
        raise ConfigurationError(str(error)) from error
    except RuntimeError as error:
        words = lost_rank(error) if world()[0] > 1 or isinstance(error, torch.distributed.DistError) else None
        if words is None:
            raise
        found = noted_finding(error)
        end_process(
            replace(found, message=f"{found.message} ({words[:200]})") if found else Finding(lost_message(words))
        )
    if world()[0] > 1:  # a process that ends with gloo's threads alive was seen to abort, with all its work done
        torch.distributed.destroy_process_group()


def check_processes(trainer: Trainer) -> None:
    """Compares the processes that torchrun or Slurm started with what the config says; Lightning believes the config.

    Raises:
        ValueError: In Lightning's words.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is not None and environment.creates_processes_externally:
        environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)


def check_machine(trainer: Trainer) -> None:
    """Refuses a strategy that this machine cannot run, in place of Lightning's error after the model is loaded."""
    if type(trainer.strategy) is DeepSpeedStrategy and trainer.strategy.root_device.type != "cuda":
        raise ConfigurationError(
            f"trainer.strategy: {type(trainer.strategy).__name__} needs NVIDIA GPUs, and trainer.accelerator is "
            f"{trainer.strategy.root_device.type}; use FSDP2Strategy, ddp or auto"
        )


def check_writable(folder: Path) -> None:
    """Raises ConfigurationError if files cannot be written in a folder, or it cannot be made. Leaves nothing behind."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"the output folder {folder} cannot be written ({error.strerror or error}); set trainer.default_root_dir "
            "to a folder you may write to"
        ) from error
