"""The whole layer by a backend's kernels: one call, or phase, tables, phase."""

from __future__ import annotations

from torch import Tensor

from rbnorm.engine import tables
from rbnorm.engine.batch import Batch, Group, alone, amplify, statistics
from rbnorm.engine.call import Call, Options, Running, Vectors
from rbnorm.kernels.backends import PORTABLE, Kernels
from rbnorm.kernels.phases import Gradients, Unfit, positions, table_dtype

# y, and for backward m, E, V and, of phases in training, the batch.
Result = tuple[Tensor, Tensor, Tensor, Tensor, Batch | None]


def normalise(kernels: Kernels, call: Call, options: Options) -> Result:
    """In training by the batch's statistics, towards which ``running`` moves; else by ``running``.

    By phases that are differentiable the result is; E and V may be ``running`` itself.

    Raises:
        Unfit: Kernels for the whole layer do not take this; nothing has changed.
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


def output(kernels: Kernels, call: Call, options: Options) -> Tensor:
    """Only ``y``, where no gradient is asked for; otherwise as :func:`normalise`."""
    if kernels.whole is None or call.training:
        return normalise(kernels, call, options)[0]
    assert call.running is not None
    return kernels.whole.inference(call.x, call.residual, *call.p, *call.running, *options)


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
    """Gradients of x, the residual and the vectors; None where there is none, or none wanted.

    ``batch`` is what :func:`normalise` gave. What a kernel does not take goes by plain PyTorch.
    """
    if kernels.whole is not None:
        at = dy, x, residual, m, E, V, *p, training, *options, want_dx, want_dresidual
        try:
            return kernels.whole.backward(*at)
        except Unfit:
            kernels = PORTABLE
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
    dx = dresidual = None
    if want_dx or want_dresidual:
        dx, dresidual = kernels.phases.grad_affine(
            dy, x, m, f.scale, shift, b.x_scale, b.u, *epilogue, want_dx, want_dresidual
        )
    dp = (
        None if vector is None or table is None else L * table.sum(0)
        for vector, table in zip(p, b.gradients, strict=True)
    )
    return dx, dresidual, *dp
