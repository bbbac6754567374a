"""What is asked of a command that can be refused without importing anything heavy."""

import argparse
from pathlib import Path
from typing import Any, Final

from rbnorm_cli import names
from rbnorm_cli.errors import UsageError

_FILES: Final = ("source", "checkpoint", "converted", "weights")
"""Options that name files that must be there."""


def check(options: argparse.Namespace) -> None:
    """Refuse names and files that there are not.

    Raises:
        UsageError: One of them is missing.
    """
    given = {name: value for name, value in vars(options).items() if value}
    _check_paths(given)
    norms = [*given.get("norms", ()), *filter(None, [given.get("norm")])]
    for norm in names.items(norms):
        names.norm_parts(norm)
    if "data" in given:
        names.data_name(given["data"])
    for model in _models(options.command, given):
        names.model_name(model)
    match options.command:
        case "study":
            names.study_names(names.items(options.names))
        case "diagnose":
            _check_diagnosis(options)


def _check_paths(given: dict[str, Any]) -> None:
    if given.get("no_run"):
        return  # what is there is shown, without images or weights
    for name in _FILES:
        value = given.get(name, ())
        for path in value if isinstance(value, list) else filter(None, [value]):
            check_file(path)
    if "images" in given and not given["images"].is_dir():
        raise UsageError(f"--images {given['images']}: there is no such folder")


def _check_diagnosis(options: argparse.Namespace) -> None:
    names.check_shifted(options.shifted)
    names.check_weights(
        options.model,
        checkpoint=options.checkpoint is not None,
        pretrained=options.pretrained,
        random=options.random,
    )
    if options.classes and not options.classes.lstrip("-").isdecimal():
        names.class_names(Path(options.classes))


def check_file(path: Path) -> None:
    """Raise UsageError where there is no such file."""
    if not path.exists():
        raise UsageError(f"{path} cannot be read (No such file or directory)")


def _models(command: str, given: dict[str, Any]) -> list[str]:
    models = names.items(given.get("networks", ())) if command == "study" else []
    model = given.get("model")
    if model and not (command == "diagnose" and names.model_file(model)):
        models.append(model)
    return models
