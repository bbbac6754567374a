"""The records of the study on disk."""

from pathlib import Path
from typing import Any, Final

from rbnorm_lab.domains.config import DomainFailure, DomainRecord
from rbnorm_lab.store import Store

SCHEMA: Final = 1


class DomainStore:
    """Finished and failed runs of a folder, the first of each config."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records = Store(folder, "domains.jsonl", DomainRecord, SCHEMA)
        self._failures = Store(folder, "domains-failures.jsonl", DomainFailure, SCHEMA)
        self.records, self.failures = self._records.load(), self._failures.load()

    def append(self, entry: DomainRecord | DomainFailure) -> None:
        """Keep a run.

        Raises:
            UsageError: The system refuses.
        """
        self._records.create()
        record = isinstance(entry, DomainRecord)
        store: Any = self._records if record else self._failures
        store.append(entry)
        (self.records if record else self.failures).setdefault(entry.config.key, entry)  # type: ignore[arg-type]
