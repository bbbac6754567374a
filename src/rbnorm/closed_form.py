"""RBN in closed form: sweep, table math, sweep, and its own backward.

Every symbol is per instance n and channel c unless it says otherwise:

    m, v   mean and biased variance of x over the L positions             first sweep
    d      (1 + w_m) m - E            with E, V per channel: from the batch, or the running ones
    r      (V + eps)^(-1/2)           per channel
    t      d r                        = K(o), the instance mean of the standardised feature
    g      R(w_v t + w_b)
    y      gamma g r (x - m) + (beta + gamma g t)                         second sweep

which is the paper's definition rearranged: o = r (x - m) + t. Writing it around the instance mean
costs no extra memory traffic and keeps float32 exact when the mean is large against the spread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rbnorm.ops import portable
from rbnorm.reference import RESTRICTIONS

# R'(s), given s and g = R(s): what the closed-form backward needs to know of a restriction.
DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": lambda s, g: g * (1 - g),
    "tanh": lambda s, g: 1 - g * g,
    "hardsigmoid": lambda s, g: (s.abs() <= 3).to(s.dtype) / 6,
    "softsign": lambda s, g: (1 + s.abs()).square().reciprocal(),
    "identity": lambda s, g: torch.ones_like(s),
}


class Vectors(NamedTuple):
    """The per-channel parameters, each (C,) or None where the layer has none."""

    weight: Tensor | None
    bias: Tensor | None
    center_weight: Tensor | None
    scale_weight: Tensor | None
    scale_bias: Tensor | None


class _Standardised(NamedTuple):
    """What the table math derives from an instance's mean: see the module's docstring."""

    t: Tensor
    s: Tensor | None
    g: Tensor | float


def _deviation(m: Tensor) -> Tensor:
    """``m - mean_n m``, taken around the first instance so that a large common mean cancels."""
    offset = m - m[:1]
    return offset - offset.mean(0)


def _amplify(center_weight: Tensor | None, table: Tensor) -> Tensor:
    return table if center_weight is None else (1 + center_weight) * table


def _standardise(d: Tensor, r: Tensor, p: Vectors, restrict: str) -> _Standardised:
    t = d * r
    if p.scale_weight is None or p.scale_bias is None:
        return _Standardised(t, None, 1.0)
    s = p.scale_weight * t + p.scale_bias
    return _Standardised(t, s, RESTRICTIONS[restrict](s))


def _or_one(weight: Tensor | None) -> Tensor | float:
    return 1.0 if weight is None else weight


def _forward(
    sweeps: Any,
    x: Tensor,
    p: Vectors,
    running: tuple[Tensor, Tensor] | None,
    eps: float,
    restrict: str,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The forward pass over ``sweeps``: ``torch.ops.rbnorm``, or ``portable`` to be traced.

    ``running`` is (E, r) in evaluation and None in training. Returns y, m, and in training E, V.
    """
    E = V = None
    if running is None:
        m, v = sweeps.moments(x)
        d = _amplify(p.center_weight, _deviation(m))
        E = _amplify(p.center_weight, m.mean(0))
        V = (v + d * d).mean(0)
        r = (V + eps).rsqrt()
    else:
        m, (mu, r) = sweeps.mean(x), running
        d = _amplify(p.center_weight, m) - mu
    t, _, g = _standardise(d, r, p, restrict)
    gain = _or_one(p.weight) * g
    shift = gain * t if p.bias is None else gain * t + p.bias
    return sweeps.affine(x, m, (gain * r).expand_as(m), shift), m, E, V


class _ClosedForm(torch.autograd.Function):
    """The closed form with its own backward; saves x, the (N, C) means and (C,) vectors."""

    # forward and setup_context in one: apply() binds the arguments of split ones by `inspect`,
    # which costs 100 us a call.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        running: tuple[Tensor, Tensor] | None,
        eps: float,
        restrict: str,
        *vectors: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        y, m, E, V = _forward(torch.ops.rbnorm, x, Vectors(*vectors), running, eps, restrict)
        ctx.training, ctx.eps, ctx.restrict = running is None, eps, restrict
        ctx.save_for_backward(x, m, *vectors, *(running or (V,)))
        ctx.mark_non_differentiable(*(table for table in (E, V) if table is not None))
        ctx.set_materialize_grads(False)
        return y, E, V

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dy = grads[0]
        x, m, *rest = ctx.saved_tensors
        p, statistics = Vectors(*rest[:5]), rest[5:]
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
        if dy is None:
            found: list[Tensor | None] = [None] * len(wanted)
        elif torch.is_grad_enabled():
            found = _differentiable_backward(ctx, dy, x, p, statistics, wanted)
        else:
            found = _backward(ctx, dy, x, m, p, statistics)
        dx, *dp = (g if keep else None for g, keep in zip(found, wanted, strict=True))
        return dx, None, None, None, *dp


