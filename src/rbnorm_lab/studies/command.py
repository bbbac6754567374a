"""``rbnorm study`` and ``rbnorm compare``: choose rates, run, and draw the pages."""

import shlex
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from rbnorm_lab.catalogue import maker
from rbnorm_lab.config import RunConfig
from rbnorm_lab.errors import UsageError
from rbnorm_lab.finished import nothing_left, remember
from rbnorm_lab.folders import check_folder, make_folder
from rbnorm_lab.processes import count_processes, make_accelerator
from rbnorm_lab.progress import terminal
from rbnorm_lab.store import Store
from rbnorm_lab.studies.page import write_study
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.results import Results, collect
from rbnorm_lab.studies.runner import Runner, Shard
from rbnorm_lab.studies.sentences import answer
from rbnorm_lab.studies.study import Settings, Study
from rbnorm_lab.studies.work import Here, Ray, Sources, data_of
from rbnorm_lab.templates import PAGE
from rbnorm_lab.text import bracketed, percent
from rbnorm_lab.train import check_run

_WAIT: Final = (
    "The learning rates wait for the tuning runs of other shards: when these have ended, give the "
    "same command again."
)
_ELSEWHERE: Final = ("--shard", "--ray", "--out", "--device")
_FLAGS: Final = ("--no-run", "--keep-models", "--save-models")


@dataclass(frozen=True)
class How:
    """How runs are made; no record depends on it, save for rounding.

    Attributes:
        sources: Where runs find what they need.
        shard: ``i/n`` for the i-th of n parts of the runs.
        ray: The Ray cluster to run on, or None.
        run: Whether to run anything, or only draw.
        keep: In which file a run's model is kept, if it is.
    """

    sources: Sources
    shard: str = "1/1"
    ray: str | None = None
    run: bool = True
    keep: Callable[[RunConfig], Path | None] = lambda config: None

    def executor(self) -> Here:
        """Where runs happen."""
        return Ray(self.sources, self.ray) if self.ray else Here(self.sources)


class Plans:
    """Some studies at the rates that are chosen so far.

    Args:
        names: The studies.
        settings: What their commands ask for.
        store: The runs that ended.
    """

    def __init__(self, names: Sequence[str], settings: Settings, store: Store) -> None:
        self.names, self.settings, self.store = names, settings, store
        self.rates = {name: Rates(settings, store) for name in names}
        self.studies()  # asks for the rates

    def studies(self) -> list[Study]:
        """The studies."""
        return [maker(name)(self.settings, rates) for name, rates in self.rates.items()]

    def tuning(self) -> list[RunConfig]:
        """The runs that choose rates, as far as they are known."""
        return [run for rates in self.rates.values() for run in rates.runs()]

    def runs(self) -> list[RunConfig]:
        """The other runs."""
        return [run for study in self.studies() for run in study.runs()]

    @property
    def complete(self) -> bool:
        """Whether all rates are chosen."""
        return all(rates.complete for rates in self.rates.values())


def study(names: Sequence[str], settings: Settings, out: Path, command: str, how: How) -> None:
    """Run what the records in ``out`` lack of some studies, then draw their pages.

    Args:
        names: Names of studies.
        settings: What the options ask for.
        out: Folder of the records, and of a folder for every study's page; with one study that has
            a command of its own, of its page.
        command: The command line that does this.
        how: How the runs are made.

    Raises:
        UsageError: The studies cannot be run as asked.
    """
    check_folder(out)
    shard = Shard.parse(how.shard)
    store = Store(out)
    plans, finished = Plans(names, settings, store), False
    if how.run:
        check_plans(plans, how)
        finished = run(plans, Runner(store, how.executor(), shard, how.keep))
    said = draw(plans, out, reproducing(command))
    if finished and not how.sources.images:  # which may change without the folder
        remember(out, command, said)


