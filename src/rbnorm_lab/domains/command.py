"""``rbnorm study domains``: choose rates, run, and draw the page."""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from rbnorm_lab.devices import device_of
from rbnorm_lab.domains.config import DomainFailure, DomainRecord, DomainRun
from rbnorm_lab.domains.images import DomainImages, load_domains
from rbnorm_lab.domains.plan import BN, RBN, DomainSettings, Plan
from rbnorm_lab.domains.pool import Pool, Work
from rbnorm_lab.domains.store import DomainStore
from rbnorm_lab.domains.timing import estimate
from rbnorm_lab.domains.training import Weights
from rbnorm_lab.errors import UsageError, at_least, positive
from rbnorm_lab.folders import check_folder

_USABLE: Final = 0.9  # of the time there is: estimates err


@dataclass(frozen=True)
class Limits:
    """How the runs are made; no record depends on it, save for rounding.

    Attributes:
        device: Name of the device.
        processes: How many runs are made side by side.
        minutes: Stop so many minutes after the start; None for when all is done.
        cut: Take fewer epochs where all would not fit into these minutes.
        estimate: Say how long it would take, and run nothing.
        keep_models: Whether BN's networks of seed 0 are kept beside the records.
    """

    device: str
    processes: int
    minutes: float | None
    cut: bool
    estimate: bool
    keep_models: bool

    def __post_init__(self) -> None:
        at_least(1, processes=self.processes)
        positive(minutes=self.minutes)
        if self.cut and self.minutes is None:
            raise UsageError("--cut needs --minutes, into which the epochs are to fit")
        device_of(self.device)


def domains(
    folder: Path,
    weights: Path | None,
    settings: DomainSettings,
    out: Path,
    limits: Limits,
    start: float,
) -> None:
    """Run what the records in ``out`` lack.

    Args:
        folder: The images as ``FOLDER/DOMAIN/CLASS/IMAGE``.
        weights: File of the pretrained weights; None for torchvision's own.
        settings: What all runs share; targets that are not named are all domains.
        out: Folder of the records.
        limits: How the runs are made.
        start: When the command was started, by ``time.monotonic``.

    Raises:
        UsageError: The study cannot be run as asked.
    """
    check_folder(out)
    store = DomainStore(out)
    images = load_domains(folder, settings.shared.image_size)
    settings = _completed(settings, images)
    _check_digests(store, images)
    Weights(settings.shared.model, weights)  # refused here, before processes are started
    deadline = start + 60 * limits.minutes if limits.minutes else None
    threads = max(1, torch.get_num_threads() // limits.processes)
    work = Work(images.share(), settings.shared.model, weights, limits.device, threads)
    with Pool(work, limits.processes) as pool:
        if limits.cut or limits.estimate:
            settings = _fitted(settings, store.records, images, pool, limits, deadline)
        if not limits.estimate:
            _run(pool, settings, store, deadline, keep_models=limits.keep_models)


def _completed(settings: DomainSettings, images: DomainImages) -> DomainSettings:
    targets = settings.targets or images.domains
    for name in targets:
        if name not in images.domains:
            raise UsageError(f"unknown domain {name!r}: choose from {', '.join(images.domains)}")
    return replace(settings, targets=targets)


def _check_digests(store: DomainStore, images: DomainImages) -> None:
    for record in store.records.values():
        if record.digests["images"] != images.digest:
            raise UsageError(
                f"the records in {store.folder} are of other images than those of {images.name} "
                "now: choose another --out"
            )


def _fitted(
    settings: DomainSettings,
    records: Mapping[str, DomainRecord],
    images: DomainImages,
    pool: Pool,
    limits: Limits,
    deadline: float | None,
) -> DomainSettings:
    """The settings with as many epochs as fit, if they are to be cut, after saying what fits."""
    timed = [settings.run(arm, settings.targets[0], 0, settings.rates[0], 1.0) for arm in (BN, RBN)]
    measured = pool.seconds(timed)
    left = math.inf if deadline is None else deadline - time.monotonic()
    for epochs in range(settings.shared.epochs, 0, -1):
        settings = replace(settings, shared=replace(settings.shared, epochs=epochs))
        plan = Plan(settings, records)
        seconds = estimate(plan, images, measured, limits.processes)
        say(
            f"{len(plan.missing())} runs of {epochs} epochs take about {seconds / 60:.1f} minutes "
            f"in {limits.processes} processes"
        )
        if not limits.cut or seconds <= _USABLE * left or epochs == 1:
            break
    return settings


def _run(
    pool: Pool,
    settings: DomainSettings,
    store: DomainStore,
    deadline: float | None,
    keep_models: bool,
) -> None:
    empty = Plan(settings, {})
    total = len(empty.total())
    tried = set[str]()

    def plan() -> list[DomainRun]:
        return Plan(settings, store.records, store.failures).ready()

    def ready() -> list[DomainRun]:
        return [run for run in plan() if run.key not in store.records and run.key not in tried]

    def keep_as(run: DomainRun) -> Path | None:
        wanted = (run.norm, run.frozen, run.seed, run.tuning) == (BN.norm, BN.frozen, 0, False)
        own = Plan(settings, store.records, store.failures).rates(BN, run.target)
        if keep_models and wanted and own == (run.lr, run.calibration_rate):
            return store.folder / f"bn-{run.target}-seed0.safetensors"
        return None

    def keep(result: DomainRecord | DomainFailure) -> None:
        store.append(result)
        tried.add(result.config.key)
        done = sum(run.key in store.records for run in plan())
        say(f"{done} of {total}: {_line(result)}")

    complete = pool.run(ready, empty.has_remedies, keep_as, keep, deadline)
    if not complete:
        say("The time is up: the same command again goes on.")


def _line(result: DomainRecord | DomainFailure) -> str:
    run = result.config
    what = f"{run.norm}{', frozen' if run.frozen else ''}, {run.target}, seed {run.seed}"
    if isinstance(result, DomainFailure):
        return f"{what}: {result.error}"
    reached = [f"source {100 * result.source:.1f} %"]
    reached += [f"target {100 * value:.1f} %" for value in list(result.target.values())[:1]]
    return f"{what}, rate {run.lr:g} x{run.calibration_rate:g}: {', '.join(reached)}"


def say(line: str) -> None:
    """Tell how it goes, apart from what the command prints."""
    print(line, file=sys.stderr, flush=True)
