"""What a normaliser sees and does, instance by instance, from one sweep over its input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from rbnorm.definition import RESTRICTIONS, STATISTICS, per_channel, resolve
from rbnorm.diagnosis.tally import ClassTally, GroupTally, Tally
from rbnorm.kernels import active
from rbnorm.kernels.phases import positions, table_dtype
from rbnorm.layers.base import _RepresentativeBatchNorm

SATURATED = 0.1  # of the slope that R has at 0


@dataclass(frozen=True)
class Thresholds:
    """Beyond what an instance's statistic counts as one of the four cases.

    Attributes:
        mean: Distance of the instance mean from the running mean, in running standard deviations.
        log_var: Distance of ln(instance variance / running variance) from 0; ln 2 is a factor of 2.
    """

    mean: float = 0.5
    log_var: float = math.log(2)

    def __post_init__(self) -> None:
        for name in ("mean", "log_var"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"threshold {name} must be a non-negative number, got {value}")


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
    statistic: Tensor
    z: Tensor | None = None


def normalised(layer: _BatchNorm, x: Tensor) -> Normalised:
    """The moments of ``x`` and of ``z``; one sweep unless K is something else than the mean."""
    m, v = moments(x)
    if not isinstance(layer, _RepresentativeBatchNorm):
        return Normalised(m, v, m, v, m)
    w_m = _vector(layer, "center_weight", 0.0)
    if layer.calibration.statistic == "mean":
        return Normalised(m, v, (1 + w_m) * m, v, m)
    x = x.to(table_dtype(x.dtype))
    K = resolve("statistic", layer.calibration.statistic, STATISTICS)(x)
    z = x if layer.center_weight is None else x + per_channel(layer.center_weight, x) * K
    return Normalised(m, v, *moments(z), wide(active(x.device.type).phases.mean(K.expand_as(x))), z)


def gate(layer: _RepresentativeBatchNorm, seen: Normalised, t: Tensor) -> dict[str, Tensor]:
    """``R(w_v K(o) + w_b)`` of each instance and channel, and where R is flat; (N, C).

    Args:
        layer: The layer.
        seen: Its input.
        t: The instance means of ``o``.
    """
    if layer.scale_weight is None or layer.scale_bias is None:
        return {}
    w_v, w_b = wide(layer.scale_weight), wide(layer.scale_bias)
    K = t
    if seen.z is not None:
        E, V = batch_or_running(layer, seen.mean, seen.var)
        z = wide(seen.z)
        o = (z - per_channel(E, z)) * per_channel((V + layer.eps).rsqrt(), z)
        K = resolve("statistic", layer.calibration.statistic, STATISTICS)(o)
        K = K + o.new_zeros(o.shape[:2] + (1,) * (o.ndim - 2))  # one for each instance and channel
    R = resolve("restrict", layer.calibration.restrict, RESTRICTIONS)
    with torch.enable_grad():
        s = (per_channel(w_v, K) * K + per_channel(w_b, K)).requires_grad_()
        zero = torch.zeros_like(s[:1, :1]).requires_grad_()
        g = R(s)
        slope, steepest = torch.autograd.grad([g.sum(), R(zero).sum()], [s, zero])
    flat = (slope.abs() < SATURATED * steepest.abs()).double()
    flat = flat.where(s.isfinite(), torch.nan)
    return {
        "gate": g.detach().flatten(2).mean(2) if g.ndim > 2 else g.detach(),
        "gate_saturated": flat.flatten(2).mean(2) if flat.ndim > 2 else flat,
    }


class LayerMeter:
    """Everything that is kept of one layer during a pass."""

    def __init__(self, layer: _BatchNorm, thresholds: Thresholds) -> None:
        self.layer, self.thresholds = layer, thresholds
        self.calls = self.instances = 0
        self.names: tuple[str, ...] = ()
        self.rows, self.classes, self.groups = Tally(), ClassTally(), GroupTally(layer.eps)

    def __call__(self, layer: _BatchNorm, x: Tensor, labels: Tensor | None) -> None:
        """Take in one input; the signature is that of a listener of a pass."""
        self.calls += 1
        if not len(x):
            return
        self.instances += len(x)
        seen = normalised(layer, x)
        rows = self._rows(seen, positions(x))
        self.names = tuple(rows)
        self.rows.add(torch.stack(list(rows.values()), 1))
        self.groups.add(seen.mean, seen.var)
        if labels is not None:
            self.classes.add(seen.statistic, labels.to(seen.statistic.device))

    def _rows(self, seen: Normalised, length: int) -> dict[str, Tensor]:
        layer = self.layer
        E, V = batch_or_running(layer, seen.mean, seen.var)
        t = (seen.mean - E) * (V + layer.eps).rsqrt()
        calibrated = isinstance(layer, _RepresentativeBatchNorm)
        gates = gate(layer, seen, t) if isinstance(layer, _RepresentativeBatchNorm) else {}
        nothing = torch.full_like(t, torch.nan)
        tracked = layer.running_mean is not None
        offset = t if tracked else nothing
        # A single position has no variance that could be compared.
        log_var = ((seen.var + layer.eps) / (V + layer.eps)).log()
        log_var = log_var if tracked and length > 1 else nothing
        output = _vector(layer, "weight", 1.0) * t * gates.get("gate", 1.0)
        return {
            "mean": seen.mean,
            "var": seen.var,
            "mean_offset": offset,
            "log_var_ratio": log_var,
            **self._cases(offset, log_var),
            "output_mean": output + _vector(layer, "bias", 0.0),
            **({"x_mean": seen.x_mean, "x_var": seen.x_var} if calibrated else {}),
            **gates,
        }

    def _cases(self, offset: Tensor, log_var: Tensor) -> dict[str, Tensor]:
        mean, var = self.thresholds.mean, self.thresholds.log_var
        limits = offset.new_tensor([mean, mean, var, var]).unsqueeze(1)
        signed = torch.stack([-offset, offset, -log_var, log_var], 1)
        beyond = (signed > limits).double().where(signed.isfinite(), torch.nan)
        names = ("mean_below", "mean_above", "var_below", "var_above")
        return dict(zip(names, beyond.unbind(1), strict=True))
