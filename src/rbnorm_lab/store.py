"""Results on disk: one line of JSON for every run, and this the only module that writes them."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec
from filelock import FileLock

from rbnorm_lab.config import RunConfig
from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.folders import make_folder
from rbnorm_lab.records import Failure, Record

SCHEMA: Final = 2
Entry = TypeVar("Entry", bound=Record | Failure)


@dataclass(frozen=True)
class _Head:
    schema: int
    key: str | None = None


class _File(Generic[Entry]):
    """An append-only file of runs, whose writers may be killed at any time.

    An entry exists once its line ends in a newline. What stands after the last newline was left by
    a killed writer: loading ignores it, the next append cuts it off.
    """

    def __init__(self, path: Path, kind: type[Entry]) -> None:
        self.path, self.kind = path, kind

    def load(self) -> dict[str, Entry]:
        """All entries by the key of their config, the first of each."""
        entries: dict[str, Entry] = {}
        for number, line in enumerate(self._lines(), start=1):
            entry = self._parse(line, f"{self.path} line {number}")
            entries.setdefault(entry.config.key, entry)
        return entries

    def _lines(self) -> list[bytes]:
        try:
            return self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read ({error.strerror})") from error

    def _parse(self, line: bytes, place: str) -> Entry:
        try:
            head = msgspec.json.decode(line, type=_Head)
            entry = msgspec.json.decode(line, type=self.kind) if head.schema == SCHEMA else None
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

    def append(self, entry: Entry) -> None:
        """Add an entry durably, unless the file has one of the same key.

        Raises:
            UsageError: The system refuses; the file is as it was.
        """
        config = entry.config
        fields = {**asdict(entry), "config": config.to_dict()}
        values = {"schema": SCHEMA, "key": config.key, **fields}
        line = json.dumps(values, allow_nan=False).encode() + b"\n"
        try:
            with FileLock(f"{self.path}.lock"):
                if config.key not in self.load():
                    _append(self.path, line)
        except OSError as error:
            raise UsageError(
                f"{self.path} cannot be written ({error.strerror}): make room and give the same "
                "command again, all runs before this one are kept"
            ) from error


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


class Store:
    """The runs of a folder: ``records.jsonl``, and those that raised an error.

    Args:
        folder: The folder.

    Attributes:
        records: The finished runs by the key of their config.
        failures: The runs that raised an error, the first error of each, likewise.

    Raises:
        UsageError: A file cannot be read, or a complete line is no entry of this schema.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records = _File(folder / "records.jsonl", Record)
        self._failures = _File(folder / "failures.jsonl", Failure)
        self.path = self._records.path
        self.records: dict[str, Record] = {}
        self.failures: dict[str, Failure] = {}
        self.load()

    def load(self) -> None:
        """Read what has been written, by other processes too."""
        self.records |= self._records.load()
        self.failures |= self._failures.load()

    def append(self, entry: Record | Failure, *, durably: bool = True) -> None:
        """Add a run, unless there is one of the same key.

        Args:
            entry: The run.
            durably: Write it, not only remember it.

        Raises:
            UsageError: The system refuses; the file is as it was.
        """
        if isinstance(entry, Record):
            self.records.setdefault(entry.config.key, entry)
        else:
            self.failures.setdefault(entry.config.key, entry)
        if durably:
            make_folder(self.folder)
            file: _File[Any] = self._records if isinstance(entry, Record) else self._failures
            file.append(entry)

    def check_kept(self) -> None:
        """Raise UsageError where a run that has ended has no record: somebody changed the file."""
        lost = len(self.records.keys() - self._records.load().keys())
        if lost:
            raise UsageError(
                f"{self.path} was changed while this ran, and lacks {lost} of the runs that ended: "
                "give the same command again"
            )

    def of(self, configs: Iterable[RunConfig]) -> list[Record]:
        """The records of these configs, in their order, as far as there are any."""
        return [self.records[config.key] for config in configs if config.key in self.records]
