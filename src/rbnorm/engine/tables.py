"""The math between the phases, forward and backward, on (N, C) numbers.

Every symbol is per instance n and channel c unless it says otherwise:

    m, v   mean and biased variance of x over the L positions             first phase
    d      (1 + w_m) m - E            with E, V per channel: from the batch, or the running ones
    r      (V + eps)^(-1/2)           per channel
    t      d r                        = K(o), the instance mean of the standardised feature
    g      R(w_v t + w_b)
    z      gamma g r (x - m) + (beta + gamma g t)                         second phase
    y      act(z + residual)          in the same phase

which is the paper's definition rearranged: o = r (x - m) + t. Writing it around the instance mean
costs no extra memory traffic and keeps float32 exact when the mean is large against the spread.
The letters are those of ``docs/math.md``; compiled overrides say the same in their languages.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rbnorm.elementwise import RESTRICTION_OF
from rbnorm.engine.batch import Batch, Group, means
from rbnorm.engine.call import Options, Running, Vectors


class Forward(NamedTuple):
    """The tables of the second phase, and what backward reuses."""

    scale: Tensor  # gamma g r
    shift: Tensor  # beta + gamma g t
    t: Tensor
    r: Tensor
    s: Tensor | None  # w_v t + w_b; None, like g, without a gate
    g: Tensor | None
    gain: Tensor | None  # gamma g; None for 1


def _times(table: Tensor, factor: Tensor | None) -> Tensor:
    return table if factor is None else factor * table


def forward(d: Tensor, V: Tensor, p: Vectors, options: Options) -> Forward:
    """The tables of ``y = act(scale (x - m) + shift + residual)``."""
    r = (V + options.eps).rsqrt()
    t = d * r
    s = g = None
    gain = p.weight
    if p.scale_weight is not None and p.scale_bias is not None:
        s = p.scale_bias + p.scale_weight * t  # in operators that every exporter knows
        g = RESTRICTION_OF[options.restrict](s)
        gain = _times(g, p.weight)
    shift = _times(t, gain)
    shift = shift if p.bias is None else shift + p.bias
    scale = _times(r, gain)
    return Forward(scale.expand(t.shape) if g is None else scale, shift, t, r, s, g, gain)


class Backward(NamedTuple):
    """Of ``dx = scale dz + x_scale (x - m) + u``, and each vector's gradient per instance."""

    x_scale: Tensor | None  # (C,); None for 0, in evaluation
    u: Tensor
    gradients: tuple[Tensor | None, ...]


def backward(
    S1: Tensor,
    S2: Tensor,
    m: Tensor,
    f: Forward,
    p: Vectors,
    options: Options,
    L: int,
    batch: Batch | None,
    group: Group | None = None,
) -> Backward:
    """From the instance means S1 of dz and S2 of dz (x - m).

    Through the statistics of ``batch`` more reaches x; it is None where they are constants.
    """
    D = torch.addcmul(f.r * S2, f.t, S1)  # dz o
    h, ho = _times(S1, f.gain), _times(D, f.gain)  # do, and do o
    dw_m = dw_v = dw_b = None
    e = torch.zeros_like(S1)
    if f.s is not None and p.scale_weight is not None:
        dw_b = _times(D, p.weight) * RESTRICTION_OF[options.restrict].grad(f.s)  # q
        dw_v = dw_b * f.t
        e = dw_b * p.scale_weight
        h, ho = h + e, torch.addcmul(ho, e, f.t)
    x_scale = None
    if batch is not None:
        a1, a2 = means(h, ho, batch, L, group)
        common = torch.addcmul(a1, f.t, a2)
        h, e, x_scale = h - common, e - common, -f.r * f.r * a2
    u = f.r * e
    if p.center_weight is not None:
        # In training Z sums to 0 over the instances, so the common mean drops out of dw_m;
        # keeping it would cost float32 the result where the mean is large.
        Z = f.r * h
        dw_m = (m if batch is None else batch.deviation(m)) * Z
        u = torch.addcmul(u, p.center_weight, Z)
    dgamma = D if f.g is None else f.g * D
    return Backward(x_scale, u, (dgamma, S1, dw_m, dw_v, dw_b))


def update(
    running: Running,
    E: Tensor,
    V: Tensor,
    M: int | Tensor,
    momentum: float | Tensor,
) -> None:
    """Move the running statistics towards E and the unbiased V of M values, in their own dtype.

    As BatchNorm does it: an infinite one stays infinite, where a difference would make it NaN. A
    number of values that only the device knows may be too small for a variance: then they stay.
    """
    for buffer, batch in zip(running, (E, V * (M / (M - 1))), strict=True):
        factor = momentum.to(buffer.dtype) if isinstance(momentum, Tensor) else momentum
        step = batch.detach().to(buffer.dtype) * factor
        if isinstance(M, Tensor):
            buffer.copy_(torch.where(M > 1, buffer * (1 - factor) + step, buffer))
        else:
            buffer.mul_(1 - factor).add_(step)
