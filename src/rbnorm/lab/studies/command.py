"""``rbnorm study``: tune, run, and draw the pages."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from rbnorm.lab.data import canonical_name as data_name
from rbnorm.lab.errors import UsageError
from rbnorm.lab.folders import check_folder
from rbnorm.lab.models import canonical_name as model_name
from rbnorm.lab.studies.arms import Settings, Study
from rbnorm.lab.studies.catalogue import CATALOGUE
from rbnorm.lab.studies.executors import data_of, in_turn, on_ray
from rbnorm.lab.studies.runner import Runner, Shard
from rbnorm.lab.studies.tuning import Rates
from rbnorm.lab.train import count_processes

ALL = "all"


def study(
    names: Sequence[str],
    settings: Settings,
    out: Path,
    command: str,
    *,
    data_root: Path | None,
    shard: str = "1/1",
    ray: str | None = None,
    run: bool = True,
) -> None:
    """Run what the records in ``out`` lack of some studies, then draw their pages.

    Args:
        names: Names of studies, or ``"all"``.
        settings: What the studies share.
        out: Folder of the records, and of a folder for every study's page.
        command: The command line that does this.
        data_root: Where the files of data sets are; see :func:`rbnorm.lab.data.load_data`.
        shard: ``i/n`` for the i-th of n parts of the runs.
        ray: The Ray cluster to run on; see :func:`rbnorm.lab.studies.executors.on_ray`. None for
            one run after the other, here.
        run: Whether to run anything, or only draw.

    Raises:
        UsageError: The studies cannot be run as asked.
    """
    chosen = _chosen(names)
    part = Shard.parse(shard)
    settings = _canonical(settings)
    check_folder(out)
    if count_processes() > 1:
        raise UsageError(
            "rbnorm study trains in one process, not under torchrun: give the runs to several "
            "processes with --shard or --ray"
        )
    runner = Runner(out, data_root, part, on_ray(ray) if ray else in_turn)
    rates, studies = _studies(chosen, settings, runner)
    if run and rates.wanted:
        _check(studies, data_root)
        runner.records.create()
        runner.run(rates.runs(), "choosing learning rates")
        rates, studies = _studies(chosen, settings, runner)
        if rates.complete:
            runner.run([config for study in studies for config in study.runs()], "runs")
        else:
            _say(
                "The learning rates wait for the tuning runs of other shards: when these have "
                "ended, give the same command again."
            )


def _chosen(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in (*CATALOGUE, ALL):
            raise UsageError(f"unknown study {name!r}: choose from {', '.join((*CATALOGUE, ALL))}")
    return [name for name in CATALOGUE if name in names or ALL in names]


def _canonical(settings: Settings) -> Settings:
    return replace(
        settings,
        data=data_name(settings.data),
        model=model_name(settings.model),
        networks=tuple(map(model_name, settings.networks)),
    )


def _studies(names: Sequence[str], settings: Settings, runner: Runner) -> tuple[Rates, list[Study]]:
    """The studies, with the learning rates that are chosen so far."""
    rates = Rates(settings, runner.records.load(), runner.failures.load())
    return rates, [CATALOGUE[name](settings, rates) for name in names]


def _check(studies: Sequence[Study], data_root: Path | None) -> None:
    """Load the data before anything is written."""
    for config in dict.fromkeys(run for study in studies for run in study.runs()[:1]):
        data_of(config, data_root, quiet=False)


def _say(text: str) -> None:
    Console(stderr=True).print(text, soft_wrap=True)
