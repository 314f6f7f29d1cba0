# SPDX-License-Identifier: Apache-2.0
"""LightningCLI with our classes: `fit`, `validate`, `test` and `predict`, configured by YAML.

The only module that imports Lightning and the three sibling packages.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jsonargparse
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

# imported so that their classes can be named without a module in YAML
import callbacks
import datamodules
import lightning_modules
from medvlt.errors import ConfigurationError
from medvlt.paths import check_sibling

for _package in (callbacks, datamodules, lightning_modules):
    check_sibling(_package)


class MedvltCLI(LightningCLI):
    """LightningCLI whose config always wins and whose mistakes are reported before anything is written."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Nothing is linked: a config says each value where it is used, by YAML anchors where it is the same."""

    def _parse_ckpt_path(self) -> None:
        """Leaves the config as it is: Lightning would replace `model:` by what a checkpoint stores, silently."""

    def before_instantiate_classes(self) -> None:
        """Checks that the results can be written, before a model is loaded."""
        root = self.config[self.subcommand].trainer.default_root_dir
        check_writable(Path(root) if root else Path.cwd())


def run(args: Sequence[str]) -> None:
    """Runs a Trainer command.

    Args:
        args: Command and options, such as `["fit", "--config", "my.yaml"]`.

    Raises:
        ConfigurationError: If an option or a config file is wrong.
    """
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


def readable(message: str) -> str:
    """Shortens a parser's message to what the user can act on.

    Model and data may be left out as far as the parser knows, so each complaint about them comes twice, once as "not a
    class" and once as "not nothing"; the second is dropped.
    """
    lines = [line for line in message.splitlines() if "NoneType" not in line]
    return re.sub(r"\n\s*\n", "\n", "\n".join(lines)).strip()


def check_writable(folder: Path) -> None:
    """Raises ConfigurationError if files cannot be written in a folder, which is made if needed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"the output folder {folder} cannot be written ({error.strerror or error}); set trainer.default_root_dir "
            "to a folder you may write to"
        ) from error
