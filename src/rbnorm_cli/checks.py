"""What is asked of a command that can be refused without importing anything heavy."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rbnorm_cli import names
from rbnorm_cli.errors import UsageError, at_least

LEAST: Final = {
    "accumulate": 1,
    "batch_size": 1,
    "checkpoint_every": 1,
    "decay_every": 1,
    "epochs": 1,
    "few_seeds": 1,
    "fine_tune": 1,
    "gradient_steps": 0,
    "image_size": 1,
    "limit": 1,
    "norm_batch": 1,
    "pretrain_epochs": 0,
    "processes": 1,
    "repeats": 1,
    "seed": 0,
    "seeds": 1,
    "steps": 1,
    "test_limit": 1,
    "tuning_epochs": 1,
    "tuning_seeds": 1,
    "workers": 0,
}
"""The least that an option may be."""
_FILES: Final = ("source", "checkpoint", "weights")
"""Options that name files that must be there."""


def check(options: argparse.Namespace) -> None:
    """Refuse names and files that there are not.

    Raises:
        UsageError: One of them is missing.
    """
    check_least(vars(options))
    given = {name: value for name, value in vars(options).items() if value}
    if "out" in given:
        check_folder(given["out"])
    _check_paths(given)
    norms = [*given.get("norms", ()), *filter(None, [given.get("norm")])]
    for norm in names.items(norms):
        names.norm_parts(norm)
    if "data" in given:
        names.data_name(given["data"])
    for model in _models(options.command, given):
        names.model_name(model)
    match options.command:
        case "compare":
            for name in names.items(options.shifted):
                if not names.corruption(name):
                    raise names.unknown("corruption", name, names.CORRUPTIONS)
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


def check_least(values: Mapping[str, Any]) -> None:
    """Raise UsageError where one of these values, if there is one, is less than it may be."""
    for name in LEAST.keys() & values.keys():
        at_least(LEAST[name], **{name: values[name]})


def check_folder(out: Path) -> None:
    """Refuse what cannot become, or is not, a folder to write to; leave none behind.

    Raises:
        UsageError: It, or the folder it would be made in, is a file or not writable.
    """
    missing = [path for path in (out, *out.parents) if not path.exists()]
    there = next(path for path in (out, *out.resolve().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"--out {out} cannot be a folder: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out} cannot be written: {there} is not writable")
    make_folder(out)
    for path in missing:
        path.rmdir()


def make_folder(out: Path) -> None:
    """Make the folder and those above it.

    Raises:
        UsageError: The system refuses.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be made ({error.strerror})") from error


def _check_diagnosis(options: argparse.Namespace) -> None:
    names.check_shifted(options.shifted)
    names.check_weights(
        options.model,
        checkpoint=options.checkpoint is not None,
        pretrained=options.pretrained,
        random=options.random,
    )
    if options.fine_tune is not None and options.shifted is None:
        raise UsageError("--fine-tune needs --shifted: a remedy is for a second data set")
    if options.classes and options.classes.lstrip("-").isdecimal():
        at_least(1, classes=int(options.classes))
    elif options.classes:
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
