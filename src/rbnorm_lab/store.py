"""Results on disk: one line of JSON for every run, and this the only module that writes them."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
from filelock import FileLock

from rbnorm_lab.config import Config
from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.folders import make_folder
from rbnorm_lab.records import Failure, Record

SCHEMA: Final = 2
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class _Head:
    schema: int
    key: str


class Store(Generic[Entry]):
    """An append-only file of runs in a folder, whose writers may be killed at any time.

    An entry exists once its line ends in a newline. What stands after the last newline was left by
    a killed writer: loading ignores it, the next append cuts it off.

    Args:
        folder: The folder.
        name: The file's name.
        kind: The dataclass of the entries, which has a ``config``.
        schema: What its fields mean.
    """

    def __init__(self, folder: Path, name: str, kind: type[Entry], schema: int = SCHEMA) -> None:
        self.path, self.kind, self.schema = folder / name, kind, schema

    def create(self) -> None:
        """Make the folder.

        Raises:
            UsageError: The system refuses.
        """
        make_folder(self.path.parent)

    def load(self) -> dict[str, Entry]:
        """All entries by the key of their config.

        Raises:
            UsageError: The file cannot be read, or a complete line is no entry of this schema.
        """
        entries: dict[str, Entry] = {}
        for number, line in enumerate(self._lines(), start=1):
            entry = self._parse(line, f"{self.path} line {number}")
            entries.setdefault(_config(entry).key, entry)
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
            entry = (
                msgspec.json.decode(line, type=self.kind) if head.schema == self.schema else None
            )
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{place} is no record ({first_line(error)}): mend or remove that line, or choose "
                "another --out"
            ) from error
        if entry is None:
            raise UsageError(
                f"{place} has records of schema {head.schema} and this version reads schema "
                f"{self.schema}: choose another --out"
            )
        if head.key != _config(entry).key:
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
        config = _config(entry)
        fields = {**asdict(cast(Any, entry)), "config": config.to_dict()}
        values = {"schema": self.schema, "key": config.key, **fields}
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


def _config(entry: Any) -> Config:
    config: Config = entry.config
    return config


class RecordStore(Store[Record]):
    """The finished runs of a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "records.jsonl", Record)

    def check_kept(self, configs: Iterable[Config]) -> None:
        """Raise UsageError where a run that has ended has no record: somebody changed the file."""
        records = self.load()
        lost = sum(config.key not in records for config in configs)
        if lost:
            raise UsageError(
                f"{self.path} was changed while this ran, and lacks {lost} of the runs that ended: "
                "give the same command again"
            )


class FailureStore(Store[Failure]):
    """The runs of a folder that raised an error, the first error of each."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "failures.jsonl", Failure)


def select(records: dict[str, Record], configs: Iterable[Config]) -> list[Record]:
    """The records of these configs, in their order, as far as there are any."""
    return [records[config.key] for config in configs if config.key in records]
