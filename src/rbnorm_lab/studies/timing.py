"""How long runs will take, from a few timed steps of each kind of run."""

import time
from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean
from typing import Any, Final

from torch.utils.data import Subset

from rbnorm_lab.config import WHOLE, RunConfig
from rbnorm_lab.data import ImageData
from rbnorm_lab.domains.run import groups, pretrained
from rbnorm_lab.domains.testing import STATISTICS
from rbnorm_lab.processes import choose_threads, make_accelerator
from rbnorm_lab.shift import statistics_of
from rbnorm_lab.studies.work import Here, Sources, data_of
from rbnorm_lab.train import model_of, steps_of
from rbnorm_lab.training.loop import Training
from rbnorm_lab.training.order import training_batches

_WARM: Final = 2
_TESTED: Final = 128
_CORRUPTED: Final = 2000
_PASSES: Final = len(STATISTICS) + 3  # re-estimation goes through the images once more, TENT back


def estimate(configs: Iterable[RunConfig], executor: Here) -> float:
    """Seconds that these runs take where the executor makes them.

    Runs that differ in seed, learning rate, target and what they are tested on only are timed once.
    Corrupting the images is not part of it, which is done once for all runs.
    """
    seconds: dict[RunConfig, tuple[float, float]] = {}
    total = 0.0
    for config in configs:
        alike: dict[str, Any] = {"seed": 0, "lr": 1e-3, "pretrain_lr": 1e-3, "shift": "none"}
        alike |= {"calibration_rate": 1.0, "held_out": False, "conditions": ()}
        kind = replace(config, **alike, target=config.target and "any")
        if kind not in seconds:
            own = replace(kind, target=config.target)
            for _ in range(1 + (executor.slots > 1)):  # the first time loads what is needed
                answers = executor.ask(seconds_of, own)
            step, image = (fmean(values) for values in zip(*answers, strict=True))
            seconds[kind] = step, image
        step, image = seconds[kind]
        steps, tested = _amounts(config, executor.sources)
        total += step * steps + image * tested
    return total / executor.slots


def seconds_of(config: RunConfig, sources: Sources) -> tuple[float, float]:
    """Seconds of an optimiser step and of testing an image."""
    training = training_of(config, sources)
    step = seconds_of_step(training)
    start = time.perf_counter()
    training.evaluate()
    images = len(training.data.test)  # type: ignore[arg-type]
    return step, (time.perf_counter() - start) / images


def training_of(config: RunConfig, sources: Sources) -> Training:
    """A run at its start, with few images to test on."""
    images, weights = sources.images, sources.weights
    if images and weights:
        data = _data(config, sources)
        model, extra = pretrained(config, data.classes, weights), {"groups": groups}
    else:
        data = _data(config, sources)
        choose_threads(data)
        model, extra = model_of(config, data), {}
    few = Subset(data.test, range(min(_TESTED, len(data.test))))  # type: ignore[arg-type]
    accelerator = make_accelerator(config.mixed_precision)
    return Training(model, config, replace(data, test=few), accelerator, **extra)


def _data(config: RunConfig, sources: Sources) -> ImageData:
    if config.target is None:
        return data_of(config, sources.root)
    assert sources.images is not None
    return sources.images.without(config.target)


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


def _amounts(config: RunConfig, sources: Sources) -> tuple[int, int]:
    """Optimiser steps, and how many times an image is tested."""
    data = _data(config, sources)
    whole = len(data.test)  # type: ignore[arg-type]
    steps = steps_of(config, data)
    if config.target is not None:
        assert sources.images is not None
        passes = {"none": 0, "controls": _PASSES}.get(config.shift, 1)
        return steps, whole + passes * len(sources.images.target_test(config.target))
    images = whole if config.shift in WHOLE else min(_CORRUPTED, whole)
    return steps, whole + len(statistics_of(config.shift)) * len(config.tested_on()) * images
