"""The folder that a command writes to: refused before the work if it cannot be one, made after."""

import contextlib
import os
from pathlib import Path

from rbnorm_lab.errors import UsageError


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
    with contextlib.suppress(OSError):  # of several processes another may be as far
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
