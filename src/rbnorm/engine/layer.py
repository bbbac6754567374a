"""The whole layer out of a backend's phases: phase, tables, phase.

``forward``, ``inference`` and ``backward`` have the signatures of the ops of these names, which a
backend may override where one call for all is faster; see :mod:`rbnorm.kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rbnorm.engine import batch as batches
from rbnorm.engine import tables
from rbnorm.engine.batch import Batch, Group, amplify
from rbnorm.engine.tables import Options, Vectors
from rbnorm.kernels import phases as portable
from rbnorm.kernels.phases import Gradients, Phases, positions


class Result(NamedTuple):
    """What forward gives: y, and for backward m, E, V and, in training, the batch."""

    y: Tensor
    m: Tensor
    E: Tensor
    V: Tensor
    batch: Batch | None


def normalise(
    kernels: Phases,
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    running: tuple[Tensor, Tensor] | None,
    options: Options,
    group: Group | None = None,
) -> Result:
    """By the batch's statistics, or by the ``running`` (E, V); differentiable if the phases are."""
    batch = None
    if running is None:
        m, v = kernels.moments(x)
        batch, E, V = batches.statistics(m, v, p.center_weight, positions(x), group)
        d = amplify(batch.deviation(m), p.center_weight)
    else:
        m, (E, V) = kernels.mean(x), running
        d = amplify(m, p.center_weight) - E
    f = tables.forward(d, V, p, options)
    y = kernels.affine(x, m, f.scale, f.shift, residual, options.activation, options.slope)
    return Result(y, m, E, V, batch)


def differentiate(
    kernels: Phases,
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    m: Tensor,
    E: Tensor,
    V: Tensor,
    p: Vectors,
    options: Options,
    batch: Batch | None,
    group: Group | None = None,
    want_dx: bool = True,
    want_dresidual: bool = False,
) -> Gradients:
    """Gradients of x, the residual and the vectors; without elements where there is none.

    ``batch`` is None in evaluation.
    """
    d = amplify(m, p.center_weight) - E
    if batch is not None:
        d = amplify(batch.deviation(m), p.center_weight)
    f = tables.forward(d, V, p, options)
    activated = options.activation > 0
    shift, epilogue = f.shift if activated else None, (residual, options.activation, options.slope)
    S1, S2 = kernels.grad_moments(dy, x, m, f.scale if activated else None, shift, *epilogue)
    b = tables.backward(S1, S2, m, f, p, options, positions(x), batch, group)
    dx = dresidual = x.new_empty(0)
    if want_dx or want_dresidual:
        dx, dresidual = kernels.grad_affine(
            dy, x, m, f.scale, shift, b.x_scale, b.u, *epilogue, want_dx, want_dresidual
        )
    none, L = m.new_empty(0), positions(x)
    dweight, dbias, dcenter, dscale, dshift = (
        none if vector is None or table is None else L * table.sum(0)
        for vector, table in zip(p, b.gradients, strict=True)
    )
    return dx, dresidual, dweight, dbias, dcenter, dscale, dshift


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, m, E and V, the last two new tensors; in training updates the running statistics."""
    p = Vectors(weight, bias, center_weight, scale_weight, scale_bias)
    options = Options(eps, restrict, activation, slope)
    running = None if running_mean is None or running_var is None else (running_mean, running_var)
    fixed = None if training or running is None else (running[0].clone(), running[1].clone())
    y, m, E, V, batch = normalise(portable, x, residual, p, fixed, options)
    if batch is not None and running is not None:
        tables.update(running, E, V, batch.M, momentum)
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
    """Only y, in evaluation."""
    p = Vectors(weight, bias, center_weight, scale_weight, scale_bias)
    options = Options(eps, restrict, activation, slope)
    return normalise(portable, x, residual, p, (running_mean, running_var), options).y


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
) -> Gradients:
    """Gradients of x, the residual and the five vectors; without elements where there is none."""
    p = Vectors(weight, bias, center_weight, scale_weight, scale_bias)
    options = Options(eps, restrict, activation, slope)
    batch = batches.alone(m, positions(x)) if training else None
    return differentiate(
        portable, dy, x, residual, m, E, V, p, options, batch, None, want_dx, want_dresidual
    )
