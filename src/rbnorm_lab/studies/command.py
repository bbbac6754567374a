"""``rbnorm study``: tune, run, and draw the pages."""

import shlex
from collections.abc import Container, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from rbnorm_cli.names import study_names
from rbnorm_lab.errors import UsageError
from rbnorm_lab.folders import check_folder, make_folder
from rbnorm_lab.processes import count_processes
from rbnorm_lab.progress import terminal
from rbnorm_lab.studies.answer import answer
from rbnorm_lab.studies.arms import Settings, Study
from rbnorm_lab.studies.catalogue import CATALOGUE
from rbnorm_lab.studies.cost_page import cost_answer, write_cost_page
from rbnorm_lab.studies.costs import COST, load_costs, measure_costs
from rbnorm_lab.studies.executors import data_of, on_ray
from rbnorm_lab.studies.page import write_page
from rbnorm_lab.studies.results import collect
from rbnorm_lab.studies.runner import Runner, Shard
from rbnorm_lab.studies.timing import estimate
from rbnorm_lab.studies.tuning import Rates
from rbnorm_lab.templates import PAGE
from rbnorm_lab.train import check_run

_WAIT = (
    "The learning rates wait for the tuning runs of other shards: when these have ended, give the "
    "same command again."
)


class _Plan(NamedTuple):
    """A study, with the learning rates that are chosen so far."""

    study: Study
    rates: Rates


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
    only_estimate: bool = False,
) -> None:
    """Run what the records in ``out`` lack of some studies, then draw their pages.

    The costs are measured only where their study is named, by the first shard and in this process:
    the machines and cores that share the work of ``"all"`` are too busy to time anything on.

    Args:
        names: Names of studies, or ``"all"``.
        settings: What the studies share.
        out: Folder of the records, and of a folder for every study's page.
        command: The command line that does this.
        data_root: Where the files of data sets are; see :func:`rbnorm_lab.data.load_data`.
        shard: ``i/n`` for the i-th of n parts of the runs.
        ray: The Ray cluster to run on; see :func:`rbnorm_lab.studies.executors.on_ray`. None for
            one run after the other, here.
        run: Whether to run anything, or only draw.
        only_estimate: Say how long the runs would take that have no record, and do nothing else.

    Raises:
        UsageError: The studies cannot be run as asked.
    """
    chosen = study_names(names)
    part = Shard.parse(shard)
    check_folder(out)
    if count_processes() > 1:
        raise UsageError(
            "rbnorm study trains in one process, not under torchrun: give the runs to several "
            "processes with --shard or --ray"
        )
    measured = COST not in chosen or load_costs(out) is not None
    runner = Runner(out, data_root and data_root.resolve(), part)
    plans = _plans(chosen, settings, runner)
    if only_estimate:
        _estimate(plans, runner)
        return
    if run:
        _check(plans, runner.root)
        if ray:
            runner.executor = on_ray(ray)
        if not measured and COST in names and part.index == 1:
            measure_costs(out)
        if any(plan.study.arms for plan in plans):
            plans = _run(plans, chosen, settings, runner)
            if not runner.ran:
                terminal().print(f"Nothing left to run: {out} has every run.", soft_wrap=True)
    _draw(plans, runner, out, reproducing(command))


def _run(
    plans: list[_Plan], names: Sequence[str], settings: Settings, runner: Runner
) -> list[_Plan]:
    """Tune, then run; the plans with the rates that are chosen now."""
    runner.records.create()
    tuning = [config for plan in plans for config in plan.rates.runs()]
    runner.run(tuning, "choosing learning rates", retry=False)
    plans = _plans(names, settings, runner)
    if all(plan.rates.complete for plan in plans):
        runner.run([config for plan in plans for config in plan.study.runs()], "runs")
    else:
        terminal(stderr=True).print(_WAIT, soft_wrap=True)
    return plans


def _estimate(plans: Sequence[_Plan], runner: Runner) -> None:
    """Say how long each study takes, without the runs that those before it have, too."""
    _check(plans, runner.root)
    done = set(runner.records.load())
    for study, rates in plans:
        wanted = [run for run in (*rates.runs(), *study.runs()) if run.key not in done]
        missing = runner.shard.share(list(dict.fromkeys(wanted)))
        done |= {run.key for run in missing}
        minutes = estimate(missing, runner.root) / 60
        terminal().print(
            f"{study.name}: {len(missing)} runs are missing and take about {minutes:.1f} minutes "
            "in one process",
            soft_wrap=True,
        )


def reproducing(
    command: str,
    options: Container[str] = ("--shard", "--ray", "--out"),
    flags: Container[str] = ("--no-run",),
) -> str:
    """The command line without what no record depends on: where it ran, in parts, and wrote."""
    kept: list[str] = []
    words = iter(shlex.split(command))
    for word in words:
        name, equals, _ = word.partition("=")
        if name in options:
            if not equals:
                next(words, None)
        elif word not in flags:
            kept.append(word)
    return shlex.join(kept)


def _plans(names: Sequence[str], settings: Settings, runner: Runner) -> list[_Plan]:
    records, failures = runner.records.load(), runner.failures.load()
    plans = []
    for name in names:
        rates = Rates(settings, records, failures)
        plans.append(_Plan(CATALOGUE[name](settings, rates), rates))
    return plans


def _check(plans: Sequence[_Plan], data_root: Path | None) -> None:
    """Load the data and try a step of each study before anything is written."""
    for plan in plans:
        for config in plan.study.runs()[:1]:
            check_run(config, data_of(config, data_root), torch.device("cpu"))


def _draw(plans: Sequence[_Plan], runner: Runner, out: Path, command: str) -> None:
    """The page of every study, and its answer on standard output."""
    records, failures = runner.records.load(), runner.failures.load()
    lines: list[str] = []  # nobody may be reading: they are printed when all is written
    for study, rates in plans:
        folder = out / study.name
        make_folder(folder)
        failed = 0
        if study.name == COST:
            costs = load_costs(out)
            write_cost_page(study, costs, out, command)
            said = cost_answer(costs)
        else:
            results = collect(study, records, failures)
            write_page(results, rates.table(), folder, command)
            said, failed = answer(study, results), results.failed
        lines.append(f"{study.name}: {said.en}")
        if failed:
            lines.append(f"{failed} runs failed; the page says why.")
        lines.append(f"Report: {folder / PAGE}")
    for line in lines:
        terminal().print(line, soft_wrap=True)
