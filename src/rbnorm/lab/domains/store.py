"""The records of the study on disk."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rbnorm.lab.domains.config import DomainFailure, DomainRecord, DomainRun
from rbnorm.lab.errors import UsageError
from rbnorm.lab.folders import make_folder
from rbnorm.lab.lines import append_line, read_lines

SCHEMA: Final = 1
_NAMES: Final = {DomainRecord: "domains.jsonl", DomainFailure: "domains-failures.jsonl"}


class DomainStore:
    """Finished and failed runs of a folder, the first of each config."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, DomainRecord] = self._load(DomainRecord)
        self.failures: dict[str, DomainFailure] = self._load(DomainFailure)

    def append(self, entry: DomainRecord | DomainFailure) -> None:
        """Keep a run.

        Raises:
            UsageError: The system refuses.
        """
        make_folder(self.folder)
        key, kind = entry.config.key, type(entry)
        append_line(self.folder / _NAMES[kind], {"schema": SCHEMA, "key": key, **asdict(entry)})
        if isinstance(entry, DomainRecord):
            self.records.setdefault(key, entry)
        else:
            self.failures.setdefault(key, entry)

    def _load(self, kind: Any) -> dict[str, Any]:
        path = self.folder / _NAMES[kind]
        entries: dict[str, Any] = {}
        for number, values in enumerate(read_lines(path), start=1):
            try:
                schema, key = values.pop("schema"), values.pop("key")
                entry = kind(**{**values, "config": DomainRun.from_dict(values["config"])})
            except (UsageError, KeyError, AttributeError, TypeError) as error:
                raise UsageError(
                    f"{path} line {number} is no record ({error}): mend or remove that line, or "
                    "choose another --out"
                ) from error
            if schema != SCHEMA or key != entry.config.key:
                raise UsageError(
                    f"{path} line {number} is of another schema or was changed after it was "
                    "written: remove that line, or choose another --out"
                )
            entries.setdefault(key, entry)
        return entries
