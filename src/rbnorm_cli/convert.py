"""``rbnorm convert``: a checkpoint in, one that rbnorm's layers load out; needs torch alone."""

import argparse
from pathlib import Path

from rbnorm_lab.errors import UsageError


def convert(options: argparse.Namespace, command: str) -> None:
    """``rbnorm convert``."""
    print(convert_file(options.source, options.target))


def convert_file(source: Path, target: Path) -> str:
    """Turn a checkpoint of BatchNorm, or of the official RBN, into one that rbnorm's layers load.

    Args:
        source: What :func:`rbnorm.models.files.read_state` reads.
        target: The file to write, in the format that its suffix names.

    Returns:
        What was done, in words; see :func:`rbnorm.models.checkpoint.convert_state`.

    Raises:
        UsageError: A file cannot be read or written, or is not what it should be. Nothing has been
            written then.
    """
    from rbnorm.models import checkpoint, files  # noqa: PLC0415 - torch takes seconds to import

    if target.suffix not in files.SUFFIXES:
        raise UsageError(
            f"{target} must end in {', '.join(files.SUFFIXES)}, which chooses its format"
        )
    if target.is_dir() or not target.parent.is_dir():
        raise UsageError(f"{target} must be a file in a folder that exists")
    try:
        state = files.read_state(source)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if target.exists() and target.samefile(source):
        raise UsageError(f"{target} must be another file than the one to convert")
    try:
        converted, done = checkpoint.convert_state(state)
        content = files.packed(converted, target.suffix)
    except ValueError as error:
        raise UsageError(f"{source} {error}") from error
    try:
        files.replace(target, content)
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({error.strerror})") from error
    return f"{target}: {done}"