def _backward(
    ctx: Any, dy: Tensor, x: Tensor, m: Tensor, p: Vectors, statistics: list[Tensor]
) -> list[Tensor | None]:
    """Gradients for x and the five vectors; a vector the layer lacks gets a spare table or None."""
    sweeps = torch.ops.rbnorm
    L = portable.positions(x)
    if ctx.training:
        r = (statistics[0] + ctx.eps).rsqrt()
        deviation = _deviation(m)
        d = _amplify(p.center_weight, deviation)
    else:
        mu, r = statistics
        d = _amplify(p.center_weight, m) - mu
    t, s, g = _standardise(d, r, p, ctx.restrict)
    gain = _or_one(p.weight) * g

    S1, S2 = sweeps.grad_moments(dy, x, m)
    D = r * S2 + t * S1  # sum_i dy o
    h = gain * S1  # sum_i do
    ho = gain * D  # sum_i do o
    dw_m = dw_v = dw_b = e = None
    if s is not None and isinstance(g, Tensor):
        q = _or_one(p.weight) * D * DERIVATIVES[ctx.restrict](s, g)
        dw_v, dw_b, e = (q * t).sum(0), q.sum(0), q * p.scale_weight
        h, ho = h + e, ho + e * t
    dbeta, dgamma = S1.sum(0), (g * D).sum(0)

    if ctx.training:
        M = x.shape[0] * L
        a1, a2 = h.sum(0) / M, ho.sum(0) / M
        residual = -(a1 + t * a2)
        Z = r * (h + L * residual)  # sum_i dz
    else:
        residual, Z = torch.zeros_like(t), r * h
    u = r * (residual if e is None else residual + e / L)
    if p.center_weight is not None:
        # sum_n Z = 0 in training, so the common mean drops out; keeping it would cost float32 dw_m.
        dw_m = ((deviation if ctx.training else m) * Z).sum(0)
        u = u + p.center_weight * Z / L
    scale = (gain * r).expand_as(m)
    if ctx.training:
        dx = sweeps.grad_affine(dy, x, m, scale, -r * r * a2, u)
    else:
        dx = sweeps.affine(dy, None, scale, u).to(x.dtype)
    return [dx, dgamma, dbeta, dw_m, dw_v, dw_b]


def _differentiable_backward(
    ctx: Any,
    dy: Tensor,
    x: Tensor,
    p: Vectors,
    statistics: list[Tensor],
    wanted: list[bool],
) -> list[Tensor | None]:
    """The same gradients, differentiable in dy, x and the vectors: the double backward."""
    running = None if ctx.training else (statistics[0], statistics[1])
    with torch.enable_grad():
        y = _forward(portable, x, p, running, ctx.eps, ctx.restrict)[0]
        chosen = [v for v, keep in zip((x, *p), wanted, strict=True) if keep and v is not None]
        found = iter(torch.autograd.grad(y, chosen, dy, create_graph=True))
    return [next(found) if keep else None for keep in wanted]


def _traced() -> bool:
    """Whether somebody follows the operations: a compiler, ``torch.func``, or forward-mode AD."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def normalise(
    x: Tensor, p: Vectors, running: tuple[Tensor, Tensor] | None, eps: float, restrict: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise x, by its own statistics or by the ``running`` mean and variance, each (C,).

    ``p`` and ``running`` are in the table dtype, ``restrict`` is a name. Returns y and the (E, V)
    that were used, which carry no gradient. Compilers and transforms see plain PyTorch.
    """
    # What is saved for backward must survive a later update of the buffers: mu is a copy.
    fixed = None if running is None else (running[0].clone(), (running[1] + eps).rsqrt())
    E: Any
    V: Any
    if _traced():
        y, _, E, V = _forward(portable, x, p, fixed, eps, restrict)
    else:
        y, E, V = _ClosedForm.apply(x, fixed, eps, restrict, *p)
    return y, *(running or (E, V))
