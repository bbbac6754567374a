"""From the records of a study to the numbers that its page shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Final

from rbnorm_cli.names import LRASPP
from rbnorm_lab.records import Failure, Record
from rbnorm_lab.shift import TRAINED, mean_corruption_accuracy
from rbnorm_lab.statistics import Estimate, estimate, holm, sign_flip
from rbnorm_lab.studies.arms import Arm, Comparison, Study

ALPHA: Final = 0.05
CLEAN, SHIFTED, IOU = MEASURES = ("clean", "shifted", "iou")
"""Accuracy on the test images; its mean over corruptions, with the statistics of training; and the
mean IoU of a segmentation."""


@dataclass(frozen=True)
class Difference:
    """Treatment minus control, seed by seed.

    Attributes:
        estimate: Over the seeds that both have.
        p: Of the exact sign-flip test; of a primary comparison, of the test that its study names.
    """

    estimate: Estimate
    p: float


@dataclass(frozen=True)
class ArmResult:
    """What was run of an arm, and what came out.

    Attributes:
        arm: The arm.
        records: Finished runs by seed.
        failures: Runs by seed that raised an error and have not been finished since.
        missing: Seeds that have neither.
        accuracy: For each of :data:`MEASURES` that was measured, over seeds.
        gain: Likewise, minus the arm's baseline.
    """

    arm: Arm
    records: dict[int, Record]
    failures: dict[int, Failure]
    missing: tuple[int, ...]
    accuracy: dict[str, Estimate]
    gain: dict[str, Difference]


@dataclass(frozen=True)
class PrimaryResult:
    """A primary comparison.

    Attributes:
        comparison: What was compared.
        difference: Treatment minus control, or None without a seed that has both.
        adjusted: The p value, adjusted by Holm's method for all primary comparisons of the study.
            Those without a difference count as p = 1, so running them cannot raise it.
        together: Number of primary comparisons.
        paired_t: Whether the p value is that of the t test.
    """

    comparison: Comparison
    difference: Difference | None
    adjusted: float
    together: int
    paired_t: bool = False

    @property
    def detectable(self) -> bool:
        """Whether the difference is not taken for chance."""
        return self.adjusted <= ALPHA

    @property
    def resolvable(self) -> bool:
        """Whether any difference could be detected with as many seeds."""
        seeds = len(self.difference.estimate.values) if self.difference else 0
        return seeds > 1 if self.paired_t else self.together * 2.0 ** (1 - seeds) <= ALPHA


@dataclass(frozen=True)
class OtherResult:
    """An exploratory comparison, or None without a seed that has both."""

    comparison: Comparison
    difference: Difference | None


@dataclass(frozen=True)
class Results:
    """All that a study's page shows."""

    study: Study
    arms: tuple[ArmResult, ...]
    primary: tuple[PrimaryResult, ...]
    others: tuple[OtherResult, ...]

    @property
    def records(self) -> list[Record]:
        """All finished runs."""
        return [record for result in self.arms for record in result.records.values()]

    @property
    def failed(self) -> int:
        """Number of failed runs."""
        return sum(len(result.failures) for result in self.arms)

    @property
    def complete_seeds(self) -> int:
        """Number of seeds with which every arm was run, be it to an error."""
        missing = {seed for result in self.arms for seed in result.missing}
        return len(self.study.seeds) - len(missing)

    def groups(self) -> dict[str, list[ArmResult]]:
        """The arms by group, in their order."""
        names = dict.fromkeys(result.arm.group for result in self.arms)
        return {name: [r for r in self.arms if r.arm.group == name] for name in names}

    def measures(self) -> list[str]:
        """Those of :data:`MEASURES` that any arm has."""
        return [m for m in MEASURES if any(m in result.accuracy for result in self.arms)]


def collect(
    study: Study, records: Mapping[str, Record], failures: Mapping[str, Failure]
) -> Results:
    """The results of a study.

    Args:
        study: What was asked for.
        records: Finished runs by the key of their config; others than the study's are ignored.
        failures: Failed runs, likewise.
    """
    arms = tuple(_arm_result(arm, study, records, failures) for arm in study.arms)
    primary, others = (_differences(c, arms) for c in (study.primary, study.others))
    if study.paired_t:
        primary = [d and replace(d, p=_p_of_t(d.estimate)) for d in primary]
    adjusted = holm([1.0 if d is None else d.p for d in primary])
    return Results(
        study,
        arms,
        tuple(
            map(
                PrimaryResult,
                study.primary,
                primary,
                adjusted,
                repeat(len(primary)),
                repeat(study.paired_t),
            )
        ),
        tuple(map(OtherResult, study.others, others)),
    )


def _p_of_t(estimate: Estimate) -> float:
    return 1.0 if estimate.p is None else estimate.p


def _arm_result(
    arm: Arm, study: Study, records: Mapping[str, Record], failures: Mapping[str, Failure]
) -> ArmResult:
    own = _runs(arm, study.seeds, records)
    runs = {run.seed: run.key for run in arm.runs(study.seeds)}
    failed = {s: failures[key] for s, key in runs.items() if s not in own and key in failures}
    control = next((a for a in study.arms if (a.group, a.label) == (arm.group, arm.baseline)), None)
    other = _runs(control, study.seeds, records) if control else {}
    samples = {measure: [*_values(own, measure).values()] for measure in MEASURES}
    gains = {m: paired(_values(own, m), _values(other, m)) for m in MEASURES}
    return ArmResult(
        arm,
        own,
        failed,
        tuple(seed for seed in runs if seed not in own and seed not in failed),
        {measure: estimate(sample) for measure, sample in samples.items() if sample},
        {measure: gain for measure, gain in gains.items() if gain},
    )


def _runs(arm: Arm, seeds: tuple[int, ...], records: Mapping[str, Record]) -> dict[int, Record]:
    return {run.seed: records[run.key] for run in arm.runs(seeds) if run.key in records}


def paired(treatment: Mapping[int, float], control: Mapping[int, float]) -> Difference | None:
    """Treatment minus control over the seeds that both have, if there are any."""
    differences = [value - control[seed] for seed, value in treatment.items() if seed in control]
    return Difference(estimate(differences), sign_flip(differences)) if differences else None


def _values(
    records: Mapping[int, Record], measure: str, statistics: str = TRAINED
) -> dict[int, float]:
    values = {seed: value_of(record, measure, statistics) for seed, record in records.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def value_of(record: Record, measure: str, statistics: str = TRAINED) -> float | None:
    """What a run has of one of :data:`MEASURES`, if it was measured."""
    if measure != SHIFTED:
        segments = record.config.model == LRASPP
        return record.accuracy if (measure == IOU) == segments else None
    accuracies = record.shifted.get(statistics)
    return mean_corruption_accuracy(accuracies) if accuracies else None


def _differences(
    comparisons: Sequence[Comparison], arms: Sequence[ArmResult]
) -> list[Difference | None]:
    named = {(result.arm.group, result.arm.label): result.records for result in arms}
    return [
        paired(
            _values(named[c.group, c.treatment], c.measure),
            _values(named[c.group, c.control], c.measure, c.control_statistics),
        )
        for c in comparisons
    ]
