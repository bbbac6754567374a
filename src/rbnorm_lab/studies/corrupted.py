"""What corruptions and statistics do to the arms of a study."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rbnorm_lab.config import CLEAN, STUDIED_SEVERITIES
from rbnorm_lab.corruptions import KINDS
from rbnorm_lab.shift import TRAINED, mean_corruption_accuracy
from rbnorm_lab.statistics import Estimate, estimate
from rbnorm_lab.studies.results import ArmResult, Difference, paired

Accuracies = dict[str, float]


@dataclass(frozen=True)
class CorruptionTable:
    """Accuracies of a group's arms by kind of corruption, with one kind of statistics.

    Attributes:
        group: The group.
        statistics: One of :data:`rbnorm_lab.shift.STATISTICS`.
        labels: Its arms that were tested so; these are the rows.
        kinds: For every kind, each arm's mean over severities.
        mean: Each arm's mean over all kinds and severities.
        clean: Each arm's accuracy on the same images without corruption.
    """

    group: str
    statistics: str
    labels: tuple[str, ...]
    kinds: dict[str, tuple[Estimate, ...]]
    mean: tuple[Estimate, ...]
    clean: tuple[Estimate, ...]


@dataclass(frozen=True)
class Control:
    """What other statistics do for an arm's mean accuracy over corruptions.

    Attributes:
        result: The arm.
        statistics: One of :data:`rbnorm_lab.shift.STATISTICS`.
        gain: With these statistics minus with those of training, seed by seed.
    """

    result: ArmResult
    statistics: str
    gain: Difference


def corruption_tables(arms: Sequence[ArmResult]) -> list[CorruptionTable]:
    """One table for every group and kind of statistics that there are accuracies of."""
    pairs = [
        (result.arm.group, statistics)
        for result in arms
        for record in result.records.values()
        for statistics in record.shifted
    ]
    return [_table(group, statistics, arms) for group, statistics in dict.fromkeys(pairs)]


def controls(arms: Sequence[ArmResult]) -> list[Control]:
    """Every arm that was tested with other statistics than those of training."""
    found = []
    for result in arms:
        tested = [record.shifted for record in result.records.values()]
        for statistics in dict.fromkeys(name for modes in tested for name in modes):
            if statistics != TRAINED:
                gain = paired(_means(result, statistics), _means(result, TRAINED))
                assert gain is not None  # whoever has others has those of training
                found.append(Control(result, statistics, gain))
    return found


def _means(result: ArmResult, statistics: str) -> dict[int, float]:
    return {
        seed: mean_corruption_accuracy(record.shifted[statistics])
        for seed, record in result.records.items()
        if statistics in record.shifted
    }


def _table(group: str, statistics: str, arms: Sequence[ArmResult]) -> CorruptionTable:
    tested = {
        result.arm.label: [
            record.shifted[statistics]
            for record in result.records.values()
            if statistics in record.shifted
        ]
        for result in arms
        if result.arm.group == group
    }
    columns = {label: runs for label, runs in tested.items() if runs}

    def over_seeds(value: Callable[[Accuracies], float]) -> tuple[Estimate, ...]:
        return tuple(estimate([value(run) for run in runs]) for runs in columns.values())

    return CorruptionTable(
        group,
        statistics,
        tuple(columns),
        {kind: over_seeds(_over_severities(kind)) for kind in KINDS},
        over_seeds(mean_corruption_accuracy),
        over_seeds(lambda run: run[CLEAN]),
    )


def _over_severities(kind: str) -> Callable[[Accuracies], float]:
    return lambda run: float(np.mean([run[f"{kind}/{level}"] for level in STUDIED_SEVERITIES]))
