"""Results on disk: one line of JSON for every run, and this the only module that writes them."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

from rbnorm_lab.config import Config
from rbnorm_lab.errors import UsageError
from rbnorm_lab.folders import make_folder
from rbnorm_lab.lines import append_line, read_lines
from rbnorm_lab.records import Failure, Record
from rbnorm_lab.typed import build

SCHEMA: Final = 2
Entry = TypeVar("Entry")


class Store(Generic[Entry]):
    """An append-only file of runs in a folder.

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
        for number, values in enumerate(read_lines(self.path), start=1):
            entry = self._parse(values, f"{self.path} line {number}")
            entries.setdefault(_config(entry).key, entry)
        return entries

    def _parse(self, values: dict[str, Any], place: str) -> Entry:
        try:
            schema, key = values.pop("schema"), values.pop("key", None)
            if schema == self.schema:
                entry = build(self.kind, values)
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"{place} is no record ({error}): mend or remove that line, or choose another --out"
            ) from error
        if schema != self.schema:
            raise UsageError(
                f"{place} has records of schema {schema!r} and this version reads schema "
                f"{self.schema}: choose another --out"
            )
        if key != _config(entry).key:
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
        config = _config(entry)
        fields = {**asdict(cast(Any, entry)), "config": config.to_dict()}
        values = {"schema": self.schema, "key": config.key, **fields}
        append_line(self.path, values, unless=lambda: config.key in self.load())


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


def select(records: Mapping[str, Record], configs: Iterable[Config]) -> list[Record]:
    """The records of these configs, in their order, as far as there are any."""
    return [records[config.key] for config in configs if config.key in records]
