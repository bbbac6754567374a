"""The whole layer out of a backend's phases: phase, tables, phase.

``forward``, ``inference`` and ``backward`` have the signatures of the ops of these names, which a
backend may override where one call for all is faster; see :mod:`rbnorm.kernels`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
    x: Tensor, residual: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, m, E and V, the last two new tensors; in training updates the running statistics."""
    p, (mean, var, training, momentum) = Vectors(*rest[:5]), rest[5:9]
    running = None if training else (mean.clone(), var.clone())
    y, m, E, V, batch = normalise(portable, x, residual, p, running, Options(*rest[9:]))
    if batch is not None and mean is not None:
        tables.update((mean, var), E, V, batch.M, momentum)
    return y, m, E, V


def inference(x: Tensor, residual: Tensor | None, *rest: Any) -> Tensor:
    """Only y, in evaluation."""
    running, options = (rest[5], rest[6]), Options(*rest[7:])
    return normalise(portable, x, residual, Vectors(*rest[:5]), running, options).y


def backward(
    dy: Tensor, x: Tensor, residual: Tensor | None, m: Tensor, E: Tensor, V: Tensor, *rest: Any
) -> Gradients:
    """Gradients of x, the residual and the five vectors; without elements where there is none."""
    p, training, options, wanted = Vectors(*rest[:5]), rest[5], Options(*rest[6:10]), rest[10:]
    batch = batches.alone(m, positions(x)) if training else None
    return differentiate(portable, dy, x, residual, m, E, V, p, options, batch, None, *wanted)
