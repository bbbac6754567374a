"""Append-only files of JSON, one object a line, whose writers may be killed at any time."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from rbnorm.models.files import parse_json
from rbnorm_lab.errors import UsageError


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, none if there is no file.

    What stands after the last newline was left by a killed writer and is ignored.

    Raises:
        UsageError: The file cannot be read, or a complete line is no object.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from error
    found = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            values = parse_json(line)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise UsageError(
                f"{path} line {number} is no record: mend or remove that line, or choose another "
                "--out"
            )
        found.append(values)
    return found


def append_line(
    path: Path, *values: dict[str, Any], unless: Callable[[], bool] = lambda: False
) -> None:
    """Add objects durably, all or none; what a killed writer left half written is cut off.

    Args:
        path: The file.
        values: The objects.
        unless: Asked while no other process writes; if it says so, nothing is added.

    Raises:
        UsageError: The system refuses; the file is as it was.
    """
    lines = b"".join(json.dumps(one, allow_nan=False).encode() + b"\n" for one in values)
    try:
        with FileLock(f"{path}.lock"):
            if not unless():
                _append(path, lines)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}): make room and give the same command "
            "again, all runs before this one are kept"
        ) from error


def _append(path: Path, lines: bytes) -> None:
    with path.open("a+b", buffering=0) as file:
        file.seek(0)
        end = file.truncate(file.read().rfind(b"\n") + 1)
        try:
            while lines:
                lines = lines[file.write(lines) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise
