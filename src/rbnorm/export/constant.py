"""Calibrations, or their gates alone, that constants can replace on given images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from rbnorm.export.layer import Parts, restriction, split
from rbnorm.export.trial import Pair, pair_of
from rbnorm.layers.base import _RepresentativeBatchNorm

# Of the second moment; below it a channel is constant, and nothing says how its output follows.
_NO_SPREAD = 1e-12

CONSTANTS: Final = ("calibration", "gate")
"""What constants may take the place of in a layer."""


class Observed:
    """What a layer did on some inputs, in sums per channel and float64.

    Attributes:
        count: Values per channel.
        size: Values of an instance.
    """

    size: int
    _like: Tensor  # an empty input, for rank and dtype

    def __init__(self, source: nn.Module, layer: _RepresentativeBatchNorm) -> None:
        assert layer.running_mean is not None
        self._source, self._layer, self._parts = source, layer, split(layer)
        self._origin = layer.running_mean.double()  # so that a large mean costs nothing
        self.count = self._instances = 0
        self._x = self._y = self._xx = self._xy = self._g = torch.zeros_like(self._origin)

    def __call__(self, layer: nn.Module, x: Tensor, _: Tensor | None) -> None:
        """Take in an input, as a listener of :func:`rbnorm.diagnosis.passes.run`."""
        self.size, self._like = x[:1].numel(), x[:0]
        y = _RepresentativeBatchNorm.forward(self._layer, x).double()
        x = x.double() - self._origin.reshape(-1, *(1,) * (x.ndim - 2))
        positions = tuple(range(2, x.ndim))
        axes = (0, *positions)
        self.count += x.numel() // x.shape[1]
        self._x, self._xx = self._x + x.sum(axes), self._xx + x.square().sum(axes)
        self._y, self._xy = self._y + y.sum(axes), self._xy + (x * y).sum(axes)
        if self._parts.gate is not None:
            a, b = self._parts.gate
            k = self._parts.gain * (x.mean(positions) if positions else x)
            gate = restriction(self._layer.calibration.restrict)(a * k + b)
            self._g, self._instances = self._g + gate.sum(0), self._instances + len(x)

    def without(self, what: str) -> Pair | None:
        """The pair with constants in the place of one of :data:`CONSTANTS`.

        Instead of the calibration the affine map per channel that is nearest to the layer in least
        squares; instead of the gate each channel's mean gate, where that is something new.
        """
        if what == "calibration":
            x, y = self._x / self.count, self._y / self.count
            second = self._xx / self.count
            spread, common = second - x * x, self._xy / self.count - x * y
            gain = torch.where(spread > _NO_SPREAD * second, common / spread, 0)
            return self._pair(Parts(gain, y - gain * (x + self._origin), None, None, None))
        gain, offset, center, gate, bias = self._parts
        if center is None or gate is None or self._layer.calibration.statistic != "mean":
            return None
        assert bias is not None
        g, (w_m, c) = self._g / self._instances, center
        return self._pair(Parts(g * gain, g * offset, (w_m, g * c + bias), None, None))

    def _pair(self, parts: Parts) -> Pair:
        return pair_of(self._source, self._layer, parts, self._like)


def put(model: nn.Module, old: Iterable[nn.Module], new: Iterable[nn.Module]) -> None:
    """Let each new module stand wherever the old one does."""
    places = {id(before): after for before, after in zip(old, new, strict=True)}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in places:
                parent._modules[name] = places[id(child)]


def variation(outputs: list[list[Tensor]], expected: list[list[Tensor]]) -> float:
    """Largest difference, relative to the largest deviation from the mean over all instances.

    Both are the outputs of every batch. Where instances have several shapes, or there is one
    instance, the deviation is that from 0.
    """
    found = zip(zip(*outputs, strict=True), zip(*expected, strict=True), strict=True)
    return max((_variation(actual, wanted) for actual, wanted in found), default=0.0)


def _variation(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    one_shape = all(o.ndim and o.shape[1:] == expected[0].shape[1:] for o in expected)
    groups = [torch.cat([o.double() for o in expected])] if one_shape else expected
    deviations = [o - o.mean(0) if one_shape and len(o) > 1 else o for o in groups]
    largest = max((float(d.double().abs().max()) for d in deviations if d.numel()), default=1.0)
    changes = (
        float((a.double() - e.double()).abs().max())
        for a, e in zip(actual, expected, strict=True)
        if e.numel()
    )
    return max(changes, default=0.0) / (largest or 1.0)


class Constants(NamedTuple):
    """What constants may take the place of in one layer.

    Attributes:
        what: One of :data:`CONSTANTS`.
        chosen: Whether they did.
        effect: What they do to the model's outputs in this layer alone.
    """

    what: str
    chosen: bool
    effect: float


def approximate(
    model: nn.Module,
    pairs: Mapping[str, Pair],
    seen: Mapping[str, Observed],
    effect: Callable[[], float],
    tolerance: float,
) -> dict[str, Constants]:
    """Put constants in the place of calibrations, then of gates, as far as the tolerance bears.

    Args:
        model: It has the pairs; it is changed.
        pairs: By the RBN layer's name, what stands in the model.
        seen: What the RBN layers met.
        effect: Measures the outputs of the model as it is.
        tolerance: The largest effect.
    """
    found: dict[str, Constants] = {}
    for what in CONSTANTS:
        others = {
            name: pair
            for name, observed in seen.items()
            if name not in found or not found[name].chosen
            if (pair := observed.without(what)) is not None
        }
        settled = _settle(model, pairs, others, what, seen, effect, tolerance)
        found |= {name: made for name, made in settled.items() if made.chosen or name not in found}
    return found


def _settle(
    model: nn.Module,
    pairs: Mapping[str, Pair],
    others: Mapping[str, Pair],
    what: str,
    seen: Mapping[str, Observed],
    measure: Callable[[], float],
    tolerance: float,
) -> dict[str, Constants]:
    """Put as many others in the place of pairs as the tolerance bears.

    The order is that of the squared effect for each value of the map that no longer costs, since
    effects of many layers add up as squares do. Of it the longest beginning is taken whose own
    effect, measured, is within the tolerance.
    """

    def effect(names: Sequence[str]) -> float:
        for name in names:
            put(model, pairs[name], others[name])
        found = measure()
        for name in names:
            put(model, others[name], pairs[name])
        return found

    alone = {name: effect([name]) for name in others}
    order = sorted(
        (name for name in alone if alone[name] <= tolerance),
        key=lambda name: alone[name] ** 2 / seen[name].size,
    )
    taken, refused, count = 0, len(order) + 1, len(order)  # in most models, all can be taken
    while refused - taken > 1:
        if effect(order[:count]) <= tolerance:
            taken = count
        else:
            refused = count
        count = (taken + refused) // 2
    for name in order[:taken]:
        put(model, pairs[name], others[name])
    return {name: Constants(what, name in order[:taken], alone[name]) for name in alone}
