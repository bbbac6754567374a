"""Shell completion, by shtab: the script that a shell reads when it starts."""

import argparse
from pathlib import Path
from typing import Any, Final

from rbnorm_lab import names
from rbnorm_lab.errors import UsageError

SHELLS: Final = ("bash", "zsh", "tcsh")
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "data": names.DATA[:-1],
    "shifted": (*names.DATA[:-1], "train", *names.CORRUPTIONS),
    "norm": names.NORMS,
    "norms": names.NORMS,
    "mixed_precision": names.MIXED_PRECISIONS,
    "names": (*names.studies(), names.ALL),
}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What a shell reads to complete the commands, their options, and names and files after them.

    Args:
        parser: The parser of all commands, not to be used afterwards.
        shell: One of :data:`SHELLS`.

    Raises:
        UsageError: There is no such shell, or shtab is not installed.
    """
    if shell not in SHELLS:
        raise names.unknown("shell", shell, SHELLS)
    try:
        import shtab  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(
            'completion needs shtab: install it with pip install "rbnorm[lab]"'
        ) from error
    _complete(parser, shtab.FILE)
    return str(shtab.complete(parser, shell))


def _complete(parser: argparse.ArgumentParser, files: Any) -> None:
    from rbnorm_lab.models import torchvision_models  # noqa: PLC0415 - takes seconds to import

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            # no shell has words with a blank
            action.choices = {n: c for n, c in action.choices.items() if " " not in n}
            listed = action._choices_actions
            action._choices_actions = [entry for entry in listed if entry.dest in action.choices]
            for command in action.choices.values():
                _complete(command, files)
        elif action.dest == "model":
            action.choices = ("cifar-resnet8", "cifar-resnet20", *torchvision_models())
        elif action.type is Path:
            action.complete = files  # type: ignore[attr-defined]
        else:
            action.choices = _CHOICES.get(action.dest, action.choices)
