"""Results on disk: one line of JSON for every run, and this the only module that writes them."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from filelock import FileLock

from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.folders import make_folder
from rbnorm_lab.records import Failure, Record

SCHEMA: Final = 2
_FILES: Final[dict[type, str]] = {Record: "records.jsonl", Failure: "failures.jsonl"}
Entry = TypeVar("Entry", bound=Record | Failure)


@dataclass(frozen=True)
class _Head:
    schema: int
    key: str | None = None


class Store:
    """The runs of a folder: ``records.jsonl``, and those that raised an error.

    Both files are appended to by processes that may be killed at any time. An entry exists once its
    line ends in a newline. What stands after the last newline was left by a killed writer: loading
    ignores it, the next append cuts it off.

    Args:
        folder: The folder.

    Attributes:
        records: The finished runs by the key of their config, the first of each.
        failures: The runs that raised an error, likewise.

    Raises:
        UsageError: A file cannot be read, or a complete line is no entry of this schema.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / _FILES[Record]
        self.records: dict[str, Record] = {}
        self.failures: dict[str, Failure] = {}
        self.load()

    def load(self) -> None:
        """Read what has been written, by other processes too."""
        self.records |= _read(self.path, Record)
        self.failures |= _read(self.folder / _FILES[Failure], Failure)

    def append(self, entry: Record | Failure) -> None:
        """Add a run, unless there is one of the same key.

        Raises:
            UsageError: The system refuses; the file is as it was.
        """
        kept: dict[str, Any] = self.records if isinstance(entry, Record) else self.failures
        kept.setdefault(entry.config.key, entry)
        make_folder(self.folder)
        path = self.folder / _FILES[type(entry)]
        try:
            with FileLock(f"{path}.lock"):
                if entry.config.key not in _read(path, type(entry)):
                    _append(path, _line(entry))
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written ({error.strerror}): make room and give the same "
                "command again, all runs before this one are kept"
            ) from error


def _read(path: Path, kind: type[Entry]) -> dict[str, Entry]:
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from error
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines, start=1):
        entry = _parsed(line, kind, f"{path} line {number}")
        entries.setdefault(entry.config.key, entry)
    return entries


def _parsed(line: bytes, kind: type[Entry], place: str) -> Entry:
    try:
        head = msgspec.json.decode(line, type=_Head)
        entry = msgspec.json.decode(line, type=kind) if head.schema == SCHEMA else None
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{place} is no record ({first_line(error)}): mend or remove that line, or choose "
            "another --out"
        ) from error
    if entry is None:
        raise UsageError(
            f"{place} has records of schema {head.schema} and this version reads schema "
            f"{SCHEMA}: choose another --out"
        )
    if head.key != entry.config.key:
        raise UsageError(
            f"{place} was changed after it was written, or is of a newer version: remove that "
            "line, or choose another --out"
        )
    return entry


def _line(entry: Record | Failure) -> bytes:
    config = entry.config
    values = {"schema": SCHEMA, "key": config.key, **asdict(entry), "config": config.to_dict()}
    return json.dumps(values, allow_nan=False).encode() + b"\n"


def _append(path: Path, line: bytes) -> None:
    with path.open("a+b", buffering=0) as file:
        file.seek(0)
        end = file.truncate(file.read().rfind(b"\n") + 1)
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise
