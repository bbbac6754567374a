"""The ops' signatures over the kernels. Nothing here waits for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rbnorm.kernels import phases
from rbnorm.kernels.triton import sweeps
from rbnorm.kernels.triton import tables as table_math
from rbnorm.kernels.triton.plan import Plan, prepare, tables, vectors

_chosen: dict[Any, dict[str, Any]] = {}


def _sweep(kernel: Any, p: Plan, *args: Any, **options: int) -> None:
    """Launch a sweep; past the tuner once it has chosen, its bookkeeping costs 20 us a call."""
    key = (kernel, args[0].dtype, p.options["WIDTH"], p.options["CHANNELS_LAST"])
    found = _chosen.get(key)
    if found is None and sweeps.untimed():
        kernel.fn[p.grid](*args, **options, **p.options, **sweeps.CONFIGS[0].all_kwargs())
    elif found is None:
        kernel[p.grid](*args, **options, **p.options)
        _chosen[key] = kernel.best_config.all_kwargs()
    else:
        kernel.fn[p.grid](*args, **options, **p.options, **found)


def _moments(p: Plan, x: Tensor, with_variance: bool) -> tuple[Tensor, Tensor | None]:
    """Mean and variance of every chunk of every row."""
    (mean,) = tables(x, 1, p.chunks)
    var = tables(x, 1, p.chunks)[0] if with_variance else None
    _sweep(sweeps.moments, p, x, mean, var, *p.sizes)
    return mean, var


def _merge(p: Plan, x: Tensor, mean: Tensor, var: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Mean and variance of every row, from those of its chunks."""
    if p.chunks == 1:
        return mean, var
    m, v = tables(x, 2)
    table_math.merge[p.table_grid](mean, var, m, v, *p.sizes, **p.table_options)
    return m, None if var is None else v


def mean(x: Tensor) -> Tensor:
    """As :func:`rbnorm.kernels.phases.mean`."""
    if not x.numel():
        return phases.mean(x)
    p, x, _ = prepare(x)
    with torch.cuda.device_of(x):
        return _merge(p, x, *_moments(p, x, with_variance=False))[0]


