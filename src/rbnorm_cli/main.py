"""The command line: arguments in, exit status out."""

import argparse
import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Final

from rbnorm_cli import completion
from rbnorm_cli.checks import check
from rbnorm_cli.parser import joined, make_parser
from rbnorm_lab.errors import UsageError
from rbnorm_lab.names import version

# Every distribution that the extra `lab` adds and a command cannot do without, by import name.
LAB: Final = (
    "accelerate",
    "filelock",
    "jinja2",
    "matplotlib",
    "msgspec",
    "pandas",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "statsmodels",
    "timm",
    "torchmetrics",
    "torchvision",
)
_DISTRIBUTIONS: Final = {"sklearn": "scikit-learn"}
BROKEN_PIPE: Final = 128 + 13
"""The status of a command whose reader has gone, as a shell reports SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; None for the process's own.

    Returns:
        The exit status: 0, 2 for what the user can mend, 130 when interrupted, 141 when the
        reader of what is printed has gone.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(given)
        sys.stdout.flush()
    except UsageError as error:
        return _say(str(error))
    except BrokenPipeError:
        # nothing more can be printed, also not by the interpreter when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}")
    return status


def _say(sentence: str) -> int:
    print(f"rbnorm: {sentence}.".replace("?.", "?"), file=sys.stderr)
    return 2


def _run(given: Sequence[str]) -> int:
    parser = make_parser(_extra())
    options = parser.parse_args(joined(given))
    if options.version:
        print(f"rbnorm {version()}")
        return 0
    if options.print_completion:
        print(completion.script(parser, options.print_completion))
        return 0
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        _check(options)
        # torch and the libraries of the extra take seconds to import
        module = "rbnorm_cli.convert" if options.command == "convert" else "rbnorm_lab.cli"
        command = getattr(importlib.import_module(module), options.command.replace(" ", "_"))
        command(options, shlex.join(["rbnorm", *given]))
    except KeyboardInterrupt:
        print(f"rbnorm: interrupted; {options.interrupted}.", file=sys.stderr)
        return 130
    return 0


def _missing() -> list[str]:
    return [name for name in LAB if importlib.util.find_spec(name) is None]


def install(modules: Sequence[str]) -> str:
    """The command that installs these, wherever rbnorm itself came from."""
    return " ".join(["pip install", *(_DISTRIBUTIONS.get(name, name) for name in modules)])


def _extra() -> str:
    adds = (
        "convert needs torch alone; the other commands need the extra lab, which adds timm, "
        "torchvision, accelerate and what draws figures and pages. "
    )
    missing = _missing()
    return adds + (f"What it lacks here: {install(missing)}" if missing else "It is installed.")


def _check(options: argparse.Namespace) -> None:
    """What can be refused before anything is imported that takes time."""
    missing = [] if options.command == "convert" else _missing()
    if missing:
        raise UsageError(
            f"rbnorm {options.command} needs {', '.join(missing)}: {install(missing)} adds "
            + ("it" if len(missing) == 1 else "them")
        )
    check(options)
