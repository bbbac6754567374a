"""From the records of a study to the numbers that its page shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rbnorm_lab.names import LRASPP
from rbnorm_lab.records import Failure, Record
from rbnorm_lab.shift import TRAINED, mean_corruption_accuracy
from rbnorm_lab.statistics import Estimate, blocked, estimate, holm, sign_flip
from rbnorm_lab.store import Store
from rbnorm_lab.studies.study import Arm, Comparison, Study

ALPHA: Final = 0.05
CLEAN, SHIFTED, IOU, SOURCE, TARGET = MEASURES = ("clean", "shifted", "iou", "source", "target")
"""Accuracy on the test images; its mean over corruptions; the mean IoU of a segmentation; and after
a fine-tuning on some domains the accuracy on held-out images of these, and on another domain."""
TOTAL: Final = "all targets"
"""The group of means over groups that are blocks."""


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
    records: Mapping[int, Record]
    failures: Mapping[int, Failure]
    missing: tuple[int, ...]
    accuracy: dict[str, Estimate]
    gain: dict[str, Difference]

    def values(self, measure: str, statistics: str = TRAINED) -> dict[int, float]:
        """By seed, as far as it was measured."""
        found = {s: value_of(record, measure, statistics) for s, record in self.records.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    @property
    def statistics(self) -> list[str]:
        """Those that it was tested with."""
        return list(dict.fromkeys(name for r in self.records.values() for name in r.shifted))


@dataclass(frozen=True)
class Compared:
    """A comparison that was named beforehand.

    Attributes:
        comparison: What was compared.
        difference: Treatment minus control, or None without a seed that has both.
        adjusted: The p value, adjusted by Holm's method for all primary comparisons of the study.
            Those without a difference count as p = 1, so running them cannot raise it.
        together: Number of primary comparisons; 0 for one that is exploratory.
        paired_t: Whether the p value is that of the t test.
    """

    comparison: Comparison
    difference: Difference | None
    adjusted: float = 1.0
    together: int = 0
    paired_t: bool = False

    @property
    def detectable(self) -> bool:
        """Whether the difference is not taken for chance: by its interval if it is exploratory."""
        if not self.together:
            return self.difference is not None and self.difference.estimate.detectable
        return self.adjusted <= ALPHA

    @property
    def resolvable(self) -> bool:
        """Whether any difference could be detected with as many seeds."""
        seeds = len(self.difference.estimate.values) if self.difference else 0
        by_t = self.paired_t or not self.together
        return seeds > 1 if by_t else self.together * 2.0 ** (1 - seeds) <= ALPHA


@dataclass(frozen=True)
class Results:
    """All that a study's page shows.

    Attributes:
        study: What was asked for.
        arms: Each arm's.
        totals: Means over the groups, one for each label, where these are blocks.
        primary: The primary comparisons.
        others: The exploratory ones.
        folder: Where the records are.
    """

    study: Study
    arms: tuple[ArmResult, ...]
    totals: tuple[ArmResult, ...]
    primary: tuple[Compared, ...]
    others: tuple[Compared, ...]
    folder: Path

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
        """The arms by group, in their order; means over all groups come first."""
        every = (*self.totals, *self.arms)
        names = dict.fromkeys(result.arm.group for result in every)
        return {name: [r for r in every if r.arm.group == name] for name in names}

    def measures(self) -> list[str]:
        """Those of :data:`MEASURES` that any arm has."""
        return [m for m in MEASURES if any(m in result.accuracy for result in self.arms)]

    @property
    def shifted(self) -> str:
        """The measure of images that are not like those of training."""
        return TARGET if self.study.blocks else SHIFTED

    def of(self, label: str) -> list[ArmResult]:
        """The arms of this label, one in each group that has it."""
        return [result for result in self.arms if result.arm.label == label]


def collect(study: Study, store: Store) -> Results:
    """The results of a study, of whose runs the store may have others, too."""
    ran = [_ran(arm, study.seeds, store) for arm in study.arms]
    primary, others = ([_compared(c, ran) for c in cs] for cs in (study.primary, study.others))
    if study.paired_t:
        primary = [d and replace(d, p=_p_of_t(d.estimate)) for d in primary]
    adjusted = holm([1.0 if d is None else d.p for d in primary])
    labels = dict.fromkeys(arm.label for arm in study.arms) if study.blocks else ()
    return Results(
        study,
        tuple(_measured([result], ran, result.arm.group) for result in ran),
        tuple(_measured([r for r in ran if r.arm.label == label], ran, None) for label in labels),
        tuple(
            Compared(c, d, p, len(primary), study.paired_t)
            for c, d, p in zip(study.primary, primary, adjusted, strict=True)
        ),
        tuple(map(Compared, study.others, others)),
        store.folder,
    )


def _p_of_t(estimate: Estimate) -> float:
    return 1.0 if estimate.p is None else estimate.p


def _ran(arm: Arm, seeds: Sequence[int], store: Store) -> ArmResult:
    keys = {run.seed: run.key for run in arm.runs(seeds)}
    own = {seed: store.records[key] for seed, key in keys.items() if key in store.records}
    failed = {
        seed: store.failures[key]
        for seed, key in keys.items()
        if seed not in own and key in store.failures
    }
    missing = tuple(seed for seed in keys if seed not in own and seed not in failed)
    return ArmResult(arm, own, failed, missing, {}, {})


def _measured(own: Sequence[ArmResult], ran: Sequence[ArmResult], group: str | None) -> ArmResult:
    """One arm with its numbers; or the means of a label's arms over all groups, which are blocks.

    Means are only of what every group has, so that all have the same groups.
    """
    arm, accuracy, gain = own[0].arm, {}, {}
    groups = 1 if group else len({result.arm.group for result in ran})
    for measure in MEASURES:
        found = estimate_of(own, measure)
        if found and _blocks(found) == groups:
            accuracy[measure] = found
        if arm.baseline and (d := difference_of(ran, group, arm.label, arm.baseline, measure)):
            gain[measure] = d
    if group is None:
        return ArmResult(replace(arm, group=TOTAL), {}, {}, (), accuracy, gain)
    return replace(own[0], accuracy=accuracy, gain=gain)


def _blocks(found: Estimate) -> int:
    return len(found.blocks) or 1


def estimate_of(
    arms: Sequence[ArmResult], measure: str, statistics: str = TRAINED
) -> Estimate | None:
    """Mean over the seeds of one arm, or over the blocks that several arms are of."""
    return _mean({r.arm.group: [*r.values(measure, statistics).values()] for r in arms})


def _mean(groups: Mapping[str, Sequence[float]]) -> Estimate | None:
    blocks = {group: values for group, values in groups.items() if values}
    if not blocks:
        return None
    return blocked(blocks) if len(groups) > 1 else estimate(next(iter(blocks.values())))


def difference_of(
    arms: Sequence[ArmResult],
    group: str | None,
    treatment: str,
    control: str,
    measure: str,
    control_statistics: str = TRAINED,
    statistics: str = TRAINED,
) -> Difference | None:
    """Treatment minus control over the seeds that both have.

    Args:
        arms: All arms of a study.
        group: The group of both; None for the mean over all groups, each of which must have pairs.
        treatment: Label of an arm.
        control: Label of another.
        measure: One of :data:`MEASURES`.
        control_statistics: Those that the control is tested with.
        statistics: Likewise the treatment.
    """

    def values(label: str, with_: str) -> dict[str, dict[int, float]]:
        chosen = [r for r in arms if r.arm.label == label and group in (None, r.arm.group)]
        return {r.arm.group: r.values(measure, with_) for r in chosen}

    treated, controlled = values(treatment, statistics), values(control, control_statistics)
    found = _mean(
        {
            name: [v - controlled[name][seed] for seed, v in of.items() if seed in controlled[name]]
            for name, of in treated.items()
            if name in controlled
        }
    )
    groups = 1 if group else len({result.arm.group for result in arms})
    if found is None or _blocks(found) != groups:
        return None
    return Difference(found, sign_flip(found.values))


def _compared(of: Comparison, arms: Sequence[ArmResult]) -> Difference | None:
    sides = of.group, of.treatment, of.control
    return difference_of(arms, *sides, of.measure, of.control_statistics, of.statistics)


def value_of(record: Record, measure: str, statistics: str = TRAINED) -> float | None:
    """What a run has of one of :data:`MEASURES`, if it was measured."""
    config = record.config
    if measure in (SHIFTED, TARGET):
        accuracies = record.shifted.get(statistics)
        if accuracies is None or (measure == TARGET) != (config.target is not None):
            return None
        return accuracies[config.target] if config.target else mean_corruption_accuracy(accuracies)
    own = SOURCE if config.target else IOU if config.model == LRASPP else CLEAN
    if measure == own == CLEAN and statistics != TRAINED:
        return record.shifted.get(statistics, {}).get(CLEAN)
    return record.accuracy if measure == own else None


@dataclass(frozen=True)
class Control:
    """What other statistics do for an arm on images that are not like those of training.

    Attributes:
        result: The arm.
        statistics: One of the others.
        accuracy: With these.
        gain: With these minus with those of training, seed by seed.
    """

    result: ArmResult
    statistics: str
    accuracy: Estimate
    gain: Difference


def controls(results: Results) -> list[Control]:
    """Every arm that was tested with other statistics than those of training."""
    measure, found = results.shifted, []
    for shown in results.totals or results.arms:
        label, group = shown.arm.label, None if results.totals else shown.arm.group
        own = [r for r in results.of(label) if group in (None, r.arm.group)]
        for name in dict.fromkeys(name for r in own for name in r.statistics if name != TRAINED):
            accuracy = estimate_of(own, measure, name)
            gain = difference_of(results.arms, group, label, label, measure, TRAINED, name)
            if accuracy and gain:
                found.append(Control(shown, name, accuracy, gain))
    return found
