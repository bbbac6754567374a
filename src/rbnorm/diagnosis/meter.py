"""What a normaliser sees and does, instance by instance, from one sweep over its input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from rbnorm.definition import RESTRICTIONS, STATISTICS, per_channel, resolve
from rbnorm.diagnosis.tally import Tally
from rbnorm.kernels import active
from rbnorm.kernels.phases import positions, table_dtype
from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm.layers.options import NAMES

# Beyond which a pair of instance and channel counts as a case: of the distance of the means in
# running standard deviations, and of ln(instance variance / running variance).
LIMITS: Final = {
    "mean_below": 0.5,
    "mean_above": 0.5,
    "var_below": math.log(2),
    "var_above": math.log(2),
}


def wide(table: Tensor) -> Tensor:
    """In float64, on the same device if that has it."""
    table = table.detach()
    return (table.cpu() if table.device.type == "mps" else table).double()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each instance and channel, (N, C) in float64."""
    m, v = active(x.device.type).phases.moments(x)
    return wide(m), wide(v)


def _vector(layer: _BatchNorm, name: str, default: float) -> Tensor | float:
    value = getattr(layer, name, None)
    return default if value is None else wide(value)


def batch_or_running(layer: _BatchNorm, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and variance that the layer uses in evaluation, (C,)."""
    if layer.running_mean is not None and layer.running_var is not None:
        return wide(layer.running_mean), wide(layer.running_var)
    return pooled(mean, var)


def pooled(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of all values, (C,), from those of the instances, (N, C)."""
    E = mean.mean(0)
    return E, (var + (mean - E).square()).mean(0)


@dataclass(frozen=True)
class Normalised:
    """(N, C) tables of one input: of ``x`` itself, and of ``z``, which is what is normalised.

    For BatchNorm, ``z`` is ``x``; for RBN it is ``x + w_m K(x)``.
    """

    x_mean: Tensor
    x_var: Tensor
    mean: Tensor
    var: Tensor
    z: Tensor | None = None


def normalised(layer: _BatchNorm, x: Tensor) -> Normalised:
    """The moments of ``x`` and of ``z``; one sweep unless K is something else than the mean."""
    m, v = moments(x)
    if not isinstance(layer, _RepresentativeBatchNorm):
        return Normalised(m, v, m, v)
    if layer.calibration.statistic == "mean":
        return Normalised(m, v, (1 + _vector(layer, "center_weight", 0.0)) * m, v)
    z = x.to(table_dtype(x.dtype))
    if layer.center_weight is not None:
        K = resolve("statistic", layer.calibration.statistic, STATISTICS)
        z = z + per_channel(layer.center_weight, z) * K(z)
    return Normalised(m, v, *moments(z), z)


def gate(layer: _BatchNorm, seen: Normalised, t: Tensor) -> Tensor | None:
    """``R(w_v K(o) + w_b)`` of each instance and channel, (N, C); None for a layer without.

    Args:
        layer: The layer.
        seen: Its input.
        t: The instance means of ``o``.
    """
    if not isinstance(layer, _RepresentativeBatchNorm) or layer.scale_weight is None:
        return None
    K = t
    if seen.z is not None:
        E, V = batch_or_running(layer, seen.mean, seen.var)
        z = wide(seen.z)
        o = (z - per_channel(E, z)) * per_channel((V + layer.eps).rsqrt(), z)
        K = resolve("statistic", layer.calibration.statistic, STATISTICS)(o)
        K = K + o.new_zeros(o.shape[:2] + (1,) * (o.ndim - 2))  # one for each instance and channel
    R = resolve("restrict", layer.calibration.restrict, RESTRICTIONS)
    w_v, w_b = (per_channel(wide(getattr(layer, name)), K) for name in NAMES[1:])
    g = R(w_v * K + w_b)
    return g.flatten(2).mean(2) if g.ndim > 2 else g


class LayerMeter:
    """Everything that is kept of one layer during a pass."""

    def __init__(self, layer: _BatchNorm) -> None:
        self.layer = layer
        self.calls = self.instances = 0
        self.names: tuple[str, ...] = ()
        self.rows = Tally()

    def __call__(self, layer: _BatchNorm, x: Tensor) -> None:
        """Take in one input; the signature is that of a listener of a pass."""
        self.calls += 1
        if not len(x):
            return
        self.instances += len(x)
        seen = normalised(layer, x)
        rows = self._rows(seen, positions(x))
        self.names = tuple(rows)
        self.rows.add(torch.stack(list(rows.values()), 1))

    def _rows(self, seen: Normalised, length: int) -> dict[str, Tensor]:
        layer = self.layer
        E, V = batch_or_running(layer, seen.mean, seen.var)
        t = (seen.mean - E) * (V + layer.eps).rsqrt()
        calibrated = isinstance(layer, _RepresentativeBatchNorm)
        gates = gate(layer, seen, t)
        nothing = torch.full_like(t, torch.nan)
        tracked = layer.running_mean is not None
        offset = t if tracked else nothing
        # A single position has no variance that could be compared.
        log_var = ((seen.var + layer.eps) / (V + layer.eps)).log()
        log_var = log_var if tracked and length > 1 else nothing
        output = _vector(layer, "weight", 1.0) * t * (1.0 if gates is None else gates)
        return {
            "mean": seen.mean,
            "var": seen.var,
            "mean_offset": offset,
            "log_var_ratio": log_var,
            **four_cases(offset, log_var),
            "output_mean": output + _vector(layer, "bias", 0.0),
            **({"x_mean": seen.x_mean, "x_var": seen.x_var} if calibrated else {}),
            **({} if gates is None else {"gate": gates}),
        }


def four_cases(offset: Tensor, log_var: Tensor) -> dict[str, Tensor]:
    """Which statistics (N, C) are beyond the limits, 1 or 0; NaN where one is not finite."""
    limit = offset.new_tensor(list(LIMITS.values())).view(-1, 1)
    signed = torch.stack([-offset, offset, -log_var, log_var], 1)
    beyond = (signed > limit).double().where(signed.isfinite(), torch.nan)
    return dict(zip(LIMITS, beyond.unbind(1), strict=True))
