"""Calibrations that constants can replace on given images."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from rbnorm.export.layer import Parts
from rbnorm.export.watch import Candidate, difference
from rbnorm.layers.base import _RepresentativeBatchNorm

# Share of the second moment below which a channel is constant, so that no gain can be fitted.
_NO_SPREAD = 1e-12


class Observed:
    """What a layer did on some inputs, in sums per channel and float64.

    Attributes:
        count: Values per channel.
        size: Values of an instance.
    """

    size: int

    def __init__(self, layer: _RepresentativeBatchNorm) -> None:
        self._layer = layer
        self._origin = layer.running_mean.double()  # so that a large mean costs nothing
        self.count = 0
        self._x = self._y = self._xx = self._xy = torch.zeros_like(self._origin)

    def __call__(self, layer: nn.Module, x: Tensor) -> None:
        """Take in an input, as a listener of :func:`rbnorm.diagnosis.passes.run`."""
        self.size = x[:1].numel()
        y = _RepresentativeBatchNorm.forward(self._layer, x).double()
        x = x.double() - self._origin.reshape(-1, *(1,) * (x.ndim - 2))
        axes = (0, *range(2, x.ndim))
        self.count += x.numel() // x.shape[1]
        self._x, self._xx = self._x + x.sum(axes), self._xx + x.square().sum(axes)
        self._y, self._xy = self._y + y.sum(axes), self._xy + (x * y).sum(axes)

    def nearest(self) -> Parts:
        """The affine map per channel that is nearest to the layer in least squares."""
        x, y = self._x / self.count, self._y / self.count
        second = self._xx / self.count
        spread, common = second - x * x, self._xy / self.count - x * y
        gain = torch.where(spread > _NO_SPREAD * second, common / spread, 0)
        return Parts(gain, y - gain * (x + self._origin), {})


def variation(actual: list[list[Tensor]], expected: list[list[Tensor]]) -> float:
    """Largest difference, relative to the largest deviation from the mean over all instances.

    Both are the outputs of every batch. Where instances have several shapes, or there is one
    instance, the deviation is that from 0.
    """
    found = zip(zip(*actual, strict=True), zip(*expected, strict=True), strict=True)
    return max((_variation(*output) for output in found), default=0.0)


def _variation(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    one_shape = all(y.ndim and y.shape[1:] == expected[0].shape[1:] for y in expected)
    y, wanted = (
        torch.cat([part if one_shape else part.flatten() for part in parts]).double()
        for parts in (actual, expected)
    )
    return difference(y, wanted, wanted.mean(0) if one_shape and len(wanted) > 1 else 0.0)


def approximate(
    model: nn.Module,
    layers: Mapping[str, Candidate],
    seen: Mapping[str, Observed],
    measure: Callable[[], float],
    tolerance: float,
) -> None:
    """Replace calibrations by constants, as far as the tolerance allows.

    Layers come in the order of their squared effect per value of the feature map, since the effects
    of many layers add up as squares do. The first of them are replaced, as many as keep the
    measured effect of all within the tolerance.

    Args:
        model: It has the layers' pairs; it is changed, and the layers say how.
        layers: By their names.
        seen: What they met.
        measure: The change of the outputs of the model as it is.
        tolerance: The largest change.
    """
    tried = {name: layers[name].folded(observed.nearest()) for name, observed in seen.items()}

    def effect(names: Sequence[str]) -> float:
        before = {name: layers[name].put(model, tried[name]) for name in names}
        found = measure()
        for name, pair in before.items():
            layers[name].put(model, pair)
        return found

    alone = {name: effect([name]) for name in tried}
    order = sorted(
        (name for name in alone if alone[name] <= tolerance),
        key=lambda name: alone[name] ** 2 / seen[name].size,
    )
    count = bisect_right(range(1, len(order) + 1), tolerance, key=lambda n: effect(order[:n]))
    for name, pair in tried.items():
        layer = layers[name]
        layer.outcome = replace(layer.outcome, effect=alone[name])
        if name in order[:count]:
            assert layer.source is not None
            layer.put(model, pair)
            layer.outcome = replace(
                layer.outcome, into=layer.source.name, whole=True, reason=None, constant=True
            )
