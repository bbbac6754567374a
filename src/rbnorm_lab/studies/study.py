"""What a study is made of, and the settings that all studies share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from rbnorm_lab.config import RunConfig
from rbnorm_lab.errors import UsageError, at_least
from rbnorm_lab.models import model_name
from rbnorm_lab.names import items, numbers
from rbnorm_lab.norms import canonical_norm
from rbnorm_lab.shift import TRAINED
from rbnorm_lab.studies.words import MEASURES, close, side
from rbnorm_lab.text import Text

if TYPE_CHECKING:
    from rbnorm_lab.studies.results import Results
    from rbnorm_lab.templates import Section

FIRST_TUNING_SEED: Final = 1000


@dataclass(frozen=True)
class Arm:
    """One thing that is trained with every seed.

    Attributes:
        group: Arms of one group are compared with one another.
        label: Its name in its group.
        config: Its run of the first seed.
        baseline: Label of the arm of the same group that it is paired with, seed by seed.
        seeds: With how many of the study's first seeds; None for all.
        controls: How many of these are tested with other statistics, too, whatever ``config`` says.
    """

    group: str
    label: str
    config: RunConfig
    baseline: str | None
    seeds: int | None = None
    controls: int = 0

    def runs(self, seeds: Sequence[int]) -> list[RunConfig]:
        """Its run of every one of a study's seeds that it has."""
        runs = [replace(self.config, seed=seed) for seed in seeds[: self.seeds]]
        controlled = [replace(run, shift="controls") for run in runs[: self.controls]]
        return controlled + runs[self.controls :]


@dataclass(frozen=True)
class Comparison:
    """A comparison of two arms, named before the runs.

    Attributes:
        group: The group of both arms; None for all groups of a study whose groups are blocks.
        treatment: Label of the arm whose gain is asked for.
        control: Label of the arm it is compared with.
        measure: One of :data:`rbnorm_lab.studies.results.MEASURES`.
        control_statistics: One of those that the control is tested with.
        statistics: Likewise of the treatment.
        called: What is compared, where it has a name of its own.
    """

    group: str | None
    treatment: str
    control: str
    measure: str
    control_statistics: str = TRAINED
    statistics: str = TRAINED
    called: Text | None = field(default=None, kw_only=True)

    @property
    def name(self) -> Text:
        """What is compared, in words."""
        ours, other = self.sides
        words = MEASURES[self.measure]
        zh = close(f"{ours.zh}减{other.zh}，{words.zh}").strip()
        return self.called or Text(f"{ours.en} minus {other.en}, {words.en}", zh)

    @property
    def sides(self) -> tuple[Text, Text]:
        """Treatment and control in words, each with the statistics it is tested with."""
        return (
            side(self.treatment, self.statistics),
            side(self.control, self.control_statistics),
        )


