"""Which fine-tunings the study consists of, and which can be run now."""

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from rbnorm_cli.names import numbers
from rbnorm_lab.domains.config import DomainRecord, DomainRun
from rbnorm_lab.errors import UsageError
from rbnorm_lab.studies.arms import FIRST_TUNING_SEED
from rbnorm_lab.text import Text


@dataclass(frozen=True)
class DomainArm:
    """One way to fine-tune.

    Attributes:
        name: Its name in the records of the choice of rates and on the page.
        text: Its name in words.
        norm: The norm.
        frozen: Whether the pretrained statistics are kept.
        rates_of: The arm whose learning rates it has.
        few: Whether it has the smaller number of seeds.
        remedies: Whether it is tested with other statistics, too.
    """

    name: str
    text: Text
    norm: str
    frozen: bool = False
    rates_of: str | None = None
    few: bool = True
    remedies: bool = False


BN: Final = DomainArm("bn", Text("BN", "BN"), "bn", few=False, remedies=True)
RBN: Final = DomainArm("rbn", Text("RBN", "RBN"), "rbn:preserve=yes", few=False, remedies=True)
CENTRING: Final = DomainArm(
    "centring only", Text("RBN, centring only", "RBN（仅中心化）"), "rbn-center", rates_of="rbn"
)
FROZEN: Final = DomainArm(
    "bn, frozen statistics", Text("BN, frozen statistics", "BN（冻结统计量）"), "bn", frozen=True
)
AT_RATE_OF_RBN: Final = DomainArm(
    "bn, RBN's learning rate",
    Text("BN, RBN's learning rate", "BN（RBN 的学习率）"),
    "bn",
    rates_of="rbn",
)
ARMS: Final = (BN, RBN, CENTRING, FROZEN, AT_RATE_OF_RBN)
"""All arms. The primary comparison is RBN minus BN in mean target accuracy, as trained."""


@dataclass(frozen=True)
class DomainSettings:
    """What all runs share, and how many there are.

    Attributes:
        shared: What all runs share; each has its own norm, target, seed and learning rates.
        targets: The domains that are left out in turn.
        seeds: Seeds of BN and RBN, from 0 on.
        few_seeds: Seeds of the other arms, and those that are tested with other statistics, too.
        tuning_seeds: Seeds that choose the learning rates, from 1000 on.
        rates: Peak learning rates to choose from.
        calibration_rates: Those of RBN's calibration, in multiples of the learning rate. The first
            holds while the learning rate is chosen; then the best of all, at this learning rate.
    """

    shared: DomainRun
    targets: tuple[str, ...]
    seeds: int
    few_seeds: int
    tuning_seeds: int
    rates: tuple[float, ...]
    calibration_rates: tuple[float, ...]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "DomainSettings":
        """What the options of the command ask for.

        Raises:
            UsageError: A value is out of range, or there is no such model.
        """
        rates, calibration_rates = (
            tuple(numbers(name.replace("_", " "), options[name], float))
            for name in ("rates", "calibration_rates")
        )
        shared = DomainRun.of(
            options,
            images=options["images"].name,
            norm=BN.norm,
            frozen=BN.frozen,
            target="",
            seed=0,
            lr=(*rates, 1.0)[0],
            calibration_rate=1.0,
            tuning=False,
        )
        return cls(
            shared,
            tuple(options["targets"] or ()),
            options["seeds"],
            options["few_seeds"],
            options["tuning_seeds"],
            rates,
            calibration_rates,
        )

    def __post_init__(self) -> None:
        for name in ("seeds", "few_seeds", "tuning_seeds"):
            if not 1 <= getattr(self, name) <= FIRST_TUNING_SEED:
                raise UsageError(
                    f"{name.replace('_', ' ')} must be from 1 to {FIRST_TUNING_SEED}, "
                    f"not {getattr(self, name)}"
                )
        for name in ("rates", "calibration_rates"):
            if not getattr(self, name):
                raise UsageError(f"{name.replace('_', ' ')} must name at least one number")

    def run(
        self,
        arm: DomainArm,
        target: str,
        seed: int,
        lr: float,
        calibration_rate: float,
        *,
        tuning: bool = False,
    ) -> DomainRun:
        """One run of an arm."""
        return replace(
            self.shared,
            norm=arm.norm,
            frozen=arm.frozen,
            target=target,
            seed=seed,
            lr=lr,
            calibration_rate=calibration_rate,
            tuning=tuning,
        )


Rates = tuple[float, float]
"""The learning rate, and that of the calibration in multiples of it."""


