"""Runs what the records of a folder lack; a run that fails does not stop the others."""

import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rbnorm.lab.config import RunConfig
from rbnorm.lab.data import ImageData, load_data
from rbnorm.lab.errors import UsageError, first_line
from rbnorm.lab.models import needs_rgb
from rbnorm.lab.records import Failure, FailureStore, Record, RecordStore, environment, now
from rbnorm.lab.train import steps_of, train_run


@dataclass(frozen=True)
class Shard:
    """Every ``of``-th run, from the ``index``-th on, counted from 1."""

    index: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """A shard written as ``i/n``.

        Raises:
            UsageError: It is none, or ``i`` is not one of 1 to ``n``.
        """
        parts = text.split("/")
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
            raise UsageError(f"--shard takes i/n such as 1/4, not {text!r}")
        index, of = map(int, parts)
        if not 1 <= index <= of:
            raise UsageError(f"--shard i/n takes an i from 1 to n, not {text!r}")
        return cls(index, of)

    def share(self, configs: Sequence[RunConfig]) -> list[RunConfig]:
        """The runs of this shard; those of all shards together are all runs, each once."""
        return list(configs[self.index - 1 :: self.of])


def data_of(config: RunConfig, root: Path | None, *, quiet: bool = True) -> ImageData:
    """The data of a run, which runs of the same data share.

    Raises:
        UsageError: The data is missing or broken.
    """
    rgb = needs_rgb(config.model)
    return _data(config.data, root, rgb, config.limit, config.image_size, config.held_out, quiet)


@lru_cache(maxsize=4)
def _data(
    name: str,
    root: Path | None,
    rgb: bool,
    limit: int | None,
    image_size: int | None,
    held_out: bool,
    quiet: bool,
) -> ImageData:
    return load_data(
        name, root, rgb=rgb, limit=limit, image_size=image_size, held_out=held_out, quiet=quiet
    )


def attempt(
    config: RunConfig, root: Path | None, progress: Progress | None = None
) -> Record | Failure:
    """One run, or the error it raised."""
    try:
        data = data_of(config, root)
        if progress is None:
            return train_run(config, data)
        name = f"{config.norm}, seed {config.seed}"
        task = progress.add_task(name, total=steps_of(config, data))
        try:
            return train_run(config, data, lambda: progress.advance(task))
        finally:
            progress.remove_task(task)
    except Exception as error:  # whatever it is, the other runs can go on
        return Failure(
            config,
            f"{type(error).__name__}: {first_line(error)}",
            traceback.format_exc(),
            environment(),
            now(),
        )


class Runner:
    """Runs configs and keeps their records.

    Args:
        out: Folder of the records.
        root: Folder of the files of data sets.
        shard: The part of the runs that this process does.
    """

    def __init__(self, out: Path, root: Path | None, shard: Shard) -> None:
        self.records, self.failures = RecordStore(out), FailureStore(out)
        self.root, self.shard = root, shard

    def run(self, configs: Iterable[RunConfig], what: str) -> None:
        """Run those that have no record yet; one that failed before is tried again.

        Raises:
            UsageError: A record cannot be written.
        """
        share = self.shard.share(list(dict.fromkeys(configs)))
        done = self.records.load()
        missing = [config for config in share if config.key not in done]
        with _progress() as progress:
            task = progress.add_task(what, total=len(share), completed=len(share) - len(missing))
            for config in missing:
                self._keep(attempt(config, self.root, progress))
                progress.advance(task)

    def _keep(self, result: Record | Failure) -> None:
        if isinstance(result, Record):
            self.records.append(result)
        else:
            self.failures.append(result)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
