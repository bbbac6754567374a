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


class _Saved(NamedTuple):
    """What backward needs; mu is None in training."""

    x: Tensor
    m: Tensor
    r: Tensor
    mu: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    center_weight: Tensor | None
    scale_weight: Tensor | None
    scale_bias: Tensor | None

    @property
    def vectors(self) -> Vectors:
        return Vectors(*self[4:])


class _Forward(NamedTuple):
    """What a forward pass computes; E and V are None in evaluation."""

    y: Tensor
    m: Tensor
    r: Tensor
    E: Tensor | None
    V: Tensor | None


def _deviation(m: Tensor) -> Tensor:
    """``m - mean_n m``, taken around the first instance so that a large common mean cancels."""
    offset = m - m[:1]
    return offset - offset.mean(0)


def _amplify(table: Tensor, center_weight: Tensor | None) -> Tensor:
    """``(1 + w_m) table``."""
    return table if center_weight is None else torch.addcmul(table, center_weight, table)


def _scale(table: Tensor, factor: Tensor | None) -> Tensor:
    return table if factor is None else factor * table


def _gate(t: Tensor, p: Vectors, restrict: str) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """``s`` and ``g = R(s)``, or nothing without the scaling calibration."""
    if p.scale_weight is None or p.scale_bias is None:
        return None, None
    s = torch.addcmul(p.scale_bias, p.scale_weight, t)
    return s, RESTRICTIONS[restrict](s)


def _forward(
    sweeps: Any,
    x: Tensor,
    p: Vectors,
    running: tuple[Tensor, Tensor] | None,
    eps: float,
    restrict: str,
) -> _Forward:
    """The forward pass over ``sweeps``: ``torch.ops.rbnorm``, or ``portable`` to be traced.

    ``running`` is (E, r) in evaluation and None in training.
    """
    E = V = None
    if running is None:
        m, v = sweeps.moments(x)
        d = _amplify(_deviation(m), p.center_weight)
        E = _amplify(m.mean(0), p.center_weight)
        V = torch.addcmul(v, d, d).mean(0)
        r = (V + eps).rsqrt()
    else:
        m, (mu, r) = sweeps.mean(x), running
        d = _amplify(m, p.center_weight) - mu
    t = d * r
    _, g = _gate(t, p, restrict)
    gain = p.weight if g is None else _scale(g, p.weight)
    shift = _scale(t, gain)
    if p.bias is not None:
        shift = shift + p.bias
    return _Forward(sweeps.affine(x, m, _scale(r, gain).expand_as(m), shift), m, r, E, V)


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
        y, m, r, E, V = _forward(torch.ops.rbnorm, x, Vectors(*vectors), running, eps, restrict)
        ctx.eps, ctx.restrict = eps, restrict
        ctx.save_for_backward(x, m, r, None if running is None else running[0], *vectors)
        ctx.mark_non_differentiable(*(table for table in (E, V) if table is not None))
        ctx.set_materialize_grads(False)
        return y, E, V

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, saved = grads[0], _Saved(*ctx.saved_tensors)
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
        if dy is None:
            found: list[Tensor | None] = [None] * len(wanted)
        elif torch.is_grad_enabled():
            found = _differentiable_backward(dy, saved, wanted, ctx.eps, ctx.restrict)
        else:
            found = _backward(dy, saved, ctx.restrict, wanted[0])
        dx, *dp = (g if keep else None for g, keep in zip(found, wanted, strict=True))
        return dx, None, None, None, *dp


def _backward(dy: Tensor, saved: _Saved, restrict: str, want_dx: bool) -> list[Tensor | None]:
    """Gradients for x and the five vectors; tables are means over the positions, not sums."""
    x, m, r, mu = saved[:4]
    p, sweeps = saved.vectors, torch.ops.rbnorm
    deviation = _deviation(m) if mu is None else m
    d = _amplify(deviation, p.center_weight)
    t = (d if mu is None else d - mu) * r
    s, g = _gate(t, p, restrict)
    gain = p.weight if g is None else _scale(g, p.weight)

    S1, S2 = sweeps.grad_moments(dy, x, m)
    D = torch.addcmul(r * S2, t, S1)  # dy o
    h, ho = _scale(S1, gain), _scale(D, gain)  # do and do o
    dw_m = dw_v = dw_b = None
    u: Tensor | float = 0.0
    if p.scale_weight is not None and s is not None and g is not None:
        dw_b = _scale(D, p.weight) * DERIVATIVES[restrict](s, g)
        dw_v = dw_b * t
        u = dw_b * p.scale_weight
        h, ho = h + u, torch.addcmul(ho, u, t)
    if mu is None:  # what reaches x through E and V
        slope = ho.mean(0)
        common = torch.addcmul(h.mean(0), t, slope)
        h, u = h - common, u - common
    u = r * u
    if p.center_weight is not None:
        # In training `h` sums to 0 over the instances, so the common mean drops out of dw_m;
        # keeping it would cost float32 the result where the mean is large.
        Z = r * h
        dw_m = deviation * Z
        u = torch.addcmul(u, p.center_weight, Z)
    scale = _scale(r, gain).expand_as(m)
    dx = None
    if want_dx and mu is None:
        dx = sweeps.grad_affine(dy, x, m, scale, -r * r * slope, u)
    elif want_dx:
        dx = sweeps.affine(dy, None, scale, u.expand_as(m)).to(x.dtype)
    dgamma = D if g is None else g * D
    tables = (dgamma, S1, dw_m, dw_v, dw_b)
    L = portable.positions(x)
    return [dx, *(None if table is None else L * table.sum(0) for table in tables)]


def _differentiable_backward(
    dy: Tensor,
    saved: _Saved,
    wanted: list[bool],
    eps: float,
    restrict: str,
) -> list[Tensor | None]:
    """The same gradients, differentiable in dy, x and the vectors: the double backward."""
    running = None if saved.mu is None else (saved.mu, saved.r)
    with torch.enable_grad():
        # Views are differentiated in place of their bases, whose history may have them in common.
        x = saved.x.view_as(saved.x)
        p = Vectors(*(v if v is None else v.view_as(v) for v in saved.vectors))
        y = _forward(portable, x, p, running, eps, restrict).y
        chosen = [v for v, keep in zip((x, *p), wanted, strict=True) if keep and v is not None]
        found = iter(torch.autograd.grad(y, chosen, dy, create_graph=True))
    return [next(found) if keep else None for keep in wanted]


def _traced() -> bool:
    """Whether somebody follows the operations: a compiler, a tracer, a transform, forward mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def normalise(
    x: Tensor, p: Vectors, running: tuple[Tensor, Tensor] | None, eps: float, restrict: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise x, by its own statistics or by the ``running`` mean and variance, each (C,).

    ``p`` and ``running`` are in the table dtype, ``restrict`` is a name. Returns y and the (E, V)
    that were used. Compilers, tracers and transforms see plain PyTorch.
    """
    # What is saved for backward must survive a later update of the buffers: mu is a copy.
    fixed = None if running is None else (running[0].clone(), (running[1] + eps).rsqrt())
    E: Any
    V: Any
    if _traced():
        y, _, _, E, V = _forward(portable, x, p, fixed, eps, restrict)
    else:
        y, E, V = _ClosedForm.apply(x, fixed, eps, restrict, *p)
    return y, *(running or (E, V))