class Plan:
    """What the records so far say is to be run.

    Args:
        settings: What all runs share.
        records: The finished runs by key.
        failures: Keys of the runs that raised an error, which count with accuracy 0 in the choice
            of rates.
    """

    def __init__(
        self,
        settings: DomainSettings,
        records: Mapping[str, DomainRecord],
        failures: Container[str] = (),
    ) -> None:
        self.settings, self.records, self.failures = settings, records, failures

    def ready(self) -> list[DomainRun]:
        """The runs that can be made now, those done included, the most urgent first.

        Those that choose rates come first; after them the seed varies slowest.
        """
        return list(dict.fromkeys(run for _, run in self._ready()))

    def missing(self) -> list[tuple[DomainArm, int | None]]:
        """``total`` without the runs that have been made."""
        found = Counter(self.total())
        found.subtract(
            (arm, None if run.tuning else run.seed)
            for arm, run in self._ready()
            if run.key in self.records
        )
        return list(found.elements())

    def _ready(self) -> list[tuple[DomainArm, DomainRun]]:
        tuning = [
            (arm, run)
            for arm in ARMS
            if arm.rates_of is None
            for target in self.settings.targets
            for run in self._tuning(arm, target)
        ]
        final = [
            (arm, self.settings.run(arm, target, seed, *rates))
            for seed in range(self.settings.seeds)
            for target in self.settings.targets
            for arm in ARMS
            if seed < self.seeds(arm) and (rates := self.rates(arm, target))
        ]
        return tuning + final

    def seeds(self, arm: DomainArm) -> int:
        """How many seeds an arm has."""
        settings = self.settings
        return min(settings.seeds, settings.few_seeds) if arm.few else settings.seeds

    def has_remedies(self, run: DomainRun) -> bool:
        """Whether a run is tested with other statistics, too."""
        of = (arm for arm in ARMS if (arm.norm, arm.frozen) == (run.norm, run.frozen))
        return any(self.tries_remedies(arm, run.seed) for arm in of)

    def tries_remedies(self, arm: DomainArm, seed: int) -> bool:
        """Whether an arm's run of this seed is tested with other statistics, too."""
        return arm.remedies and seed < self.settings.few_seeds

    def total(self) -> list[tuple[DomainArm, int | None]]:
        """Arm and seed of every run, None for those that choose rates, for an estimate."""
        settings = self.settings
        found: list[tuple[DomainArm, int | None]] = []
        for arm in ARMS:
            if arm.rates_of is None:
                several = len(settings.calibration_rates) - 1 if _has_calibration(arm) else 0
                choices = settings.tuning_seeds * (len(settings.rates) + several)
                found += [(arm, None)] * choices * len(settings.targets)
            found += [(arm, seed) for seed in range(self.seeds(arm)) for _ in settings.targets]
        return found

    def rates(self, arm: DomainArm, target: str) -> Rates | None:
        """The chosen rates, or None while they are not chosen."""
        owner = next(a for a in ARMS if a.name == (arm.rates_of or arm.name))
        accuracies = self.choices(owner, target)
        if any(accuracy is None for accuracy in accuracies.values()):
            return None
        if _has_calibration(owner) and len(accuracies) < self._choices:
            return None
        lr, calibration_rate = _best(accuracies)
        return lr, calibration_rate if _has_calibration(arm) else 1.0

    def choices(self, arm: DomainArm, target: str) -> dict[Rates, float | None]:
        """Mean held-out source accuracy of every choice of rates that is to be tried so far."""
        first = self.settings.calibration_rates[0] if _has_calibration(arm) else 1.0
        found = {(lr, first): self._accuracy(arm, target, (lr, first)) for lr in self._rates}
        if _has_calibration(arm) and None not in found.values():
            lr, _ = _best(found)
            for other in dict.fromkeys(self.settings.calibration_rates[1:]):
                found[lr, other] = self._accuracy(arm, target, (lr, other))
        return found

    @property
    def _rates(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(self.settings.rates))

    @property
    def _choices(self) -> int:
        return len(self._rates) + len(dict.fromkeys(self.settings.calibration_rates)) - 1

    def _tuning(self, arm: DomainArm, target: str) -> list[DomainRun]:
        return [
            run
            for rates in self.choices(arm, target)
            for run in self._runs_of_choice(arm, target, rates)
        ]

    def _runs_of_choice(self, arm: DomainArm, target: str, rates: Rates) -> list[DomainRun]:
        first = FIRST_TUNING_SEED
        return [
            self.settings.run(arm, target, seed, *rates, tuning=True)
            for seed in range(first, first + self.settings.tuning_seeds)
        ]

    def _accuracy(self, arm: DomainArm, target: str, rates: Rates) -> float | None:
        found = []
        for run in self._runs_of_choice(arm, target, rates):
            if run.key in self.records:
                found.append(self.records[run.key].source)
            elif run.key in self.failures:
                found.append(0.0)
            else:
                return None
        return sum(found) / len(found)


def _has_calibration(arm: DomainArm) -> bool:
    return arm.norm.startswith("rbn")


def _best(accuracies: Mapping[Rates, float | None]) -> Rates:
    """The rates of the highest accuracy, the smallest of these."""
    return max(accuracies, key=lambda rates: (accuracies[rates] or 0.0, -rates[0], -rates[1]))
