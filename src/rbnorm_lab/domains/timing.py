"""How long the study will take, from steps and tests that are timed beforehand."""

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final, NamedTuple

from rbnorm_lab.domains.config import DomainRun
from rbnorm_lab.domains.images import DomainImages
from rbnorm_lab.domains.plan import DomainArm, Plan
from rbnorm_lab.domains.testing import accuracies
from rbnorm_lab.domains.training import Weights, training_of
from rbnorm_lab.studies.timing import seconds_of_step
from rbnorm_lab.train import steps_of

_STEPS: Final = 12
_TESTED: Final = 256


class Seconds(NamedTuple):
    """Seconds of one optimiser step, and of testing one image as trained and with everything."""

    step: float
    plain: float
    remedies: float


def measure(run: DomainRun, images: DomainImages, weights: Weights) -> Seconds:
    """Seconds of a run's parts."""
    training = training_of(run, images, weights)
    step = seconds_of_step(training, _STEPS)
    chosen = images.target_test(run.target)[:_TESTED]
    times = [time.perf_counter()]
    for remedies in (False, True):
        accuracies(training.module, images, chosen, remedies=remedies)
        times.append(time.perf_counter())
    return Seconds(step, *((b - a) / max(len(chosen), 1) for a, b in pairwise(times)))


def estimate(
    plan: Plan,
    images: DomainImages,
    measured: Sequence[tuple[DomainRun, Seconds]],
    processes: int,
) -> float:
    """Seconds that the missing runs of a plan take in so many processes."""
    by_norm: dict[str, list[Seconds]] = {}
    for run, seconds in measured:
        by_norm.setdefault(run.norm, []).append(seconds)
    mean = {
        norm: Seconds(*(sum(column) / len(all_) for column in zip(*all_, strict=True)))
        for norm, all_ in by_norm.items()
    }
    count = len(images.labels) / len(images.domains)
    shared = plan.settings.shared
    steps = [
        steps_of(replace(shared, target=t).training(), images.without(t))
        for t in plan.settings.targets
    ]

    def of(arm: DomainArm, seed: int | None) -> float:
        seconds = mean.get(arm.norm) or max(mean.values())
        tested = 0.0
        if seed is not None:
            tested = seconds.remedies if plan.tries_remedies(arm, seed) else seconds.plain
        return seconds.step * sum(steps) / len(steps) + tested * count

    return sum(of(arm, seed) for arm, seed in plan.missing()) / processes
