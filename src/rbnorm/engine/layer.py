"""The whole layer by a backend's kernels: one call, or phase, tables, phase."""

from __future__ import annotations

from torch import Tensor

from rbnorm.engine import tables
from rbnorm.engine.batch import Batch, Group, alone, amplify, statistics
from rbnorm.engine.call import Call, Options, Running, Vectors
from rbnorm.kernels.backends import PORTABLE, Kernels
from rbnorm.kernels.phases import Gradients, positions, table_dtype

# y, and for backward m, E, V and, of phases in training, the batch.
Result = tuple[Tensor, Tensor, Tensor, Tensor, Batch | None]


def normalise(kernels: Kernels, call: Call, options: Options) -> Result:
    """In training by the batch's statistics, towards which ``running`` moves; else by ``running``.

    By phases that are differentiable the result is; E and V may be ``running`` itself.
    """
    x, residual, p, running, training, momentum, group = call
    batch: Batch | None = None
    M: int | Tensor
    if kernels.whole is not None:
        mean, var = running or (None, None)
        if not training or _is_written(x, running, momentum):
            return *kernels.whole.forward(
                x, residual, *p, mean, var, training, momentum, *options
            ), None
        y, m, E, V = kernels.whole.forward(x, residual, *p, None, None, True, 0.0, *options)
        M = x.numel() // x.shape[1]
    else:
        if training:
            m, v = kernels.phases.moments(x)
            batch, E, V = statistics(m, v, p.center_weight, positions(x), group)
            M, d = batch.M, amplify(batch.deviation(m), p.center_weight)
        else:
            assert running is not None
            m, (E, V) = kernels.phases.mean(x), running
            d = amplify(m, p.center_weight) - E
        f = tables.forward(d, V, p, options)
        y = kernels.phases.affine(
            x, m, f.scale, f.shift, residual, options.activation, options.slope
        )
    if training and running is not None:
        tables.update(running, E, V, M, momentum)
    return y, m, E, V, batch


def _is_written(x: Tensor, running: Running | None, momentum: float | Tensor) -> bool:
    """Whether kernels update the running statistics: of the table dtype, without gaps."""
    if running is None or isinstance(momentum, Tensor):
        return running is None
    mean, var = running
    written = mean.dtype is var.dtype is table_dtype(x.dtype)
    return written and mean.is_contiguous() and var.is_contiguous()


def differentiate(
    kernels: Kernels,
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    m: Tensor,
    E: Tensor,
    V: Tensor,
    p: Vectors,
    training: bool,
    options: Options,
    batch: Batch | None,
    group: Group | None = None,
    want_dx: bool = True,
    want_dresidual: bool = False,
) -> Gradients:
    """Gradients of x, the residual and the vectors; without elements where there is none.

    ``batch`` is what :func:`normalise` gave.
    """
    if kernels.whole is not None:
        wanted = want_dx, want_dresidual
        return kernels.whole.backward(dy, x, residual, m, E, V, *p, training, *options, *wanted)
    L = positions(x)
    d = amplify(m, p.center_weight) - E
    if training:
        batch = alone(m, L) if batch is None else batch
        d = amplify(batch.deviation(m), p.center_weight)
    f = tables.forward(d, V, p, options)
    activated = options.activation > 0
    shift, epilogue = f.shift if activated else None, (residual, options.activation, options.slope)
    scale = f.scale if activated else None
    S1, S2 = kernels.phases.grad_moments(dy, x, m, scale, shift, *epilogue)
    b = tables.backward(S1, S2, m, f, p, options, L, batch, group)
    dx = dresidual = x.new_empty(0)
    if want_dx or want_dresidual:
        dx, dresidual = kernels.phases.grad_affine(
            dy, x, m, f.scale, shift, b.x_scale, b.u, *epilogue, want_dx, want_dresidual
        )
    none = m.new_empty(0)
    dweight, dbias, dcenter, dscale, dshift = (
        none if vector is None or table is None else L * table.sum(0)
        for vector, table in zip(p, b.gradients, strict=True)
    )
    return dx, dresidual, dweight, dbias, dcenter, dscale, dshift


# Whole, in plain PyTorch.


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
    running = None if running_mean is None or running_var is None else (running_mean, running_var)
    if running is not None and not training:
        running = running[0].clone(), running[1].clone()
    call = Call(x, residual, p, running, training, momentum)
    return normalise(PORTABLE, call, Options(eps, restrict, activation, slope))[:4]


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
    call = Call(x, residual, p, (running_mean, running_var), False, 0.0)
    return normalise(PORTABLE, call, Options(eps, restrict, activation, slope))[0]


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
    wanted = want_dx, want_dresidual
    return differentiate(
        PORTABLE, dy, x, residual, m, E, V, p, training, options, None, None, *wanted
    )
