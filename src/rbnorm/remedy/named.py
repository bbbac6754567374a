"""Which layers a second data set moves by themselves, not only because earlier layers moved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rbnorm.diagnosis.meter import wide
from rbnorm.diagnosis.passes import Forward, call, normalisers, unchanged
from rbnorm.diagnosis.recalibration import recalibrate
from rbnorm.diagnosis.result import rms

_FAR = 0.5  # of the way of the layer that moved the furthest


def own_shifts(
    model: nn.Module,
    first: Iterable[Any],
    second: Iterable[Any],
    *,
    forward: Forward | None = None,
) -> dict[str, float]:
    r"""How far the second data set moves each layer's statistics, the layers before it repaired.

    The statistics of both data sets are those of :func:`rbnorm.recalibrate`, where every layer sees
    what batch statistics make of the layers before it. So a constant that one layer's input gains
    shows in that layer alone, while :func:`rbnorm.diagnose` finds it in all layers after it too.
    The distance is the 2-Wasserstein distance of the two normal distributions in units of
    :math:`\sqrt{V_1 + \epsilon}`, the root mean square over channels.

    Returns:
        A number for each layer with running statistics, in the order of the model.

    Raises:
        ValueError: As :func:`rbnorm.recalibrate`. The model is as it was.
    """
    before, after = (_statistics(model, data, forward or call) for data in (first, second))
    layers = normalisers(model)
    return {name: _distance(before[name], after[name], layers[name].eps) for name in before}


def named_layers(shifts: Mapping[str, float]) -> tuple[str, ...]:
    """The layers that moved at least half as far as the one that moved the furthest."""
    furthest = max((v for v in shifts.values() if not math.isnan(v)), default=0.0)
    return tuple(name for name, v in shifts.items() if furthest > 0 and v >= _FAR * furthest)


def _statistics(
    model: nn.Module, batches: Iterable[Any], forward: Forward
) -> dict[str, tuple[Tensor, Tensor]]:
    with unchanged(model):
        recalibrate(model, batches, forward=forward)
        return {
            name: (wide(layer.running_mean).clone(), wide(layer.running_var).clone())
            for name, layer in normalisers(model).items()
            if layer.running_mean is not None and layer.running_var is not None
        }


def _distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], eps: float) -> float:
    scale = a[1] + eps
    step = (b[0] - a[0]).square() / scale
    spread = (((b[1] + eps) / scale).sqrt() - 1).square()
    return rms((step + spread).sqrt()) if len(scale) else torch.nan
