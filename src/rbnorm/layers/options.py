"""The options that RBN adds to BatchNorm."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from rbnorm.definition import (
    RESTRICTIONS,
    STATISTICS,
    Restriction,
    Statistic,
    StatisticName,
    resolve,
)
from rbnorm.elementwise import RestrictionName

AFFINE = ("weight", "bias")
NAMES = ("center_weight", "scale_weight", "scale_bias")
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class Calibration(NamedTuple):
    """The keyword-only arguments of every layer, and the parameters they ask for."""

    center: bool = True
    scale: bool = True
    statistic: StatisticName | Statistic = "mean"
    restrict: RestrictionName | Restriction = "sigmoid"
    center_weight_init: float = 0.0
    scale_weight_init: float = 0.0
    scale_bias_init: float = 1.0

    def initial(self) -> dict[str, float]:
        """The calibration parameters the layer has, with their initial values."""
        present = (self.center, self.scale, self.scale)
        return {
            name: getattr(self, f"{name}_init")
            for name, on in zip(NAMES, present, strict=True)
            if on
        }

    def gate(self) -> float:
        """The initial ``R(w_b)``, by which an untrained calibration multiplies BatchNorm."""
        if not self.scale:
            return 1.0
        # On the CPU, so that it has a value under ``torch.device("meta")`` too.
        bias = torch.tensor([self.scale_bias_init], dtype=torch.float64, device="cpu")
        return float(self.restriction(bias))

    def restriction(self, x: Tensor) -> Tensor:
        """``R(x)``."""
        return resolve("restrict", self.restrict, RESTRICTIONS)(x)

    @classmethod
    def of(cls, **options: Any) -> Calibration:
        """Checked options; an unknown name raises TypeError, a bad value ValueError."""
        unknown = sorted(options.keys() - set(cls._fields))
        if unknown:
            raise TypeError(f"unknown option {unknown[0]!r}; accepted are {', '.join(cls._fields)}")
        calibration = cls(**options)
        calibration.check()
        return calibration

    def check(self) -> None:
        """Raise ValueError for an option that no layer can take."""
        resolve("statistic", self.statistic, STATISTICS)
        resolve("restrict", self.restrict, RESTRICTIONS)
        for name in NAMES:
            value = getattr(self, f"{name}_init")
            if not math.isfinite(value):
                raise ValueError(f"{name}_init must be a finite number, got {value}")


def bias_option(bias: bool) -> dict[str, bool]:
    """The argument for torch's BatchNorm, whose older releases do not have it."""
    return {} if bias else {"bias": False}


def check_rates(eps: float, momentum: float | None) -> None:
    """Raise ValueError for what no layer can take."""
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be a non-negative number, got {eps}")
    if momentum is not None and not math.isfinite(momentum):
        raise ValueError(f"momentum must be a finite number or None, got {momentum}")


class CalibrationOptions(TypedDict, total=False):
    """The fields of :class:`Calibration`, as the type of keyword-only arguments."""

    center: bool
    scale: bool
    statistic: StatisticName | Statistic
    restrict: RestrictionName | Restriction
    center_weight_init: float
    scale_weight_init: float
    scale_bias_init: float


class LayerOptions(CalibrationOptions, total=False):
    """All keyword-only arguments of a layer."""

    bias: bool
