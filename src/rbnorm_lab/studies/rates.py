"""The learning rate of every norm, chosen on held-out training images and other seeds."""

from dataclasses import dataclass, replace
from statistics import fmean

from rbnorm_lab.config import RunConfig
from rbnorm_lab.names import LRASPP
from rbnorm_lab.store import Store
from rbnorm_lab.studies.study import FIRST_TUNING_SEED, Settings


@dataclass(frozen=True)
class Candidate:
    """One choice of rates.

    Attributes:
        config: The run of the first tuning seed, with this learning rate and that of RBN's
            calibration.
        accuracy: Mean accuracy on the held-out training images, over the tuning seeds; None while
            some of these runs have not ended.
    """

    config: RunConfig
    accuracy: float | None


class Rates:
    """Learning rates by model and norm; remembers which were asked for.

    A variant of RBN has RBN's rate, so that an ablation changes one thing at a time. A run that
    failed counts with an accuracy of 0 and is not tried again, so that a rate once chosen stays.
    The rate of the calibration is chosen after the other, at that rate.

    Args:
        settings: What the studies share.
        store: The runs that ended.

    Attributes:
        wanted: For each rate that was asked for the run that tries the first candidates.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings, self.store = settings, store
        self.wanted: dict[RunConfig, None] = {}

    def __call__(
        self,
        model: str,
        norm: str,
        norm_batch: int | None = None,
        frozen: bool = False,
        target: str | None = None,
    ) -> float:
        """The chosen rate, or the first candidate while none is chosen.

        Args:
            model: The network.
            norm: The norm.
            norm_batch: Images that are normalised together while it is chosen.
            frozen: Whether pretrained statistics are kept while it is chosen.
            target: The domain that is left out while it is chosen.
        """
        return self._chosen(model, norm, norm_batch, frozen, target).lr

    def calibration(self, model: str, norm: str, *, target: str | None) -> float:
        """Likewise of RBN's calibration, in multiples of the other."""
        return self._chosen(model, norm, None, False, target).calibration_rate

    def _chosen(
        self, model: str, norm: str, norm_batch: int | None, frozen: bool, target: str | None
    ) -> RunConfig:
        name = norm.partition(":")[0].removesuffix("-center").removesuffix("-scale")
        # pretrained weights are of BatchNorm: RBN starts from its function
        if name == "rbn" and (model == LRASPP or target):
            name = "rbn:preserve=yes"
        first = self.settings.config(
            name,
            self.settings.rates[0],
            model=model,
            norm_batch=norm_batch,
            frozen=frozen,
            target=target,
            seed=FIRST_TUNING_SEED,
            held_out=True,
            epochs=self.settings.tuning_epochs or self.settings.run.epochs,
            calibration_rate=self._calibrations(name)[0],
        )
        self.wanted[first] = None
        best = self.best(first)
        return best.config if best else first

    def best(self, wanted: RunConfig) -> Candidate | None:
        """What is chosen, once all candidates are known."""
        found = self._candidates(wanted)
        every = len(set(self.settings.rates)) + len(self._calibrations(wanted.norm)) - 1
        return _best(found) if len(found) == every else None

    def runs(self) -> list[RunConfig]:
        """The tuning runs of all that was asked for, as far as they are known yet."""
        return [
            run
            for wanted in self.wanted
            for candidate in self._candidates(wanted)
            for run in self._runs(candidate.config)
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

    def _calibrations(self, norm: str) -> tuple[float, ...]:
        own = norm.startswith("rbn")
        return tuple(dict.fromkeys(self.settings.calibration_rates)) if own else (1.0,)

    def _runs(self, config: RunConfig) -> list[RunConfig]:
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.settings.tuning_seeds)
        return [replace(config, seed=seed) for seed in seeds]

    def _candidates(self, wanted: RunConfig) -> list[Candidate]:
        rates = dict.fromkeys(self.settings.rates)
        found = [self._candidate(replace(wanted, lr=lr)) for lr in rates]
        if best := _best(found):
            found += [
                self._candidate(replace(best.config, calibration_rate=other))
                for other in self._calibrations(wanted.norm)[1:]
            ]
        return found

    def _candidate(self, config: RunConfig) -> Candidate:
        known = [self._accuracy(run) for run in self._runs(config)]
        values = [accuracy for accuracy in known if accuracy is not None]
        return Candidate(config, fmean(values) if len(values) == len(known) else None)

    def _accuracy(self, run: RunConfig) -> float | None:
        if run.key in self.store.records:
            return self.store.records[run.key].accuracy
        return 0.0 if run.key in self.store.failures else None


def _best(candidates: list[Candidate]) -> Candidate | None:
    """That of the highest accuracy, the smallest of these; None while one is not known."""
    if any(candidate.accuracy is None for candidate in candidates):
        return None

    def rank(of: Candidate) -> tuple[float, ...]:
        return of.accuracy or 0.0, -of.config.lr, -of.config.calibration_rate

    return max(candidates, key=rank)
