"""Runs what the records of a folder lack; a run that fails does not stop the others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbnorm_lab.config import RunConfig
from rbnorm_lab.errors import UsageError
from rbnorm_lab.progress import progress_of_runs
from rbnorm_lab.records import Record
from rbnorm_lab.store import FailureStore, RecordStore
from rbnorm_lab.studies.executors import Executor, in_turn


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


class Runner:
    """Runs configs and keeps their records.

    Args:
        out: Folder of the records.
        root: Folder of the files of data sets.
        shard: The part of the runs that this process does.

    Attributes:
        executor: Where they happen; in this process unless it is set.
        ran: How many it has made.
    """

    def __init__(self, out: Path, root: Path | None, shard: Shard) -> None:
        self.records, self.failures = RecordStore(out), FailureStore(out)
        self.root, self.shard = root, shard
        self.executor: Executor = in_turn
        self.ran = 0

    def run(self, configs: Iterable[RunConfig], what: str, *, retry: bool = True) -> None:
        """Run those that have no record yet.

        Args:
            configs: All runs, in the same order for every shard.
            what: What the progress bar says.
            retry: Whether one that failed before is tried again.

        Raises:
            UsageError: A record cannot be written.
        """
        share = self.shard.share(list(dict.fromkeys(configs)))
        done = {*self.records.load(), *(() if retry else self.failures.load())}
        missing = [config for config in share if config.key not in done]
        self.ran += len(missing)
        with progress_of_runs(32, disable=not missing) as progress:
            task = progress.add_task(what, total=len(share), completed=len(share) - len(missing))
            for result in self.executor(missing, self.root, progress):
                if isinstance(result, Record):
                    self.records.append(result)
                else:
                    self.failures.append(result)
                progress.advance(task)
        ended = {config.key for config in missing} - self.failures.load().keys()
        self.records.check_kept(config for config in missing if config.key in ended)
