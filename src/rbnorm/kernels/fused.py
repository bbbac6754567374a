"""The whole layer, forward and backward, in closed form: sweep, table math, sweep.

Every symbol is per instance n and channel c unless it says otherwise:

    m, v   mean and biased variance of x over the L positions             first sweep
    d      (1 + w_m) m - E            with E, V per channel: from the batch, or the running ones
    r      (V + eps)^(-1/2)           per channel
    t      d r                        = K(o), the instance mean of the standardised feature
    g      R(w_v t + w_b)
    z      gamma g r (x - m) + (beta + gamma g t)                         second sweep
    y      act(z + residual)          in the same sweep

which is the paper's definition rearranged: o = r (x - m) + t. Writing it around the instance mean
costs no extra memory traffic and keeps float32 exact when the mean is large against the spread.

This is the portable implementation of ``torch.ops.rbnorm.forward`` and ``backward``; what it is
made of can be traced and differentiated. The compiled ones say the same in ``csrc/layer.h``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rbnorm.definition import RESTRICTIONS
from rbnorm.kernels import phases

# R'(s), given s and g = R(s).
DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": lambda s, g: g * (1 - g),
    "tanh": lambda s, g: 1 - g * g,
    "hardsigmoid": lambda s, g: (s.abs() <= 3).to(s.dtype) / 6,
    "softsign": lambda s, g: (1 + s.abs()).square().reciprocal(),
    "identity": lambda s, g: torch.ones_like(s),
}

# act(z), given the negative slope of the leaky one.
ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "none": lambda z, slope: z,
    "relu": lambda z, slope: F.relu(z),
    "leaky_relu": F.leaky_relu,
    "silu": lambda z, slope: F.silu(z),
    "hardswish": lambda z, slope: F.hardswish(z),
}


def _hardswish_slope(z: Tensor) -> Tensor:
    return torch.where(z <= -3, 0.0, torch.where(z >= 3, 1.0, z / 3 + 0.5))


def _silu_slope(z: Tensor) -> Tensor:
    gate = z.sigmoid()
    return gate * (1 + z * (1 - gate))


# act'(z), in the same order.
ACTIVATION_SLOPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "none": lambda z, slope: torch.ones_like(z),
    "relu": lambda z, slope: (z > 0).to(z.dtype),
    "leaky_relu": lambda z, slope: torch.where(z > 0, torch.ones_like(z), slope),
    "silu": lambda z, slope: _silu_slope(z),
    "hardswish": lambda z, slope: _hardswish_slope(z),
}


class Vectors(NamedTuple):
    """The per-channel parameters, each (C,) or None where the layer has none."""

    weight: Tensor | None
    bias: Tensor | None
    center_weight: Tensor | None
    scale_weight: Tensor | None
    scale_bias: Tensor | None


class Options(NamedTuple):
    """What a layer is beside its vectors; names as their indices, as the ops take them."""

    eps: float
    restrict: int
    activation: int = 0
    slope: float = 0.0


class Batch:
    """What is known of the whole batch from the instances at hand; here they are all of it.

    The layer asks it whatever mixes instances, so that it can be asked of many processes too.
    ``sweeps`` are the passes over big tensors, ``known`` what it found out for its statistics.
    """

    sweeps: Any = phases
    known: tuple[Tensor, ...] = ()

    def again(self) -> Batch:
        """The same batch for another, differentiable pass."""
        return self

    def statistics(
        self, m: Tensor, v: Tensor, center_weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``m - mean_n m`` (N, C), and E and V (C,)."""
        deviation = self.deviation(m)
        d = amplify(deviation, center_weight)
        E = amplify(m.mean(0), center_weight)
        return deviation, E, torch.addcmul(v, d, d).mean(0)

    def deviation(self, m: Tensor) -> Tensor:
        """``m - mean_n m``, taken around the first instance so that a large common mean cancels."""
        offset = m - m[:1]
        return offset - offset.mean(0)

    def means(self, *tables: Tensor) -> Sequence[Tensor]:
        """The mean over the instances of each table."""
        return [table.mean(0) for table in tables]

    def size(self, x: Tensor) -> int | Tensor:
        """The number of values per channel."""
        return x.numel() // x.shape[1]


