"""What a study is made of, and the settings that all studies share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rbnorm_cli.names import items, model_name, numbers
from rbnorm_lab.config import RunConfig
from rbnorm_lab.errors import UsageError, at_least
from rbnorm_lab.text import Text


@dataclass(frozen=True)
class Arm:
    """One thing that is trained with every seed.

    Attributes:
        group: Arms of one group are compared with one another.
        label: Its name in its group.
        config: Its run of the first seed.
        baseline: Label of the arm of the same group that it is paired with, seed by seed.
        seeds: With how many of the study's first seeds; None for all.
    """

    group: str
    label: str
    config: RunConfig
    baseline: str | None
    seeds: int | None = None

    def runs(self, seeds: tuple[int, ...]) -> list[RunConfig]:
        """Its run of every one of a study's seeds that it has."""
        return [replace(self.config, seed=seed) for seed in seeds[: self.seeds]]


@dataclass(frozen=True)
class Comparison:
    """A comparison of two arms, named before the runs.

    Attributes:
        name: What is compared, in words.
        group: The group of both arms.
        treatment: Label of the arm whose gain is asked for.
        control: Label of the arm it is compared with.
        measure: ``"clean"`` for accuracy on the test images, ``"shifted"`` for the mean over
            corruptions, ``"iou"`` for the mean IoU.
        control_statistics: One of :data:`rbnorm_lab.shift.STATISTICS`: those with which the control
            is tested under corruptions; the treatment always with those of training.
    """

    name: Text
    group: str
    treatment: str
    control: str
    measure: str
    control_statistics: str = "trained"


@dataclass(frozen=True)
class Study:
    """A question, what is run to answer it, and what the answer leaves open.

    Attributes:
        name: Its name on the command line.
        title: Its heading.
        question: What it asks.
        limits: What its answer does not say.
        arms: What is trained; nothing for a study of the benchmark's rows.
        seeds: With which seeds.
        primary: The comparisons that are tested together.
        others: Exploratory comparisons, those that answer the question first.
        controls: Whether its answer says what other statistics do for the baselines under
            corruptions.
        paired_t: Whether the primary comparisons are judged by the paired t test. Otherwise by the
            exact sign-flip test, which cannot detect anything with five seeds: its p value is
            1/16 at least.
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

    def runs(self) -> list[RunConfig]:
        """Every run; the seed varies slowest, so an interrupted study has whole pairs."""
        return [
            replace(arm.config, seed=seed)
            for place, seed in enumerate(self.seeds)
            for arm in self.arms
            if arm.seeds is None or place < arm.seeds
        ]


@dataclass(frozen=True)
class Settings:
    """What all studies share.

    Attributes:
        run: What all runs share; each has its own norm, learning rate and seed.
        networks: The further networks of the study of networks.
        seeds: Number of seeds, counted from 0.
        rates: Peak learning rates of which each norm gets the best.
        tuning_seeds: Number of seeds that choose it, counted from :data:`FIRST_TUNING_SEED`.
        corrupted: Whether networks are tested on corrupted images too.
        tuning_epochs: Epochs of the runs that choose the rates; None for as many as of the others.
    """

    run: RunConfig
    networks: tuple[str, ...]
    seeds: int
    rates: tuple[float, ...]
    tuning_seeds: int
    corrupted: bool = True
    tuning_epochs: int | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Settings":
        """What the options of the command ask for.

        Raises:
            UsageError: A value is out of range, or nothing is known by its name.
        """
        rates = numbers("learning rates", options["rates"], float)
        run = RunConfig.of(options, norm="bn", lr=(*rates, 1.0)[0], seed=0, trace=options["trace"])
        networks = tuple(map(model_name, items(options["networks"])))
        return cls(
            run,
            networks,
            options["seeds"],
            tuple(rates),
            options["tuning_seeds"],
            not options["clean_only"],
            options["tuning_epochs"],
        )

    def __post_init__(self) -> None:
        at_least(
            1,
            seeds=self.seeds,
            tuning_seeds=self.tuning_seeds,
            tuning_epochs=self.tuning_epochs or 1,
        )
        if self.seeds > FIRST_TUNING_SEED:
            raise UsageError(f"seeds must be at most {FIRST_TUNING_SEED}, not {self.seeds}")
        if not self.rates:
            raise UsageError("rates must name at least one learning rate")

    @property
    def model(self) -> str:
        """The network of all studies."""
        return self.run.model

    def config(self, norm: str, lr: float, **values: Any) -> RunConfig:
        """The run of the first seed of this norm, with ``values`` in place of the shared ones.

        Raises:
            UsageError: A value is out of range.
        """
        return replace(self.run, norm=norm, lr=lr, **values)


FIRST_TUNING_SEED = 1000


class Rate(Protocol):
    """The learning rate of a model and a norm."""

    def __call__(
        self, model: str, norm: str, norm_batch: int | None = None, frozen: bool = False
    ) -> float:
        """The rate, chosen while so many images are normalised together; None for all.

        ``frozen`` asks for that of training with pretrained statistics, which are kept.
        """
