"""Results on disk: one line of JSON for every run, and this the only module that writes them."""

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from filelock import FileLock

import rbnorm
from rbnorm.lab.config import RunConfig
from rbnorm.lab.errors import UsageError
from rbnorm.lab.folders import make_folder

SCHEMA: Final = 1
FILE_NAME: Final = "records.jsonl"

_PIPES: Final[dict[str, Any]] = {"capture_output": True, "text": True}

Number = float | None
"""A measured number; None stands for one that is not finite, which JSON cannot say."""


def number(value: float) -> Number:
    """``value``, or None if it is not finite."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Epoch:
    """The metrics of one epoch: means over the images, accuracies between 0 and 1."""

    train_loss: Number
    train_accuracy: float
    test_loss: Number
    test_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Record:
    """One finished run.

    Attributes:
        config: What was run.
        epochs: Metrics of every epoch.
        channel_mean_std: For every normalisation layer by name, the standard deviation over
            channels of the channel means of its output on the test images.
        calibration: For every RBN layer and calibration parameter, the distribution over channels.
        diverged: Whether the last training loss was not finite.
        device: Where it ran.
        seconds: Duration of the run.
        environment: Versions, platform and commit.
        created: When it ended, in UTC.
    """

    config: RunConfig
    epochs: tuple[Epoch, ...]
    channel_mean_std: dict[str, Number]
    calibration: dict[str, dict[str, dict[str, Number]]]
    diverged: bool
    device: str
    seconds: float
    environment: dict[str, str | None]
    created: str

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last epoch."""
        return self.epochs[-1].test_accuracy


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@cache
def environment() -> dict[str, str | None]:
    """Versions, platform and threads, and the commit of this library if it is a checkout."""
    packages = ("torch", "torchvision", "timm", "accelerate", "torchmetrics")
    return {
        "rbnorm": rbnorm.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
    }


def _commit() -> str | None:
    here = Path(__file__)
    git = ("git", "-C", str(here.parent))
    try:
        # an installed copy inside some other project's repository is not tracked by it
        subprocess.run((*git, "ls-files", "--error-unmatch", here.name), check=True, **_PIPES)
        described = subprocess.run(
            (*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
            check=True,
            **_PIPES,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return str(described.stdout).strip()


class RecordStore:
    """The append-only file of records in a folder.

    A record exists once its line ends in a newline. What stands after the last newline was left by
    a killed writer: loading ignores it, the next append cuts it off.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    def create(self) -> None:
        """Make the folder.

        Raises:
            UsageError: The system refuses.
        """
        make_folder(self.path.parent)

    def load(self) -> dict[str, Record]:
        """All records by the key of their config.

        Raises:
            UsageError: The file cannot be read, or a complete line is no record of this schema.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read ({error.strerror})") from error
        records: dict[str, Record] = {}
        for line_number, line in enumerate(content.split(b"\n")[:-1], start=1):
            record = self._parse(line, line_number)
            records.setdefault(record.config.key, record)
        return records

    def _parse(self, line: bytes, line_number: int) -> Record:
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
            epochs = tuple(Epoch(**epoch) for epoch in values.pop("epochs"))
            record = Record(config=config, epochs=epochs, **values)
        except (UsageError, KeyError, AttributeError, TypeError) as error:
            raise UsageError(
                f"{place} is no record ({error}): mend or remove that line, or choose another --out"
            ) from error
        if key != config.key or not epochs:
            raise UsageError(
                f"{place} was changed after it was written: remove that line, or choose another "
                "--out"
            )
        return record

    def append(self, record: Record) -> None:
        """Add a record durably, unless the file has one of the same key."""
        values = {"schema": SCHEMA, "key": record.config.key, **asdict(record)}
        line = json.dumps(values, allow_nan=False).encode() + b"\n"
        with FileLock(f"{self.path}.lock"), self.path.open("a+b") as file:
            if record.config.key in self.load():
                return
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def select(records: dict[str, Record], configs: Iterable[RunConfig]) -> list[Record]:
    """The records of these configs, in their order, as far as there are any."""
    return [records[config.key] for config in configs if config.key in records]
