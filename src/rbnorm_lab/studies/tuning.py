"""The learning rate of every norm, chosen on held-out training images and other seeds."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rbnorm_cli.names import LRASPP
from rbnorm_lab.config import RunConfig
from rbnorm_lab.records import Record
from rbnorm_lab.studies.arms import FIRST_TUNING_SEED, Settings


class Wanted(NamedTuple):
    """What a learning rate is chosen for.

    Attributes:
        model: The network.
        norm: The norm.
        norm_batch: Images that are normalised together; None for the whole batch.
        frozen: Whether pretrained statistics are kept.
    """

    model: str
    norm: str
    norm_batch: int | None = None
    frozen: bool = False


@dataclass(frozen=True)
class Candidate:
    """One learning rate.

    Attributes:
        wanted: What it is for.
        lr: The peak learning rate.
        accuracy: Mean accuracy on the held-out training images, over the tuning seeds.
        chosen: Whether it is this norm's best.
    """

    wanted: Wanted
    lr: float
    accuracy: float
    chosen: bool


class Rates:
    """Learning rates by model and norm; remembers which were asked for.

    A variant of RBN has RBN's rate, so that an ablation changes one thing at a time.

    Args:
        settings: What the studies share.
        records: The finished runs by key.
        failures: The keys of the runs that raised an error. They count with an accuracy of 0 and
            are not tried again, so that a rate once chosen stays.
    """

    def __init__(
        self, settings: Settings, records: Mapping[str, Record], failures: Container[str] = ()
    ) -> None:
        self.settings, self.records, self.failures = settings, records, failures
        self.wanted: dict[Wanted, None] = {}

    def __call__(
        self, model: str, norm: str, norm_batch: int | None = None, frozen: bool = False
    ) -> float:
        """The chosen rate, or the first candidate while none is chosen.

        Args:
            model: The network.
            norm: The norm.
            norm_batch: Images that are normalised together while it is chosen.
            frozen: Whether pretrained statistics are kept while it is chosen.
        """
        name = norm.partition(":")[0].removesuffix("-center").removesuffix("-scale")
        # pretrained weights are of BatchNorm: RBN starts from its function
        if (model, name) == (LRASPP, "rbn"):
            name = "rbn:preserve=yes"
        wanted = Wanted(model, name, norm_batch, frozen)
        self.wanted[wanted] = None
        return next((c.lr for c in self._candidates(wanted) if c.chosen), self.settings.rates[0])

    def runs(self) -> list[RunConfig]:
        """The tuning runs of all that was asked for."""
        return [
            run for wanted in self.wanted for lr in self._rates for run in self._runs(wanted, lr)
        ]

    def table(self) -> list[Candidate]:
        """Every candidate of what was asked for and is tuned."""
        return [candidate for wanted in self.wanted for candidate in self._candidates(wanted)]

    @property
    def complete(self) -> bool:
        """Whether every rate that was asked for is chosen."""
        return all(self._candidates(wanted) for wanted in self.wanted)

    @property
    def _rates(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(self.settings.rates))

    def _runs(self, wanted: Wanted, lr: float) -> list[RunConfig]:
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.settings.tuning_seeds)
        epochs = self.settings.tuning_epochs or self.settings.run.epochs
        values = {**wanted._asdict(), "epochs": epochs}
        return [self.settings.config(lr=lr, seed=s, held_out=True, **values) for s in seeds]

    def _candidates(self, wanted: Wanted) -> list[Candidate]:
        means = {}
        for lr in self._rates:
            accuracies = [self._accuracy(run) for run in self._runs(wanted, lr)]
            known = [accuracy for accuracy in accuracies if accuracy is not None]
            if len(known) < len(accuracies):
                return []
            means[lr] = sum(known) / len(known)
        best = max(means, key=lambda lr: (means[lr], -lr))
        return [Candidate(wanted, lr, mean, lr == best) for lr, mean in means.items()]

    def _accuracy(self, run: RunConfig) -> float | None:
        if run.key in self.records:
            return self.records[run.key].accuracy
        return 0.0 if run.key in self.failures else None
