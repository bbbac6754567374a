"""Results on disk: one line of JSON for every run, and this the only module that writes them."""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from filelock import FileLock

from rbnorm.lab.config import RunConfig
from rbnorm.lab.errors import UsageError
from rbnorm.lab.folders import make_folder
from rbnorm.lab.records import Epoch, Failure, Record
from rbnorm.lab.shift import CONDITIONS

SCHEMA: Final = 2

Entry = TypeVar("Entry", Record, Failure)


class Store(Generic[Entry]):
    """An append-only file of runs in a folder.

    An entry exists once its line ends in a newline. What stands after the last newline was left by
    a killed writer: loading ignores it, the next append cuts it off.
    """

    def __init__(self, folder: Path, name: str, build: Callable[[dict[str, Any]], Entry]) -> None:
        self.path = folder / name
        self._build: Callable[[dict[str, Any]], Entry] = build

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
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read ({error.strerror})") from error
        entries: dict[str, Entry] = {}
        for line_number, line in enumerate(content.split(b"\n")[:-1], start=1):
            entry = self._parse(line, line_number)
            entries.setdefault(entry.config.key, entry)
        return entries

    def _parse(self, line: bytes, line_number: int) -> Entry:
        place = f"{self.path} line {line_number}"
        try:
            values = json.loads(line)
            schema = values.pop("schema")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UsageError(
                f"{place} is no record: mend or remove that line, or choose another --out"
            ) from error
        if schema != SCHEMA:
            raise UsageError(
                f"{place} has records of schema {schema!r} and this version reads schema {SCHEMA}: "
                "choose another --out"
            )
        try:
            key, config = values.pop("key"), RunConfig.from_dict(values.pop("config"))
            entry: Entry = self._build({**values, "config": config})
        except (UsageError, KeyError, AttributeError, TypeError, ValueError) as error:
            raise UsageError(
                f"{place} is no record ({error}): mend or remove that line, or choose another --out"
            ) from error
        if key != config.key:
            raise UsageError(
                f"{place} was changed after it was written: remove that line, or choose another "
                "--out"
            )
        return entry

    def append(self, entry: Entry) -> None:
        """Add an entry durably, unless the file has one of the same key.

        Raises:
            UsageError: The system refuses; the file is as it was.
        """
        config = entry.config
        values = {"schema": SCHEMA, "key": config.key, **asdict(entry), "config": config.to_dict()}
        line = json.dumps(values, allow_nan=False).encode() + b"\n"
        try:
            with FileLock(f"{self.path}.lock"):
                if entry.config.key not in self.load():
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


class RecordStore(Store[Record]):
    """The finished runs of a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "records.jsonl", _record)


class FailureStore(Store[Failure]):
    """The runs of a folder that raised an error, the first error of each."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "failures.jsonl", lambda values: Failure(**values))


def _record(values: dict[str, Any]) -> Record:
    epochs = tuple(Epoch(**epoch) for epoch in values.pop("epochs"))
    record = Record(epochs=epochs, **values)
    if not epochs or not isinstance(epochs[-1].test_accuracy, float):
        raise ValueError("its last epoch was not tested")
    for accuracies in record.shifted.values():
        if set(accuracies) != set(CONDITIONS):
            raise ValueError("its conditions are not those of this version")
    return record


def select(records: dict[str, Record], configs: Iterable[RunConfig]) -> list[Record]:
    """The records of these configs, in their order, as far as there are any."""
    return [records[config.key] for config in configs if config.key in records]
