"""Makes the runs that a folder lacks; a run that fails does not stop the others."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path

from rbnorm_lab.config import RunConfig
from rbnorm_lab.errors import UsageError
from rbnorm_lab.progress import Report
from rbnorm_lab.records import Failure
from rbnorm_lab.store import Store
from rbnorm_lab.studies.work import Here, Result


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


def _no_file(_: RunConfig) -> Path | None:
    return None


@dataclass
class Runner:
    """Makes runs and keeps their records.

    Attributes:
        store: What there is.
        executor: Where runs happen.
        shard: The part of the runs that this process does.
        keep: In which file a run's model is kept, if it is; a run without its file is made again.
        ran: How many runs have ended.
    """

    store: Store
    executor: Here
    shard: Shard = field(default_factory=Shard)
    keep: Callable[[RunConfig], Path | None] = _no_file
    ran: int = 0

    def missing(self, configs: Sequence[RunConfig], *, retry: bool = True) -> list[RunConfig]:
        """Those of this shard's share that have no record, in their order.

        Args:
            configs: All runs, in the same order for every shard.
            retry: Whether those that failed before are missing, too.
        """
        done = {*self.store.records, *(() if retry else self.store.failures)}
        share = self.shard.share(list(dict.fromkeys(configs)))
        return [
            config
            for config in share
            if config.key not in done or ((file := self.keep(config)) and not file.exists())
        ]

    def run(
        self, plan: Callable[[], Sequence[RunConfig]], what: str, *, retry: bool = True
    ) -> None:
        """Make runs until there is none left.

        Args:
            plan: All runs that are known to be wanted; asked again whenever a run has ended.
            what: What these runs are for, in a word or two.
            retry: Whether one that failed before is tried again.

        Raises:
            UsageError: A record cannot be written.
        """
        tried: set[str] = set()
        busy: dict[Future[Result], RunConfig] = {}
        with Report(what) as report:
            while True:
                waiting = [c for c in self.missing(plan(), retry=retry) if c.key not in tried]
                free = self.executor.slots - len(busy)
                for config in waiting[:free]:
                    tried.add(config.key)
                    self.executor.on_step = report.steps_of(config)
                    busy[self.executor.submit(config, self.keep(config))] = config
                if not busy:
                    return
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    result = self._result(busy.pop(future), future)
                    report.ended(result, len(waiting[free:]) + len(busy))

    def _result(self, config: RunConfig, future: "Future[Result]") -> Result:
        try:
            result = future.result()
        except Exception as error:  # the process that ran it is gone
            result = Failure.of(config, error)
        self.ran += 1
        self.store.append(result)
        return result
