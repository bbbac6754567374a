"""How long runs will take, from a few timed steps of each kind of run."""

import time
from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean
from typing import Any, Final

from torch.utils.data import Subset

from rbnorm_lab.config import WHOLE, RunConfig
from rbnorm_lab.domains.testing import STATISTICS
from rbnorm_lab.processes import make_accelerator
from rbnorm_lab.shift import IMAGES, statistics_of
from rbnorm_lab.studies.work import Here, Sources, parts_of
from rbnorm_lab.train import model_of, steps_of
from rbnorm_lab.training.loop import Training
from rbnorm_lab.training.order import training_batches

_WARM, _TIMED = 2, 4  # steps
_TESTED: Final = 128
_PASSES: Final = len(STATISTICS) + 3  # re-estimation goes through the images once more, TENT back


def estimate(configs: Iterable[RunConfig], executor: Here) -> float:
    """Seconds that these runs take where the executor makes them.

    Runs that differ in seed, learning rate, target and what they are tested on only are timed once.
    Corrupting the images is not part of it, which is done once for all runs.
    """
    seconds: dict[RunConfig, list[float]] = {}
    total = 0.0
    for config in configs:
        alike: dict[str, Any] = {"seed": 0, "lr": 1e-3, "pretrain_lr": 1e-3, "shift": "none"}
        alike |= {"calibration_rate": 1.0, "held_out": False, "conditions": ()}
        kind = replace(config, **alike, target=config.target and "any")
        if kind not in seconds:
            own = replace(kind, target=config.target)
            for _ in range(1 + (executor.slots > 1)):  # the first time loads what is needed
                answers = executor.ask(seconds_of, own)
            seconds[kind] = [fmean(values) for values in zip(*answers, strict=True)]
        step, image = seconds[kind]
        steps, tested = _amounts(config, executor.sources)
        total += step * steps + image * tested
    return total / executor.slots


def seconds_of(config: RunConfig, sources: Sources) -> tuple[float, float]:
    """Seconds of an optimiser step, after two others, and of testing an image."""
    data, own = parts_of(config, sources)
    few = range(min(_TESTED, len(data.test)))  # type: ignore[arg-type]
    model = own.get("build", model_of)(config, data)
    options = {"groups": own["groups"]} if own else {}
    accelerator = make_accelerator(config.mixed_precision)
    data = replace(data, test=Subset(data.test, few))
    training = Training(model, config, data, accelerator, **options)
    steps = range(min(_WARM + _TIMED, config.epochs * training.epoch_steps))
    batches = training_batches(config, data, 0, steps, training.device)
    times = []
    for _ in steps:
        start = time.perf_counter()
        training.advance(batches)
        float(training.loss)  # on a GPU, when it has been computed
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    training.evaluate()
    return fmean(times[_WARM:] or times), (time.perf_counter() - start) / len(few)


def _amounts(config: RunConfig, sources: Sources) -> tuple[int, int]:
    """Optimiser steps, and how many times an image is tested."""
    data, _ = parts_of(config, sources)
    whole = len(data.test)  # type: ignore[arg-type]
    if config.target is not None:
        assert sources.images is not None
        passes = {"none": 0, "controls": _PASSES}.get(config.shift, 1)
        shifted = passes * len(sources.images.target_test(config.target))
    else:
        images = whole if config.shift in WHOLE else min(IMAGES, whole)
        shifted = len(statistics_of(config.shift)) * len(config.tested_on()) * images
    return steps_of(config, data), whole + shifted
