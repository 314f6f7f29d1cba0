# SPDX-License-Identifier: Apache-2.0
"""The `medvlt` command: finds out what is asked for and calls it.

Nothing heavy is imported before it is known to be needed, so `--help` and `--version` answer at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from medvlt import __version__
from medvlt.errors import MedvltError, own_words

TRAINER_COMMANDS = {
    "fit": "train: SFT or RLVR, as the config says",
    "validate": "answer benchmarks and score the answers",
    "test": "the same; Lightning's other word for it",
    "predict": "answer questions and write down every completion",
}
FUNCTIONS = {
    "demo": "medvlt.demo:demo",
    "export": "medvlt.models.export:export",
    "report": "medvlt.evaluation.report:report",
    "regrade": "medvlt.evaluation.regrade:regrade",
    "import": "medvlt.evaluation.third_party.importing:import_outputs",
    "tiny": "medvlt.demo:tiny",
}
"""Where the function behind a command is, for those that are one call of it."""

OTHER_COMMANDS = {
    "demo": "the whole recipe on generated data with a tiny model, on a CPU, in minutes",
    "data": "make, filter and check data sets",
    "export": "write the model of a checkpoint as an ordinary model folder",
    "report": "tables, intervals and a page of one or several evaluations",
    "regrade": "grade the stored completions of an evaluation by other rules",
    "import": "turn the stored outputs of another harness into an evaluation",
    "doctor": "what is installed and usable here, and what to do about the rest",
    "tiny": "write a random tiny Qwen2.5-VL as an ordinary model folder",
}


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0 if all went well, 2 after a mistake in the input, with one message on stderr."""
    arguments = list(sys.argv[1:] if args is None else args)
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    try:
        if command in ("--version", "-V"):
            print(f"medvlt {__version__}")
        elif command in ("--help", "-h"):
            print(help_text())
        elif command in TRAINER_COMMANDS:
            _run_trainer(command, rest)
        elif command in OTHER_COMMANDS:
            _run_other(command, rest)
        else:
            _fail(f"unknown command {command!r}; expected one of {', '.join([*TRAINER_COMMANDS, *OTHER_COMMANDS])}")
    except MedvltError as error:
        _fail(str(error))
    sys.exit(0)


def help_text() -> str:
    """Returns what `medvlt --help` prints."""
    rows = "\n".join(f"  {name:<10}{text}" for name, text in (TRAINER_COMMANDS | OTHER_COMMANDS).items())
    return (
        "usage: medvlt COMMAND [options]\n\n"
        "Post-training of vision-language models that reason about medicine.\n"
        "Research software, not for clinical use.\n\n"
        f"commands:\n{rows}\n\n"
        "  medvlt COMMAND --help              options of a command\n"
        "  medvlt fit --config demo/sft.yaml  a shipped config by its name, or a file of yours\n"
        "  medvlt --version"
    )


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"medvlt: error: {message}\n")
    sys.exit(2)


def _run_trainer(command: str, rest: Sequence[str]) -> None:
    from medvlt.cli import run

    run([command, *_with_shipped_configs(rest)])


def _run_other(command: str, rest: Sequence[str]) -> None:
    if command == "doctor":
        from medvlt.doctor import doctor

        sys.exit(doctor())
    if command == "data":
        from medvlt.curation.commands import find, help_text

        if not rest or rest[0] in ("--help", "-h"):
            print(help_text())
            return
        words, function, rest = find(rest)
        _call(f"data {words}", function, rest, positional=False)
        return
    module, _, name = FUNCTIONS[command].partition(":")
    function = getattr(importlib.import_module(module), name)
    _call(command, function, rest, positional=True, several="runs" if command == "report" else None)


def _call(
    command: str,
    function: Callable[..., None],
    arguments: Sequence[str],
    *,
    positional: bool,
    several: str | None = None,
) -> None:
    """Calls a function with what the command line says; options with a default are never positional.

    Args:
        command: Its name, for messages.
        function: What to call.
        arguments: Of the command line.
        positional: Whether arguments without a default are positional; else there is `--config` as well.
        several: Argument that takes one or more words.
    """
    import jsonargparse

    parser = jsonargparse.ArgumentParser(prog=f"medvlt {command}", exit_on_error=False)
    if not positional:
        parser.add_argument("--config", action="config", help="options from a YAML file")
    if several is not None:
        parser.add_argument(several, nargs="+", type=str, help="one or more")
    parser.add_function_arguments(function, as_positional=positional, skip={several} if several else None)
    try:
        settings = parser.parse_args(list(arguments))
        settings.pop("config", None)
        called = parser.instantiate(settings)
    except (jsonargparse.ArgumentError, ValueError) as error:
        raise MedvltError(own_words(error)) from error
    function(**called)


def _with_shipped_configs(arguments: Sequence[str]) -> list[str]:
    """Replaces `--config demo/sft.yaml` by the shipped file, unless there is such a file here."""
    from medvlt.paths import resolve_config

    resolved: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if resolved and resolved[-1] in ("--config", "-c"):
            argument = str(resolve_config(argument))
        elif name in ("--config", "-c") and equals:
            argument = f"{name}={resolve_config(value)}"
        resolved.append(argument)
    return resolved


if __name__ == "__main__":
    main()
