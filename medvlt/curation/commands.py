# SPDX-License-Identifier: Apache-2.0
"""The commands behind `medvlt data`: each is a plain function, found by its name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from medvlt.errors import ConfigurationError

COMMANDS = {
    "build m23k": ("medvlt.curation.m23k:build_m23k", "the text questions, out of the published m23k rows"),
    "build pmc-vqa": ("medvlt.curation.pmc_vqa:build_pmc_vqa", "the picture questions, out of the original CSV"),
    "build benchmark": (
        "medvlt.evaluation.benchmarks.building:build_benchmark",
        "an evaluation set, out of its original source",
    ),
    "histogram": ("medvlt.curation.select:histogram", "pass counts of a ledger"),
    "merge-ledgers": ("medvlt.curation.ledger:merge_ledgers", "one ledger of several"),
    "select": ("medvlt.curation.select:select", "keep questions of a band of difficulty, in an order"),
    "quality": ("medvlt.curation.quality:quality", "mark questions that teach the wrong thing"),
    "decontaminate": ("medvlt.curation.contamination:decontaminate", "training questions that are in evaluation sets"),
}
"""Words of a command, where its function is, and what it is for."""


def help_text() -> str:
    """Returns what `medvlt data --help` prints."""
    rows = "\n".join(f"  {words:<17}{purpose}" for words, (_, purpose) in COMMANDS.items())
    return (
        "usage: medvlt data COMMAND [options]\n\n"
        "Make, filter and check data sets. Research software, not for clinical use.\n\n"
        f"commands:\n{rows}\n\n"
        "  medvlt data COMMAND --help             options of a command\n"
        "  medvlt data COMMAND --config my.yaml   options from a file\n\n"
        "Pass counts and traces of a teacher are collected by `medvlt predict`; see configs/curate and configs/distill."
    )


def find(arguments: Sequence[str]) -> tuple[str, Callable[..., None], list[str]]:
    """Returns the words of the command, its function, and the options that follow.

    Args:
        arguments: What stands behind `medvlt data`.

    Raises:
        ConfigurationError: If there is no such command.
    """
    for words, (place, _) in COMMANDS.items():
        length = len(words.split())
        if " ".join(arguments[:length]) == words:
            import_sources()
            module, _, name = place.partition(":")
            return words, getattr(importlib.import_module(module), name), list(arguments[length:])
    raise ConfigurationError(f"unknown command {' '.join(arguments[:2])!r}\n{help_text()}")


def import_sources() -> None:
    """Imports every source, so that the parser knows them by their short names."""
    for module in (
        "data.sources",
        "data.mixture",
        "data.controls",
        "data.phantom",
        "curation.selection",
        "curation.m23k",
        "curation.pmc_vqa",
        "evaluation.benchmarks",
    ):
        importlib.import_module(f"medvlt.{module}")
