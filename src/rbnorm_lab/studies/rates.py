"""The learning rate of every norm, chosen on held-out training images and other seeds."""

from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from rbnorm_lab.config import RunConfig
from rbnorm_lab.names import LRASPP
from rbnorm_lab.store import Store
from rbnorm_lab.studies.study import FIRST_TUNING_SEED, Settings


class Wanted(NamedTuple):
    """What a learning rate is chosen for.

    Attributes:
        model: The network.
        norm: The norm.
        norm_batch: Images that are normalised together; None for the whole batch.
        frozen: Whether pretrained statistics are kept.
        target: The domain that is left out.
    """

    model: str
    norm: str
    norm_batch: int | None = None
    frozen: bool = False
    target: str | None = None


@dataclass(frozen=True)
class Candidate:
    """One choice of rates.

    Attributes:
        wanted: What it is for.
        lr: The peak learning rate.
        calibration: That of RBN's calibration, in multiples.
        accuracy: Mean accuracy on the held-out training images, over the tuning seeds; None while
            some of these runs have not ended.
    """

    wanted: Wanted
    lr: float
    calibration: float
    accuracy: float | None


class Rates:
    """Learning rates by model and norm; remembers which were asked for.

    A variant of RBN has RBN's rate, so that an ablation changes one thing at a time. A run that
    failed counts with an accuracy of 0 and is not tried again, so that a rate once chosen stays.
    The rate of the calibration is chosen after the other, at that rate.

    Args:
        settings: What the studies share.
        store: The runs that ended.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings, self.store = settings, store
        self.wanted: dict[Wanted, None] = {}

    def __call__(
        self,
        model: str,
        norm: str,
        norm_batch: int | None = None,
        frozen: bool = False,
        target: str | None = None,
    ) -> float:
        """The chosen rate, or the first candidate while none is chosen; see :class:`Wanted`."""
        return self._choice(model, norm, norm_batch, frozen, target)[0]

    def calibration(self, model: str, norm: str, *, target: str | None) -> float:
        """Likewise of RBN's calibration, in multiples of the other."""
        return self._choice(model, norm, None, False, target)[1]

    def _choice(
        self, model: str, norm: str, norm_batch: int | None, frozen: bool, target: str | None
    ) -> tuple[float, float]:
        name = norm.partition(":")[0].removesuffix("-center").removesuffix("-scale")
        # pretrained weights are of BatchNorm: RBN starts from its function
        if name == "rbn" and (model == LRASPP or target):
            name = "rbn:preserve=yes"
        wanted = Wanted(model, name, norm_batch, frozen, target)
        self.wanted[wanted] = None
        best = self.best(wanted)
        first = self.settings.rates[0], self._calibrations(wanted)[0]
        return (best.lr, best.calibration) if best else first

    def best(self, wanted: Wanted) -> Candidate | None:
        """What is chosen, once all candidates are known."""
        found = self._candidates(wanted)
        every = len(self._rates) + len(self._calibrations(wanted)) - 1
        return _best(found) if len(found) == every else None

    def runs(self) -> list[RunConfig]:
        """The tuning runs of all that was asked for, as far as they are known yet."""
        return [
            run
            for wanted in self.wanted
            for candidate in self._candidates(wanted)
            for run in self._runs(wanted, candidate.lr, candidate.calibration)
        ]

    def table(self) -> list[tuple[Candidate, bool]]:
        """Every candidate of what was asked for and is tuned, and whether it is the best."""
        return [
            (candidate, candidate == best)
            for wanted in self.wanted
            if (best := self.best(wanted))
            for candidate in self._candidates(wanted)
        ]

    @property
    def complete(self) -> bool:
        """Whether every rate that was asked for is chosen."""
        return all(map(self.best, self.wanted))

    @property
    def _rates(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(self.settings.rates))

    def _calibrations(self, wanted: Wanted) -> tuple[float, ...]:
        own = wanted.norm.startswith("rbn")
        return tuple(dict.fromkeys(self.settings.calibration_rates)) if own else (1.0,)

    def _runs(self, wanted: Wanted, lr: float, calibration: float) -> list[RunConfig]:
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.settings.tuning_seeds)
        values = {
            **wanted._asdict(),
            "epochs": self.settings.tuning_epochs or self.settings.run.epochs,
            "calibration_rate": calibration,
        }
        return [self.settings.config(lr=lr, seed=s, held_out=True, **values) for s in seeds]

    def _candidates(self, wanted: Wanted) -> list[Candidate]:
        first, *others = self._calibrations(wanted)
        found = [self._candidate(wanted, lr, first) for lr in self._rates]
        best = _best(found)
        if best and others:
            found += [self._candidate(wanted, best.lr, other) for other in others]
        return found

    def _candidate(self, wanted: Wanted, lr: float, calibration: float) -> Candidate:
        known = [self._accuracy(run) for run in self._runs(wanted, lr, calibration)]
        values = [accuracy for accuracy in known if accuracy is not None]
        mean = fmean(values) if len(values) == len(known) else None
        return Candidate(wanted, lr, calibration, mean)

    def _accuracy(self, run: RunConfig) -> float | None:
        if run.key in self.store.records:
            return self.store.records[run.key].accuracy
        return 0.0 if run.key in self.store.failures else None


def _best(candidates: list[Candidate]) -> Candidate | None:
    """That of the highest accuracy, the smallest of these; None while one is not known."""
    if any(candidate.accuracy is None for candidate in candidates):
        return None
    return max(candidates, key=lambda c: (c.accuracy or 0.0, -c.lr, -c.calibration))