def moments(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """As :func:`rbnorm.kernels.phases.moments`."""
    if not x.numel():
        return phases.moments(x)
    p, x, _ = prepare(x)
    with torch.cuda.device_of(x):
        return _merge(p, x, *_moments(p, x, with_variance=True))


def affine(x: Tensor, center: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """As :func:`rbnorm.kernels.phases.affine`."""
    if not x.numel():
        return phases.affine(x, center, scale, shift)
    p, x, _ = prepare(x)
    center, y = center if center is None else center.contiguous(), torch.empty_like(x)
    with torch.cuda.device_of(x):
        _sweep(
            sweeps.affine, p, x, None, center, scale.contiguous(), shift.contiguous(), y,
            *p.sizes, 0.0, ACTIVATION=0,
        )  # fmt: skip
    return y


def grad_moments(dy: Tensor, x: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`rbnorm.kernels.phases.grad_moments`."""
    if not x.numel():
        return phases.grad_moments(dy, x, center)
    p, x, (dy,) = prepare(x, dy)
    first, second = tables(x, 2, p.chunks)
    with torch.cuda.device_of(x):
        _sweep(
            sweeps.grad_moments, p, dy, x, None, center.contiguous(), first, second, *[None] * 9,
            *p.sizes, 0.0, 0.0, RESTRICT=0, ACTIVATION=0,
        )  # fmt: skip
        return _merge(p, x, first, None)[0], _merge(p, x, second, None)[0]


def grad_affine(
    dy: Tensor, x: Tensor, center: Tensor, dy_scale: Tensor, x_scale: Tensor, shift: Tensor
) -> Tensor:
    """As :func:`rbnorm.kernels.phases.grad_affine`."""
    if not x.numel():
        return phases.grad_affine(dy, x, center, dy_scale, x_scale, shift)
    p, x, (dy,) = prepare(x, dy)
    dx = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _sweep(
            sweeps.grad_affine, p, dy, x, None, center.contiguous(), dy_scale.contiguous(), None,
            x_scale.contiguous(), shift.contiguous(), dx, None, *p.sizes, 0.0, ACTIVATION=0,
        )  # fmt: skip
    return dx


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
    """``y = act(gain r (x - m) + bias + gain t + residual)`` with m, E and V, in three launches.

    ``x`` and ``residual`` are (N, C, ...), m is (N, C), vectors and running buffers are (C,), the
    latter two in the table dtype. In training the running buffers, where given, are updated in
    place; in evaluation E and V are copies of them. ``y`` is rounded once to the dtype of ``x``.
    """
    if not x.numel():
        return _forward_of_nothing(x, None if training else (running_mean, running_var))
    p, x, (residual,) = prepare(x, residual)
    M = p.sizes[0] * p.sizes[2]
    y, (scale, shift), (E, V) = torch.empty_like(x), tables(x, 2), vectors(x, 2)
    with torch.cuda.device_of(x):
        mean, var = _moments(p, x, with_variance=training)
        m = mean if p.chunks == 1 else tables(x, 1)[0]
        table_math.forward[p.table_grid](
            mean, var, m, scale, shift, E, V, running_mean, running_var,
            weight, bias, center_weight, scale_weight, scale_bias,
            *p.sizes, momentum, M / max(M - 1, 1), eps,
            TRAINING=training, RESTRICT=restrict, **p.table_options,
        )  # fmt: skip
        _sweep(
            sweeps.affine, p, x, residual, m, scale, shift, y,
            *p.sizes, slope, ACTIVATION=activation,
        )  # fmt: skip
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
    """``y`` of :func:`forward` in evaluation."""
    return forward(
        x, residual, weight, bias, center_weight, scale_weight, scale_bias,
        running_mean, running_var, False, 0.0, eps, restrict, activation, slope,
    )[0]  # fmt: skip


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
) -> tuple[Tensor, ...]:
    """Gradients for x, the residual and the five vectors, in three launches.

    m, E and V are what ``forward`` returned. A gradient that is not wanted, or of a vector that is
    absent, has no elements.
    """
    given = (weight, bias, center_weight, scale_weight, scale_bias)
    if not x.numel():
        return _backward_of_nothing(x, residual, given, want_dx, want_dresidual)
    p, x, (dy, residual) = prepare(x, dy, residual)
    grads = [None if v is None else vectors(x, 1)[0] for v in given]
    first, second = tables(x, 2, p.chunks)
    (scale,) = tables(x, 1)
    shift = tables(x, 1)[0] if activation else None
    u = tables(x, 1)[0] if want_dx else None
    x_scale = vectors(x, 1)[0] if want_dx and training else None
    dx = torch.empty_like(x) if want_dx else None
    dresidual = torch.empty_like(x) if want_dresidual else None
    with torch.cuda.device_of(x):
        _sweep(
            sweeps.grad_moments, p, dy, x, residual, m, first, second, scale, shift, E, V, *given,
            *p.sizes, eps, slope, RESTRICT=restrict, ACTIVATION=activation,
        )  # fmt: skip
        table_math.backward[p.table_grid](
            first, second, m, E, V, weight, center_weight, scale_weight, scale_bias,
            None if activation else scale, x_scale, u, *grads,
            *p.sizes, eps, TRAINING=training, RESTRICT=restrict, **p.table_options,
        )  # fmt: skip
        if want_dx or want_dresidual:
            _sweep(
                sweeps.grad_affine, p, dy, x, residual, m, scale, shift, x_scale, u, dx, dresidual,
                *p.sizes, slope, ACTIVATION=activation,
            )  # fmt: skip
    return _or_empty(x, dx, dresidual, grads)


def _or_empty(x: Tensor, dx: Any, dresidual: Any, grads: Any) -> tuple[Tensor, ...]:
    """The gradients, those that are missing without elements."""
    data = [x.new_empty(0) if g is None else g for g in (dx, dresidual)]
    missing = x.new_empty(0, dtype=phases.table_dtype(x.dtype))
    return *data, *(missing.clone() if g is None else g for g in grads)


def _forward_of_nothing(x: Tensor, running: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Without a single value every mean is 0 / 0; the running buffers keep theirs."""
    m, E, V = (t.fill_(torch.nan) for t in (*tables(x, 1), *vectors(x, 2)))
    if running is not None:
        E, V = running[0].clone(), running[1].clone()
    return torch.empty_like(x), m, E, V


def _backward_of_nothing(
    x: Tensor,
    residual: Tensor | None,
    given: tuple[Tensor | None, ...],
    want_dx: bool,
    want_dresidual: bool,
) -> tuple[Tensor, ...]:
    """The sums over no values."""
    dx = torch.empty_like(x) if want_dx else None
    dresidual = torch.empty_like(x) if want_dresidual else None
    return _or_empty(x, dx, dresidual, [None if v is None else torch.zeros_like(v) for v in given])
