"""The names that options take, as types, so that a checker finds one that does not exist.

The functions behind them are in the tables of :mod:`rbnorm.definition` and
:mod:`rbnorm.elementwise`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from rbnorm.definition import Restriction, Statistic

StatisticName = Literal["mean", "max", "min", "std"]
RestrictionName = Literal["sigmoid", "tanh", "hardsigmoid", "softsign", "clip01", "identity"]
ActivationName = Literal["none", "relu", "leaky_relu", "silu", "hardswish", "gelu", "gelu_tanh"]


class CalibrationOptions(TypedDict, total=False):
    """The keyword-only arguments that RBN adds to a layer."""

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
