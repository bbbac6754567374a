"""How long the study will take, from steps and tests that are timed beforehand."""

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final, NamedTuple

import torch

from rbnorm.lab.domains.config import DomainRun
from rbnorm.lab.domains.images import DomainImages, steps_of
from rbnorm.lab.domains.plan import DomainArm, Plan
from rbnorm.lab.domains.testing import accuracies
from rbnorm.lab.domains.training import Weights, fine_tune

_WARM: Final = 3
_STEPS: Final = 12
_TESTED: Final = 256


class Seconds(NamedTuple):
    """Seconds of one optimiser step, and of testing one image as trained and with everything."""

    step: float
    plain: float
    remedies: float


def faster_layout(run: DomainRun, images: DomainImages, weights: Weights) -> torch.memory_format:
    """Channels last or first: that of the shorter optimiser steps on this device."""
    times = {}
    for layout in (torch.channels_last, torch.contiguous_format):
        own = replace(images, layout=layout)
        fine_tune(run, own, weights, _WARM)
        start = _now(images)
        fine_tune(run, own, weights, _STEPS)
        times[layout] = _now(images) - start
    return min(times, key=lambda layout: times[layout])


def warm_up(run: DomainRun, images: DomainImages, weights: Weights) -> None:
    """Do once what is measured, so that kernels are compiled and libraries loaded."""
    model, _ = fine_tune(run, images, weights, _WARM)
    accuracies(model, images, images.target_test(run.target)[:_TESTED], remedies=True)


def measure(run: DomainRun, images: DomainImages, weights: Weights) -> Seconds:
    """Seconds of a run's parts."""
    times = [time.perf_counter()]
    model, _ = fine_tune(run, images, weights, _STEPS)
    times.append(_now(images))
    chosen = images.target_test(run.target)[:_TESTED]
    for remedies in (False, True):
        accuracies(model, images, chosen, remedies=remedies)
        times.append(_now(images))
    training, plain, everything = (b - a for a, b in pairwise(times))
    count = max(len(chosen), 1)
    return Seconds(training / _STEPS, plain / count, everything / count)


def _now(images: DomainImages) -> float:
    if images.images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def estimate(
    plan: Plan,
    images: DomainImages,
    measured: Sequence[tuple[DomainRun, Seconds]],
    processes: int,
    epochs: int,
) -> float:
    """Seconds that all runs of a plan take with so many processes and epochs."""
    by_norm: dict[str, list[Seconds]] = {}
    for run, seconds in measured:
        by_norm.setdefault(run.norm, []).append(seconds)
    mean = {
        norm: Seconds(*(sum(column) / len(all_) for column in zip(*all_, strict=True)))
        for norm, all_ in by_norm.items()
    }
    count = len(images.labels) / len(images.domains)
    steps = [steps_of(images, t, epochs, plan.settings.batch_size) for t in plan.settings.targets]

    def of(arm: DomainArm, tuning: bool) -> float:
        seconds = mean.get(arm.norm) or max(mean.values())
        tested = 0.0 if tuning else seconds.remedies if arm.remedies else seconds.plain
        return seconds.step * sum(steps) / len(steps) + tested * count

    return sum(of(arm, tuning) for arm, tuning in plan.total()) / processes
