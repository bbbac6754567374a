"""How long the runs of a study will take, from a few timed steps of each kind of run."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Final

from torch.utils.data import Subset

from rbnorm_lab.config import CONDITIONS, WHOLE, RunConfig
from rbnorm_lab.data import ImageData
from rbnorm_lab.processes import choose_threads, make_accelerator
from rbnorm_lab.shift import statistics_of
from rbnorm_lab.studies.executors import data_of
from rbnorm_lab.train import model_of, steps_of
from rbnorm_lab.training.loop import Training
from rbnorm_lab.training.order import training_batches

_WARM: Final = 2
_TESTED: Final = 128
_CORRUPTED: Final = 2000


def estimate(configs: Iterable[RunConfig], root: Path | None) -> float:
    """Seconds that these runs take one after the other, here.

    Runs that differ in seed, learning rate and what they are tested on only are timed once.
    Corrupting the images is not part of it, which is done once for all runs.

    Args:
        configs: The runs.
        root: Folder of the files of data sets.
    """
    seconds: dict[RunConfig, tuple[float, float]] = {}
    total = 0.0
    for config in configs:
        kind = replace(config, seed=0, lr=1e-3, pretrain_lr=1e-3, shift="none", held_out=False)
        data = data_of(kind, root)
        if kind not in seconds:
            seconds[kind] = _measured(kind, data)
        step, image = seconds[kind]
        total += step * steps_of(config, data) + image * _tested(config, data)
    return total


def _measured(config: RunConfig, data: ImageData) -> tuple[float, float]:
    """Seconds of an optimiser step and of testing an image."""
    choose_threads(data)
    few = Subset(data.test, range(min(_TESTED, len(data.test))))  # type: ignore[arg-type]
    accelerator = make_accelerator(config.mixed_precision)
    training = Training(model_of(config, data), config, replace(data, test=few), accelerator)
    step = seconds_of_step(training)
    start = time.perf_counter()
    training.evaluate()
    return step, (time.perf_counter() - start) / len(few)


def seconds_of_step(training: Training, steps: int = 4) -> float:
    """Mean seconds of this many optimiser steps, or of those that the run has, after two others."""
    most = range(min(_WARM + steps, training.config.epochs * training.epoch_steps))
    batches = training_batches(training.config, training.data, 0, most, training.device)
    times = []
    for _ in most:
        start = time.perf_counter()
        training.advance(batches)
        float(training.loss)  # on a GPU, when it has been computed
        times.append(time.perf_counter() - start)
    return fmean(times[_WARM:] or times)


def _tested(config: RunConfig, data: ImageData) -> int:
    whole = len(data.test)  # type: ignore[arg-type]
    images = whole if config.shift in WHOLE else min(_CORRUPTED, whole)
    return whole + len(statistics_of(config.shift)) * len(CONDITIONS) * images
