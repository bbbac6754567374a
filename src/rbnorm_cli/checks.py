"""What is asked of a command that can be refused without importing anything heavy."""

import argparse
from pathlib import Path
from typing import Any, Final

from rbnorm_lab import names
from rbnorm_lab.errors import UsageError, at_least, check_least
from rbnorm_lab.folders import check_folder

_FILES: Final = ("source", "checkpoint", "weights")
"""Options that name files that must be there."""


def check(options: argparse.Namespace) -> None:
    """Refuse what there is not; models' names are left to the libraries that have them.

    Raises:
        UsageError: A value is out of range, there is nothing of a name, or no such file or folder.
    """
    check_least(vars(options))
    given = {name: value for name, value in vars(options).items() if value}
    if "out" in given:
        check_folder(given["out"])
    if not given.get("no_run"):  # else what is there is shown, without images or weights
        _check_paths(given)
    for norm in names.items([*given.get("norms", ()), given.get("norm", "")]):
        names.norm_parts(norm)
    if "data" in given:
        names.data_name(given["data"])
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
    for path in (given[name] for name in _FILES if name in given):
        if not path.exists():
            raise UsageError(f"{path} cannot be read (No such file or directory)")
    if "images" in given and not given["images"].is_dir():
        raise UsageError(f"--images {given['images']}: there is no such folder")


def _check_diagnosis(options: argparse.Namespace) -> None:
    given = (options.checkpoint is not None) + options.pretrained + options.random
    if given > 1:
        raise UsageError("give one of --checkpoint, --pretrained and --random")
    if not given and names.model_file(options.model) is None:
        raise UsageError(
            f"{options.model} has no weights yet, and a diagnosis of random ones says nothing: "
            "give --checkpoint FILE or --pretrained, or --random if you mean it"
        )
    shifted = options.shifted
    if options.fine_tune is not None and shifted is None:
        raise UsageError("--fine-tune needs --shifted: a remedy is for a second data set")
    if shifted is not None and shifted != "train" and not names.corruption(shifted):
        if not shifted.startswith(names.FOLDER) and shifted not in names.DATA:
            choices = (*names.DATA, "train", *names.CORRUPTIONS)
            raise names.unknown("data of --shifted", shifted, choices)
        names.data_name(shifted)
    if options.classes and options.classes.lstrip("-").isdecimal():
        at_least(1, classes=int(options.classes))
    elif options.classes:
        names.class_names(Path(options.classes))
