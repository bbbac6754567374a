"""The names that a command takes, checked without importing what they name."""

import difflib
import importlib.util
import runpy
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

from rbnorm_lab.errors import UsageError, first_line

Number = TypeVar("Number", int, float)

NORMS: Final = ("bn", "gn", "ln", "ln2d", "in", "rbn", "rbn-center", "rbn-scale")
MIXED_PRECISIONS: Final = ("no", "fp16", "bf16")
FOLDER: Final = "imagefolder:"
DATA: Final = (
    *("digits", "fashion-mnist", "cifar10", "cifar100", "cifar10-jpeg", "camvid"),
    f"{FOLDER}PATH",
)
CORRUPTIONS: Final = (
    "noise",
    "impulse",
    "blur",
    "pixelate",
    "contrast",
    "brightness",
    "jpeg",
    "elastic",
)
SEVERITIES: Final = (1, 2, 3, 4, 5)
ALL: Final = "all"
LRASPP: Final = "lraspp-mobilenet-v2"
"""The one network for segmentation, with ImageNet weights in its backbone."""

_CENTER: Final = ("center_weight_init", "first_center_weight_init", "first_layers")
_SCALE: Final = ("preserve", "restrict", "scale_bias_init", "scale_weight_init")
NORM_OPTIONS: Final = {
    "rbn": (*_CENTER, *_SCALE, "statistic"),
    "rbn-center": (*_CENTER, "statistic"),
    "rbn-scale": (*_SCALE, "statistic"),
}


def items(values: Iterable[str]) -> list[str]:
    """A list given with commas, with spaces, or with both."""
    return [item for value in values for item in value.split(",") if item]


def numbers(what: str, values: Iterable[str], kind: Callable[[str], Number]) -> list[Number]:
    """The numbers in such a list.

    Raises:
        UsageError: One is none.
    """
    try:
        return [kind(item) for item in items(values)]
    except ValueError as error:
        whole = "whole " if kind is int else ""
        raise UsageError(f"{what} are {whole}numbers ({error})") from error


def unknown(what: str, name: str, choices: Sequence[str], close: Iterable[str] = ()) -> UsageError:
    """The error for a name that is none of the choices: what was meant, or what there is.

    Args:
        what: What the name is of.
        name: The name.
        choices: The choices, to be listed.
        close: Further names that may have been meant.
    """
    meant = difflib.get_close_matches(name, dict.fromkeys((*choices, *close)), n=3)
    hint = f"did you mean {' or '.join(meant)}?" if meant else f"choose from {', '.join(choices)}"
    return UsageError(f"unknown {what} {name!r}: {hint}")


def data_name(name: str) -> str:
    """The one spelling of a data set's name: an image folder's path becomes absolute.

    Raises:
        UsageError: There is no such data set or folder.
    """
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER)).expanduser().resolve()
        if not folder.is_dir():
            raise UsageError(f"--data {name}: there is no folder {folder}")
        return f"{FOLDER}{folder}"
    if name not in DATA:
        raise unknown("data", name, DATA)
    return name


def norm_parts(spec: str) -> tuple[str, dict[str, str]]:
    """The name and the options of a norm, ``NAME:option=value:option=value...``.

    Raises:
        UsageError: There is no such norm or option.
    """
    name, *given = spec.split(":")
    if name not in NORMS:
        raise unknown("norm", name, NORMS)
    options: dict[str, str] = {}
    for item in given:
        option, _, text = item.partition("=")
        accepted = NORM_OPTIONS.get(name, ())
        if option not in accepted:
            hint = f"choose from {', '.join(sorted(accepted))}" if accepted else "it has none"
            raise UsageError(f"unknown option {option!r} of norm {name}: {hint}")
        if option in options:
            raise UsageError(f"norm {spec!r} has {option} twice, and takes it once")
        options[option] = text
    return name, options


@cache
def studies() -> dict[str, bool]:
    """The studies of ``rbnorm study NAME``, and whether ``all`` has them, by their files' text."""
    found = {}
    for file in sorted((Path(__file__).parent / "catalogue").glob("[a-z]*.py")):
        source = file.read_text(encoding="utf-8")
        if "\nCOMMAND: " not in source:
            found[file.stem.replace("_", "-")] = "\nOWN_DATA: " not in source
    return found


def study_names(names: Sequence[str]) -> list[str]:
    """The studies asked for, in their order.

    Raises:
        UsageError: There is no such study.
    """
    every = studies()
    for name in names:
        if name not in (*every, ALL):
            raise unknown("study", name, (*every, ALL))
    return [name for name, in_all in every.items() if name in names or (in_all and ALL in names)]


def model_file(spec: str) -> Path | None:
    """The file that ``--model`` names, or None where it is a model's name.

    Raises:
        UsageError: It is a file's name, and there is no such file.
    """
    path = Path(spec)
    if path.is_file():
        return path
    if path.suffix in {".py", ".pt", ".pth", ".safetensors"}:
        raise UsageError(f"--model {spec}: there is no such file")
    return None


def corruption(name: str) -> tuple[str, int] | None:
    """The kind and severity of ``KIND``, which has severity 3, or of ``KIND:SEVERITY``.

    Returns:
        Both, or None for a name that does not begin with one of :data:`CORRUPTIONS`.

    Raises:
        UsageError: There is no such severity.
    """
    kind, colon, severity = name.partition(":")
    if kind not in CORRUPTIONS:
        return None
    if not colon:
        return kind, 3
    check_corruption(kind, int(severity) if severity.isdecimal() else severity)
    return kind, int(severity)


def check_corruption(kind: str, severity: int | str) -> None:
    """Raise UsageError for what is no corruption."""
    if kind not in CORRUPTIONS:
        raise unknown("corruption", kind, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise UsageError(
            f"unknown severity {severity!r} of {kind}: "
            f"choose from {', '.join(map(str, SEVERITIES))}"
        )


def class_names(path: Path) -> list[str]:
    """Names of a model's outputs: one a line, as the folders of the classes are called.

    Raises:
        UsageError: There is no such file, or it has no lines or one twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UsageError(f"--classes {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--classes {path} cannot be read ({first_line(error)})") from error
    found = [line for line in lines if line]
    if not found or len(set(found)) < len(found):
        raise UsageError(f"--classes {path} must hold a name a line, each once")
    return found


def version() -> str:
    """The library's version, read without importing torch."""
    library = importlib.util.find_spec("rbnorm")
    assert library is not None
    assert library.submodule_search_locations
    file = Path(library.submodule_search_locations[0]) / "_version.py"
    return str(runpy.run_path(str(file))["__version__"])
