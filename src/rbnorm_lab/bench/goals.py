"""The goals of the kernels, and what the rows say of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any, Final

from rbnorm_lab.bench.cases import BASELINE, Case, Row, cases
from rbnorm_lab.bench.parts import PER_CALL


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

    def ratios(self, rows: Iterable[Row]) -> dict[Case, float]:
        """The ratio in every case that counts; outside of the suite only what is asked for."""
        found = {}
        for by_candidate in cases(rows):
            row, base = by_candidate.get(self.candidate), by_candidate.get(self.base)
            if row and base and self._concerns(row):
                cost, against = (getattr(r, self.quantity) for r in (row, base))
                found[row.case] = cost / (self.factor * against)
        return found

    def _concerns(self, case: Case) -> bool:
        return (
            all(getattr(case, name) == value for name, value in self.where.items())
            and (case.shape != PER_CALL or "shape" in self.where)
            and case.nbytes >= self.least_bytes
        )

    def verdict(self, ratios: dict[Case, float]) -> str:
        """One of "reached", "missed", "reported" (no limit) and "not measured" (no ratio)."""
        if not ratios:
            return "not measured"
        if self.limit is None:
            return "reported"
        kept = self.worst is None or max(ratios.values()) <= self.worst
        return "reached" if kept and geometric_mean(ratios.values()) <= self.limit else "missed"


_MEGABYTE: Final = 10**6
_BN: Final = "BatchNorm"
_COPIES: Final[dict[str, Any]] = {"base": "copy", "factor": 2.5}


def _of(part: str, mode: str = "training", **where: Any) -> dict[str, Any]:
    return {"part": part, "mode": mode, **where}


_LAYERS: Final = _of("layers")
_WIDE: Final = _of("layers", dtype="float32")
_ONE: Final = _of("layers", "inference", dtype="float32")

GOALS: Final = (
    Goal("training, float32, contiguous", _BN, {**_WIDE, "layout": "nchw"}, 0.65, 1.0),
    Goal("training, float32, channels_last", _BN, {**_WIDE, "layout": "channels_last"}, 0.95, 1.15),
    Goal("training, bfloat16", _BN, {**_LAYERS, "dtype": "bfloat16"}, 0.65, 1.0),
    Goal("training, float32", "literal definition", _WIDE, 0.2, base="literal"),
    Goal("inference, float32", _BN, _ONE, 1.1, 1.4),
    Goal("short runs and few channels, training", _BN, _of("short"), 1.0, 1.5),
    Goal("short runs and few channels, inference", _BN, _of("short", "inference"), 1.0, 1.5),
    Goal("(1, 64, 8, 8), inference", _BN, {**_ONE, "shape": PER_CALL}, 1.2),
    Goal("(1, 64, 8, 8), training", _BN, {**_WIDE, "shape": PER_CALL}, 1.3),
    Goal("training", "2.5 copies", _LAYERS, **_COPIES),
    Goal("training, 1 MB and more", "2.5 copies", _LAYERS, 2.0, least_bytes=_MEGABYTE, **_COPIES),
    Goal("bytes saved for backward", _BN, _LAYERS, 1.01, quantity="saved_bytes"),
    Goal("peak memory, training", _BN, _LAYERS, quantity="peak_bytes"),
    Goal("ResNet-50 training step", _BN, _of("models"), 0.95, 1.0),
    Goal("MobileNetV3-Large training step", _BN, _of("mobilenet"), 0.95, 1.0),
    Goal("ResNet-50 inference", _BN, _of("models", "inference")),
    Goal(
        "compiled ResNet-50 step",
        "compiled BatchNorm",
        _of("compiled-models"),
        1.03,
        candidate="compiled rbnorm",
        base="compiled batchnorm",
    ),
)
