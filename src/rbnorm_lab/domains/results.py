"""From the records to the numbers that the page shows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from scipy import stats

from rbnorm_lab.domains.config import TRAINED, DomainRecord, DomainRun
from rbnorm_lab.domains.plan import ARMS, DomainArm, DomainSettings, Plan, Rates
from rbnorm_lab.statistics import CONFIDENCE, Estimate, sign_flip

Blocks = Mapping[str, Sequence[float]]
"""Values of every block, here of every target's seeds."""


@dataclass(frozen=True)
class Blocked(Estimate):
    """A mean over blocks, with what the spread inside the blocks says about its accuracy.

    The mean is that of the blocks' means, so that each target counts alike. The interval has the
    blocks as fixed effects: the variance is pooled inside them; None where no block has two values,
    or all values of each block are equal. p is of the sign-flip test over all values.

    Attributes:
        blocks: The values of every block.
    """

    blocks: dict[str, tuple[float, ...]]


def blocked(blocks: Blocks) -> Blocked:
    """Mean and interval over blocks.

    Raises:
        ValueError: There is no block, or one without values.
    """
    if not blocks or not all(blocks.values()):
        raise ValueError("a mean over blocks needs a value in every block")
    means = {name: fmean(values) for name, values in blocks.items()}
    free = sum(len(values) - 1 for values in blocks.values())
    mean = fmean(means.values())
    squares = sum((v - means[name]) ** 2 for name, values in blocks.items() for v in values)
    interval = None
    if free and squares > 1e-18 * free:
        of_mean = squares / free * sum(1 / len(values) for values in blocks.values())
        margin = stats.t.ppf((1 + CONFIDENCE) / 2, free) * math.sqrt(of_mean) / len(blocks)
        interval = (mean - float(margin), mean + float(margin))
    own = {name: tuple(values) for name, values in blocks.items()}
    every = tuple(v for values in own.values() for v in values)
    return Blocked(every, mean, interval, sign_flip(every), own)


class DomainResults:
    """The study's numbers.

    Args:
        settings: What was asked for.
        records: The finished runs by key.
        failures: Keys of those that raised an error.
    """

    def __init__(
        self,
        settings: DomainSettings,
        records: Mapping[str, DomainRecord],
        failures: Mapping[str, object],
    ) -> None:
        self.settings, self.failures = settings, failures
        self.plan = Plan(settings, records, failures)
        self._records = records

    @property
    def records(self) -> list[DomainRecord]:
        """All finished runs of the study, those that chose rates included."""
        return [self._records[run.key] for run in self.plan.ready() if run.key in self._records]

    @property
    def reported(self) -> list[DomainRecord]:
        """Those that did not choose rates."""
        return [record for record in self.records if not record.config.tuning]

    def runs(self, arm: DomainArm) -> list[DomainRun]:
        """The runs of an arm whose rates are chosen."""
        return [
            self.settings.run(arm, target, seed, *rates)
            for target in self.settings.targets
            if (rates := self.plan.rates(arm, target))
            for seed in range(self.plan.seeds(arm))
        ]

    def values(self, arm: DomainArm, statistics: str = TRAINED) -> dict[str, dict[int, float]]:
        """Accuracy on every target by seed, as far as it was measured."""
        found: dict[str, dict[int, float]] = {}
        for run in self.runs(arm):
            record = self._records.get(run.key)
            if record and statistics in record.target:
                found.setdefault(run.target, {})[run.seed] = record.target[statistics]
        return found

    def accuracy(self, arm: DomainArm, statistics: str = TRAINED) -> Blocked | None:
        """Accuracy on the targets; None unless every target has a run."""
        return self._blocked({t: [*v.values()] for t, v in self.values(arm, statistics).items()})

    def source(self, arm: DomainArm) -> Blocked | None:
        """Accuracy on held-out images of the source domains."""
        found: dict[str, list[float]] = {}
        for run in self.runs(arm):
            if run.key in self._records:
                found.setdefault(run.target, []).append(self._records[run.key].source)
        return self._blocked(found)

    def difference(
        self,
        treatment: DomainArm,
        control: DomainArm,
        statistics: str = TRAINED,
        control_statistics: str | None = None,
    ) -> Blocked | None:
        """Treatment minus control, target by target and seed by seed."""
        other = self.values(control, control_statistics or statistics)
        pairs = {
            target: [v - other[target][seed] for seed, v in values.items() if seed in other[target]]
            for target, values in self.values(treatment, statistics).items()
            if target in other
        }
        return self._blocked({target: values for target, values in pairs.items() if values})

    def chosen(self) -> list[tuple[DomainArm, str, Rates | None, dict[Rates, float | None]]]:
        """For every arm that chooses rates and every target the choice, and all choices."""
        return [
            (arm, target, self.plan.rates(arm, target), self.plan.choices(arm, target))
            for arm in ARMS
            if arm.rates_of is None
            for target in self.settings.targets
        ]

    def _blocked(self, blocks: Blocks) -> Blocked | None:
        return blocked(blocks) if 0 < len(blocks) == len(self.settings.targets) else None


def settings_of_records(
    records: Mapping[str, DomainRecord], defaults: DomainSettings
) -> DomainSettings:
    """The settings that the records were made with, as far as they show.

    Args:
        records: All records of a folder; those of the most epochs are taken.
        defaults: What records do not show.
    """
    configs = [record.config for record in records.values()]
    if not configs:
        return defaults
    epochs = max(config.epochs for config in configs)
    own = [config for config in configs if config.epochs == epochs]
    targets = tuple(sorted({config.target for config in own}))
    return replace(defaults, shared=own[0], targets=targets)
