"""From the records of a study to the numbers that its page shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from rbnorm_lab.names import LRASPP
from rbnorm_lab.records import Failure, Record
from rbnorm_lab.shift import TRAINED, mean_corruption_accuracy
from rbnorm_lab.statistics import Estimate, blocked, estimate, holm, sign_flip
from rbnorm_lab.store import Store
from rbnorm_lab.studies.study import Arm, Comparison, Study

Found = TypeVar("Found")
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
        return seeds > 1 if self.paired_t else self.together * 2.0 ** (1 - seeds) <= ALPHA


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


Named = Mapping[tuple[str, str | None], ArmResult]


def collect(study: Study, store: Store) -> Results:
    """The results of a study, of whose runs the store may have others, too."""
    ran = [_ran(arm, study.seeds, store) for arm in study.arms]
    by_name: Named = {(result.arm.group, result.arm.label): result for result in ran}
    arms = tuple(
        replace(
            result,
            accuracy=_each(partial(estimate_of, [result])),
            gain=_each(partial(_gain, [result], by_name)),
        )
        for result in ran
    )
    primary, others = ([_compared(c, ran) for c in cs] for cs in (study.primary, study.others))
    if study.paired_t:
        primary = [d and replace(d, p=_p_of_t(d.estimate)) for d in primary]
    adjusted = holm([1.0 if d is None else d.p for d in primary])
    return Results(
        study,
        arms,
        _totals(ran, by_name) if study.blocks else (),
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


def _totals(arms: Sequence[ArmResult], by_name: Named) -> tuple[ArmResult, ...]:
    """Means over the groups: only of what every group has, so that all have the same groups."""
    groups = len({result.arm.group for result in arms})
    labels = {r.arm.label: [q for q in arms if q.arm.label == r.arm.label] for r in arms}
    found = []
    for own in labels.values():
        accuracy = _each(partial(estimate_of, own))
        gain = _each(partial(_gain, own, by_name))
        found.append(
            ArmResult(
                replace(own[0].arm, group=TOTAL),
                {},
                {},
                (),
                {m: e for m, e in accuracy.items() if _blocks(e) == groups},
                {m: d for m, d in gain.items() if _blocks(d.estimate) == groups},
            )
        )
    return tuple(found)


def _blocks(found: Estimate) -> int:
    return len(found.blocks) or 1


def _each(value: Callable[[str], Found | None]) -> dict[str, Found]:
    found = {measure: value(measure) for measure in MEASURES}
    return {measure: one for measure, one in found.items() if one is not None}


def estimate_of(
    arms: Sequence[ArmResult], measure: str, statistics: str = TRAINED
) -> Estimate | None:
    """Mean over the seeds of one arm, or over the blocks that several arms are of."""
    blocks = {r.arm.group: [*r.values(measure, statistics).values()] for r in arms}
    blocks = {group: values for group, values in blocks.items() if values}
    if not blocks:
        return None
    return blocked(blocks) if len(arms) > 1 else estimate(next(iter(blocks.values())))


def _gain(arms: Sequence[ArmResult], by_name: Named, measure: str) -> Difference | None:
    controls = [by_name.get((r.arm.group, r.arm.baseline)) for r in arms]
    return paired(
        {r.arm.group: r.values(measure) for r in arms},
        {c.arm.group: c.values(measure) for c in controls if c},
    )


def paired(
    treatment: Mapping[str, Mapping[int, float]], control: Mapping[str, Mapping[int, float]]
) -> Difference | None:
    """Treatment minus control over the seeds that both have, by group, if there are any."""
    pairs = {
        group: [v - control[group][seed] for seed, v in of.items() if seed in control[group]]
        for group, of in treatment.items()
        if group in control
    }
    blocks = {group: values for group, values in pairs.items() if values}
    if not blocks:
        return None
    found = blocked(blocks) if len(treatment) > 1 else estimate(next(iter(blocks.values())))
    return Difference(found, sign_flip(found.values))


def _compared(comparison: Comparison, arms: Sequence[ArmResult]) -> Difference | None:
    def values(label: str, statistics: str) -> dict[str, dict[int, float]]:
        chosen = [
            result
            for result in arms
            if result.arm.label == label and comparison.group in (None, result.arm.group)
        ]
        return {r.arm.group: r.values(comparison.measure, statistics) for r in chosen}

    found = paired(
        values(comparison.treatment, comparison.statistics),
        values(comparison.control, comparison.control_statistics),
    )
    groups = 1 if comparison.group else len({result.arm.group for result in arms})
    return found if found and _blocks(found.estimate) == groups else None


def value_of(record: Record, measure: str, statistics: str = TRAINED) -> float | None:
    """What a run has of one of :data:`MEASURES`, if it was measured."""
    config = record.config
    if measure in (SHIFTED, TARGET):
        accuracies = record.shifted.get(statistics)
        if accuracies is None or (measure == TARGET) != (config.target is not None):
            return None
        return accuracies[config.target] if config.target else mean_corruption_accuracy(accuracies)
    own = SOURCE if config.target else IOU if config.model == LRASPP else CLEAN
    return record.accuracy if measure == own and record.epochs else None


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
    if results.study.blocks:
        arms = [(total, results.of(total.arm.label)) for total in results.totals]
    else:
        arms = [(result, [result]) for result in results.arms]
    measure, found = results.shifted, []
    for shown, own in arms:
        trained = {r.arm.group: r.values(measure) for r in own}
        for name in dict.fromkeys(name for r in own for name in r.statistics if name != TRAINED):
            accuracy = estimate_of(own, measure, name)
            gain = paired({r.arm.group: r.values(measure, name) for r in own}, trained)
            assert accuracy is not None
            assert gain is not None  # whoever has others has those of training
            found.append(Control(shown, name, accuracy, gain))
    return found