WHOLE = Batch()


def amplify(table: Tensor, center_weight: Tensor | None) -> Tensor:
    """``(1 + w_m) table``."""
    return table if center_weight is None else torch.addcmul(table, center_weight, table)


def _scale(table: Tensor, factor: Tensor | None) -> Tensor:
    return table if factor is None else factor * table


class _Gate(NamedTuple):
    """The gate and, without its parameters, the 1 it stands for."""

    s: Tensor | None
    g: Tensor | None
    gain: Tensor | None  # gamma g


def _gate(t: Tensor, p: Vectors, restrict: str) -> _Gate:
    if p.scale_weight is None or p.scale_bias is None:
        return _Gate(None, None, p.weight)
    s = torch.addcmul(p.scale_bias, p.scale_weight, t)
    g = RESTRICTIONS[restrict](s)
    return _Gate(s, g, _scale(g, p.weight))


def _affine_tables(
    t: Tensor, r: Tensor, gain: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scale and shift of the second sweep."""
    shift = _scale(t, gain)
    return _scale(r, gain).expand_as(t), shift if bias is None else shift + bias


def normalise(
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    running: tuple[Tensor, Tensor] | None,
    options: Options,
    batch: Batch = WHOLE,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, m, E and V; by the statistics of x, or by the ``running`` (E, V). Differentiable."""
    if running is None:
        m, v = batch.sweeps.moments(x)
        deviation, E, V = batch.statistics(m, v, p.center_weight)
        d = amplify(deviation, p.center_weight)
    else:
        m, (E, V) = batch.sweeps.mean(x), running
        d = amplify(m, p.center_weight) - E
    r = (V + options.eps).rsqrt()
    t = d * r
    gain = _gate(t, p, list(RESTRICTIONS)[options.restrict]).gain
    scale, shift = _affine_tables(t, r, gain, p.bias)
    if residual is None and options.activation == 0:
        return batch.sweeps.affine(x, m, scale, shift), m, E, V
    z = phases.affine_table(x, m, scale, shift)
    z = z if residual is None else z + residual
    y = list(ACTIVATIONS.values())[options.activation](z, options.slope)
    return phases.standard(y.to(x.dtype)), m, E, V


def update(
    running: tuple[Tensor, Tensor],
    E: Tensor,
    V: Tensor,
    M: int | Tensor,
    momentum: float | Tensor,
) -> None:
    """Move the running statistics towards E and the unbiased V of M values, in their own dtype."""
    for buffer, batch in zip(running, (E, V * (M / (M - 1))), strict=True):
        factor = momentum.to(buffer.dtype) if isinstance(momentum, Tensor) else momentum
        buffer.lerp_(batch.detach().to(buffer.dtype), factor)


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    center_weight: Tensor | None,
    scale_weight: Tensor | None,
    scale_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    restrict: int,
    activation: int,
    slope: float,
    batch: Batch = WHOLE,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, m, E and V, the last two new tensors; in training updates the running statistics."""
    p = Vectors(weight, bias, center_weight, scale_weight, scale_bias)
    running = None
    if not training and running_mean is not None and running_var is not None:
        running = running_mean.clone(), running_var.clone()
    options = Options(eps, restrict, activation, slope)
    y, m, E, V = normalise(x, residual, p, running, options, batch)
    if training and running_mean is not None and running_var is not None:
        update((running_mean, running_var), E, V, batch.size(x), momentum)
    return y, m, E, V


def inference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    center_weight: Tensor | None,
    scale_weight: Tensor | None,
    scale_bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    restrict: int,
    activation: int,
    slope: float,
) -> Tensor:
    """Give y alone, in evaluation."""
    p = Vectors(weight, bias, center_weight, scale_weight, scale_bias)
    options = Options(eps, restrict, activation, slope)
    return normalise(x, residual, p, (running_mean, running_var), options)[0]


def backward(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    m: Tensor,
    E: Tensor,
    V: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    center_weight: Tensor | None,
    scale_weight: Tensor | None,
    scale_bias: Tensor | None,
    training: bool,
    eps: float,
    restrict: int,
    activation: int,
    slope: float,
    want_dx: bool,
    want_dresidual: bool,
    batch: Batch = WHOLE,
) -> tuple[Tensor, ...]:
    """Gradients for x, the residual and the five vectors; of size 0 where there is none."""
    p = Vectors(weight, bias, center_weight, scale_weight, scale_bias)
    r, deviation = (V + eps).rsqrt(), batch.deviation(m) if training else m
    d = amplify(deviation, center_weight)
    t = (d if training else d - E) * r
    gate = _gate(t, p, list(RESTRICTIONS)[restrict])
    scale, shift = _affine_tables(t, r, gate.gain, bias)
    nothing = x.new_empty(0)
    dresidual = nothing
    if activation:
        z = phases.affine_table(x, m, scale, shift)
        z = z if residual is None else z + residual
        dy = dy * list(ACTIVATION_SLOPES.values())[activation](z, slope)
        dresidual = phases.standard(dy.to(x.dtype)) if want_dresidual else nothing
    S1, S2 = batch.sweeps.grad_moments(dy, x, m)  # means over the positions, of dz and dz (x - m)
    statistics = batch if training else None
    u, x_scale, tables = _backward_tables(S1, S2, t, r, deviation, p, gate, restrict, statistics)
    dx = nothing
    if want_dx and x_scale is not None:
        dx = batch.sweeps.grad_affine(dy, x, m, scale, x_scale, u)
    elif want_dx:
        dx = batch.sweeps.affine(dy, None, scale, u).to(x.dtype)
    L, empty = phases.positions(x), r.new_empty(0)
    found = (
        empty if vector is None or table is None else L * table.sum(0)
        for vector, table in zip(p, tables, strict=True)
    )
    return dx, dresidual, *found


def _backward_tables(
    S1: Tensor,
    S2: Tensor,
    t: Tensor,
    r: Tensor,
    deviation: Tensor,
    p: Vectors,
    gate: _Gate,
    restrict: int,
    batch: Batch | None,
) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...]]:
    """What the second sweep adds, its factor of x - m, and the vectors' gradients per instance.

    Through the statistics of ``batch`` more reaches x; None where they are constants.
    """
    D = torch.addcmul(r * S2, t, S1)  # dz o
    h, ho = _scale(S1, gate.gain), _scale(D, gate.gain)  # do and do o
    dw_m = dw_v = dw_b = None
    u = torch.zeros_like(S1)
    if gate.s is not None and gate.g is not None and p.scale_weight is not None:
        derivative = list(DERIVATIVES.values())[restrict](gate.s, gate.g)
        dw_b = _scale(D, p.weight) * derivative
        dw_v = dw_b * t
        u = dw_b * p.scale_weight
        h, ho = h + u, torch.addcmul(ho, u, t)
    x_scale = None
    if batch is not None:
        mean, slope = batch.means(h, ho)
        common = torch.addcmul(mean, t, slope)
        h, u, x_scale = h - common, u - common, -r * r * slope
    u = r * u
    if p.center_weight is not None:
        # In training `h` sums to 0 over the instances, so the common mean drops out of dw_m;
        # keeping it would cost float32 the result where the mean is large.
        Z = r * h
        dw_m = deviation * Z
        u = torch.addcmul(u, p.center_weight, Z)
    dgamma = D if gate.g is None else gate.g * D
    return u, x_scale, (dgamma, S1, dw_m, dw_v, dw_b)