def check_plans(plans: Plans, how: How) -> None:
    """Load the data and try a step of each study, or of each arm that is asked for by name.

    Raises:
        UsageError: One of them cannot be trained. Nothing has been written then.
    """
    if count_processes() > 1:
        raise UsageError(
            "each run is made by one process, not under torchrun: give the runs of rbnorm study to "
            "several processes with --shard or --ray, and one run to several with rbnorm train"
        )
    make_accelerator(plans.settings.run.mixed_precision)
    runner = Runner(plans.store, Here(how.sources), keep=how.keep)
    for study in plans.studies():
        firsts = [arm.runs(study.seeds)[0] for arm in study.arms]
        for config in runner.missing(firsts) if plans.settings.norms else firsts[:1]:
            if config.target is None:
                check_run(config, data_of(config, how.sources.root), torch.device("cpu"))


def run(plans: Plans, runner: Runner) -> bool:
    """Choose rates, then run.

    Returns:
        Whether every run has a record.
    """
    runner.run(plans.tuning, "choosing learning rates", retry=False)
    plans.store.load()
    if plans.complete:
        runner.run(plans.runs, "runs")
    else:
        terminal(stderr=True).print(_WAIT, soft_wrap=True)
    if not runner.ran:
        print(nothing_left(plans.store.folder))
    return plans.complete and not runner.missing(plans.runs())


def reproducing(command: str, options: Container[str] = _ELSEWHERE) -> str:
    """The command line without what no record depends on: where it ran, in parts, and wrote."""
    kept: list[str] = []
    words = iter(shlex.split(command))
    for word in words:
        name, equals, _ = word.partition("=")
        if name in options:
            if not equals:
                next(words, None)
        elif word not in _FLAGS:
            kept.append(word)
    return shlex.join(kept)


def draw(plans: Plans, out: Path, command: str) -> str:
    """The page of every study, and its answer on standard output.

    Returns:
        What was printed.

    Raises:
        UsageError: All runs of a study failed; its page says why.
    """
    errors: list[str] = []
    console = terminal(color_system=None)
    with console.capture() as printed:  # nobody may be reading: it is shown when all is written
        for study, rates in zip(plans.studies(), plans.rates.values(), strict=True):
            folder = out if study.name == "compare" else out / study.name
            results = collect(study, plans.store)
            found = answer(results).en
            make_folder(folder)
            write_study(results, rates.table(), folder, [command])
            if study.name == "compare":
                console.print(summary(results))
            console.print(f"{study.name}: {found}", soft_wrap=True)
            if results.failed:
                console.print(f"{results.failed} runs failed; the page says why.", soft_wrap=True)
                errors += [] if results.records else [_all_failed(results)]
            console.print(f"Report: {folder / PAGE}", soft_wrap=True)
    print(printed.get(), end="")
    if errors:
        raise UsageError("; ".join(errors))
    return printed.get()


def _all_failed(results: Results) -> str:
    first = next(failure for arm in results.arms for failure in arm.failures.values())
    return f"every run of {results.study.name} failed: {first.error}"


def summary(results: Results) -> Table:
    """Every arm in a line, for a terminal: per cent right, and points more than the baseline."""
    config = results.study.arms[0].config
    title = f"{config.model} on {config.data}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    measures = results.measures()
    table.add_column("norm", overflow="fold", min_width=8)
    for measure in measures:
        table.add_column(f"{measure}, %", justify="right", no_wrap=True)
        table.add_column("minus bn, points", justify="right", no_wrap=True)
    for group, arms in results.groups().items():
        table.add_row(group)
        for place, result in enumerate(arms, start=1):
            cells = [result.arm.label]
            for measure in measures:
                found, gain = result.accuracy.get(measure), result.gain.get(measure)
                cells += [
                    percent(found.mean if found else None),
                    bracketed(gain.estimate) if gain else "",
                ]
            table.add_row(*cells, end_section=place == len(arms))
    return table