@dataclass(frozen=True)
class Study:
    """A question, what is run to answer it, and what the answer leaves open.

    Attributes:
        name: Its name on the command line.
        title: Its heading.
        question: What it asks.
        limits: What its answer does not say.
        arms: What is trained.
        seeds: With which seeds.
        primary: The comparisons that are tested together.
        others: Exploratory comparisons, those that answer the question first.
        controls: Whether its answer says what other statistics do for the baselines.
        paired_t: Whether the primary comparisons are judged by the paired t test. Otherwise by the
            exact sign-flip test, which cannot detect anything with five seeds: its p value is
            1/16 at least.
        blocks: Whether the groups are blocks of one comparison: differences are averaged over
            them, and intervals have them as fixed effects.
        clauses: What it found, in place of the general sentence; none where that has to do.
        sections: What its page shows beside what all pages show.
    """

    name: str
    title: Text
    question: Text
    limits: tuple[Text, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    primary: tuple[Comparison, ...] = ()
    others: tuple[Comparison, ...] = ()
    controls: bool = False
    paired_t: bool = False
    blocks: bool = False
    clauses: "Callable[[Results], Sequence[Text]]" = lambda results: ()
    sections: "Callable[[Results], Sequence[Section]]" = lambda results: ()

    def runs(self) -> list[RunConfig]:
        """Every run; the seed varies slowest, so an interrupted study has whole pairs."""
        of_arms = [{run.seed: run for run in arm.runs(self.seeds)} for arm in self.arms]
        return [runs[seed] for seed in self.seeds for runs in of_arms if seed in runs]


@dataclass(frozen=True)
class Settings:
    """What the options of a command say of all its studies.

    Attributes:
        run: What all runs share; each has its own norm, learning rate and seed.
        seeds: Number of seeds, counted from 0.
        rates: Peak learning rates of which each norm gets the best.
        tuning_seeds: Number of seeds that choose it, counted from :data:`FIRST_TUNING_SEED`.
        tuning_epochs: Epochs of the runs that choose the rates; None for as many as of the others.
        calibration_rates: Learning rates of RBN's calibration, in multiples of the other. The first
            holds while that one is chosen; then the best of all is.
        corrupted: Whether networks are tested on corrupted images too.
        networks: Further networks.
        norms: The norms of a comparison that has a list of them.
        batch_sizes: Its batch sizes.
        targets: The domains that are left out in turn.
        few_seeds: Seeds of what has fewer of them.
    """

    run: RunConfig
    seeds: int
    rates: tuple[float, ...]
    tuning_seeds: int = 1
    tuning_epochs: int | None = None
    calibration_rates: tuple[float, ...] = (1.0,)
    corrupted: bool = True
    networks: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    targets: tuple[str, ...] = ()
    few_seeds: int = 1

    @classmethod
    def of(cls, options: Mapping[str, Any], **values: Any) -> "Settings":
        """What the options of a command ask for.

        Args:
            options: By name.
            values: Fields of the runs' config that are no options.

        Raises:
            UsageError: A value is out of range, or nothing is known by its name.
        """

        def listed(name: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
            given = options.get(name)
            return tuple(numbers(name.replace("_", " "), given, kind)) if given else ()

        rates = listed("rates", float) or tuple([options["lr"]] * ("lr" in options))
        sizes = listed("batch_sizes", int)
        shared = {"norm": "bn", "seed": 0, "lr": (*rates, 1.0)[0], **values}
        if sizes:
            shared["batch_size"] = sizes[0]
        own = ("seeds", "tuning_seeds", "tuning_epochs", "few_seeds")
        return cls(
            RunConfig.of(options, **shared),
            rates=rates,
            calibration_rates=listed("calibration_rates", float) or (1.0,),
            corrupted=not options.get("clean_only", False),
            networks=tuple(map(model_name, items(options.get("networks") or ()))),
            norms=tuple(map(canonical_norm, items(options.get("norms") or ()))),
            batch_sizes=sizes,
            targets=tuple(options.get("targets") or ()),
            **{name: options[name] for name in own if name in options},
        )

    def __post_init__(self) -> None:
        counts = {n: getattr(self, n) for n in ("seeds", "tuning_seeds", "few_seeds")}
        at_least(1, **counts, tuning_epochs=self.tuning_epochs)
        for name, count in counts.items():
            if count > FIRST_TUNING_SEED:
                raise UsageError(
                    f"{name.replace('_', ' ')} must be at most {FIRST_TUNING_SEED}, not {count}"
                )
        if not self.rates:
            raise UsageError("rates must name at least one learning rate")

    @property
    def model(self) -> str:
        """The network of all studies."""
        return self.run.model

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(range(self.seeds))

    def config(self, norm: str, lr: float, **values: Any) -> RunConfig:
        """The run of the first seed of this norm, with ``values`` in place of the shared ones.

        Raises:
            UsageError: A value is out of range.
        """
        return replace(self.run, norm=norm, lr=lr, **values)
