"""The goals of the kernels, and what the rows say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any, Final

from rbnorm_lab.bench.candidates import BASELINE
from rbnorm_lab.bench.layers import PER_CALL
from rbnorm_lab.bench.rows import Case, Row, cases


@dataclass(frozen=True)
class Goal:
    """A limit on a candidate's cost as a ratio to another's in the same case.

    Attributes:
        what: The cost.
        against: What it is compared with.
        where: Values that fields of the rows must have.
        limit: The highest geometric mean over the cases, or None for a number to report.
        worst: The highest ratio of any case, or None for none.
        candidate: Whose cost.
        base: The candidate it is compared with.
        quantity: The field that is the cost.
        factor: How many times the base's cost is compared with.
        least_bytes: Size of the smallest inputs that count.
        per_call: Whether this is about the map outside of the suite.
    """

    what: str
    against: str
    where: dict[str, Any]
    limit: float | None = None
    worst: float | None = None
    candidate: str = "rbnorm"
    base: str = BASELINE
    quantity: str = "median_s"
    factor: float = 1.0
    least_bytes: int = 0
    per_call: bool = False

    def concerns(self, case: Case) -> bool:
        """Whether the case counts."""
        return (
            all(getattr(case, name) == value for name, value in self.where.items())
            and (case.shape == PER_CALL) == self.per_call
            and case.nbytes >= self.least_bytes
        )


@dataclass(frozen=True)
class Outcome:
    """A goal and its ratios, by case."""

    goal: Goal
    ratios: dict[Case, float]

    @property
    def mean(self) -> float:
        """The geometric mean of the ratios, of which there must be one."""
        return geometric_mean(self.ratios.values())

    @property
    def worst(self) -> Case:
        """The case of the highest ratio."""
        return max(self.ratios, key=self.ratios.__getitem__)

    @property
    def verdict(self) -> str:
        """One of "reached", "missed", "reported" (no limit) and "not measured" (no ratio)."""
        goal = self.goal
        if not self.ratios:
            return "not measured"
        if goal.limit is None:
            return "reported"
        kept = goal.worst is None or self.ratios[self.worst] <= goal.worst
        return "reached" if kept and self.mean <= goal.limit else "missed"


_LAYERS: Final = {"part": "layers"}
_TRAINING: Final = {**_LAYERS, "mode": "training"}
_TRAINING_32: Final = {**_TRAINING, "dtype": "float32"}
_TRAINING_16: Final = {**_TRAINING, "dtype": "bfloat16"}
_INFERENCE_32: Final = {**_LAYERS, "mode": "inference", "dtype": "float32"}
_STEP: Final = {"mode": "training"}
_COPIES: Final[dict[str, Any]] = {"base": "copy", "factor": 2.5}
_MEGABYTE: Final = 10**6


def _layout(where: dict[str, Any], layout: str) -> dict[str, Any]:
    return {**where, "layout": layout}


GOALS: Final = (
    Goal(
        "training, float32, contiguous",
        "BatchNorm",
        _layout(_TRAINING_32, "nchw"),
        limit=0.65,
        worst=1.0,
    ),
    Goal(
        "training, float32, channels_last",
        "BatchNorm",
        _layout(_TRAINING_32, "channels_last"),
        limit=0.95,
        worst=1.15,
    ),
    Goal("training, bfloat16", "BatchNorm", _TRAINING_16, limit=0.65, worst=1.0),
    Goal("training, float32", "literal definition", _TRAINING_32, limit=0.2, base="literal"),
    Goal("inference, float32", "BatchNorm", _INFERENCE_32, limit=1.1, worst=1.4),
    Goal(
        "short runs and few channels, training",
        "BatchNorm",
        {"part": "short", "mode": "training"},
        limit=1.0,
        worst=1.5,
    ),
    Goal(
        "short runs and few channels, inference",
        "BatchNorm",
        {"part": "short", "mode": "inference"},
        limit=1.0,
        worst=1.5,
    ),
    Goal("(1, 64, 8, 8), inference", "BatchNorm", _INFERENCE_32, limit=1.2, per_call=True),
    Goal("(1, 64, 8, 8), training", "BatchNorm", _TRAINING_32, limit=1.3, per_call=True),
    Goal("training", "2.5 copies", _TRAINING, **_COPIES),
    Goal(
        "training, 1 MB and more",
        "2.5 copies",
        _TRAINING,
        limit=2.0,
        least_bytes=_MEGABYTE,
        **_COPIES,
    ),
    Goal("bytes saved for backward", "BatchNorm", _TRAINING, limit=1.01, quantity="saved_bytes"),
    Goal("peak memory, training", "BatchNorm", _TRAINING, quantity="peak_bytes"),
    Goal(
        "ResNet-50 training step", "BatchNorm", {**_STEP, "part": "models"}, limit=0.95, worst=1.0
    ),
    Goal(
        "MobileNetV3-Large training step",
        "BatchNorm",
        {**_STEP, "part": "mobilenet"},
        limit=0.95,
        worst=1.0,
    ),
    Goal("ResNet-50 inference", "BatchNorm", {"part": "models", "mode": "inference"}),
    Goal(
        "compiled ResNet-50 step",
        "compiled BatchNorm",
        {"part": "compiled-models"},
        limit=1.03,
        candidate="compiled rbnorm",
        base="compiled batchnorm",
    ),
)


def outcomes(rows: Sequence[Row], goals: Sequence[Goal] = GOALS) -> list[Outcome]:
    """What the rows say of every goal."""
    measured = list(cases(rows))
    return [Outcome(goal, _ratios(goal, measured)) for goal in goals]


def _ratios(goal: Goal, measured: Sequence[dict[str, Row]]) -> dict[Case, float]:
    found = {}
    for by_candidate in measured:
        row, base = by_candidate.get(goal.candidate), by_candidate.get(goal.base)
        if row and base and goal.concerns(row):
            cost, against = (getattr(r, goal.quantity) for r in (row, base))
            found[row.case] = cost / (goal.factor * against)
    return found
