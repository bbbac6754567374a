"""The ops' signatures over the kernels. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, empty_like

from rbnorm import elementwise
from rbnorm.kernels import phases
from rbnorm.kernels.triton import elementwise as functions
from rbnorm.kernels.triton import evaluation, sweeps
from rbnorm.kernels.triton import tables as table_math
from rbnorm.kernels.triton.calls import Call, Handle, Launcher, call_of, on_device
from rbnorm.kernels.triton.plan import Plan

_NO_PARAMETERS = (None,) * 7
_WRONG = elementwise.mismatch("Triton's file", functions.RESTRICTIONS, functions.ACTIVATIONS)
if _WRONG:
    raise ImportError(_WRONG)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [t if t is None or t.is_contiguous() else t.contiguous() for t in tensors]


def _handle(launcher: Launcher, t: Tensor | None) -> Handle:
    """A new tensor as the launcher takes it."""
    return t.data_ptr() if launcher.ready and t is not None else t


def _merge(
    launcher: Launcher, call: Call, p: Plan, mean: Tensor, var: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and, where ``var`` is given, variance of every row, from those of its chunks."""
    if p.chunks == 1:
        return mean, mean if var is None else var
    m, v = empty_like(call.table), None if var is None else empty_like(call.table)
    launcher.launch(
        table_math.merge, p.table_programs, p.table_warps,
        *(_handle(launcher, t) for t in (mean, var, m, v)), *p.sizes, *p.table,
    )  # fmt: skip
    return m, m if v is None else v


def _moments(x: Tensor, with_variance: bool) -> tuple[Tensor, Tensor] | None:
    """The mean, and the variance or the mean again; None where there is nothing to average."""
    call = call_of(x)
    p = call.plan
    if p is None:
        return None
    x = call.arranged(x)
    launcher, (x_,) = call.launcher((x,), "moments", with_variance)
    mean = empty_like(call.chunks)
    var = empty_like(call.chunks) if with_variance else None
    launcher.sweep(sweeps.moments, p, x_, _handle(launcher, mean), _handle(launcher, var), *p.sizes)
    found = _merge(launcher, call, p, mean, var)
    launcher.done()
    return found


@on_device
def mean(x: Tensor) -> Tensor:
    """As :func:`rbnorm.kernels.phases.mean`."""
    found = _moments(x, with_variance=False)
    return phases.mean(x) if found is None else found[0]


@on_device
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`rbnorm.kernels.phases.moments`."""
    return _moments(x, with_variance=True) or phases.moments(x)


@on_device
def affine(
    x: Tensor,
    m: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: int = 0,
    slope: float = 0.0,
) -> Tensor:
    """As :func:`rbnorm.kernels.phases.affine`."""
    call = call_of(x)
    p = call.plan
    if p is None:
        return torch.empty_like(x)
    x, residual = call.arranged(x), call.arranged(residual)
    y = empty_like(x)
    tensors = (x, *_contiguous(m, scale, shift), residual, y)
    launcher, given = call.launcher(tensors, "affine", activation)
    launcher.sweep(sweeps.affine, p, *given, *p.sizes, slope, activation)
    launcher.done()
    return y


@on_device
def grad_moments(
    dy: Tensor,
    x: Tensor,
    m: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    activation: int = 0,
    slope: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """As :func:`rbnorm.kernels.phases.grad_moments`."""
    call = call_of(x)
    p = call.plan
    if p is None:
        empty = torch.empty_like(m)
        return empty.fill_(torch.nan), empty.clone()
    x, dy, residual = call.arranged(x), call.arranged(dy), call.arranged(residual)
    tensors = (dy, x, *_contiguous(m, scale, shift), residual)
    launcher, given = call.launcher(tensors, "grad_moments", activation)
    first, second = empty_like(call.chunks), empty_like(call.chunks)
    launcher.sweep(
        sweeps.grad_moments, p, *given, _handle(launcher, first), _handle(launcher, second),
        *_NO_PARAMETERS, *p.sizes, 0.0, slope, 0, activation,
    )  # fmt: skip
    found = _merge(launcher, call, p, first)[0], _merge(launcher, call, p, second)[0]
    launcher.done()
    return found


@on_device
def grad_affine(
    dy: Tensor,
    x: Tensor,
    m: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    x_scale: Tensor | None,
    u: Tensor,
    residual: Tensor | None = None,
    activation: int = 0,
    slope: float = 0.0,
    want_dx: bool = True,
    want_dresidual: bool = False,
) -> tuple[Tensor, Tensor]:
    """As :func:`rbnorm.kernels.phases.grad_affine`."""
    call = call_of(x)
    p = call.plan
    x, dy, residual = call.arranged(x), call.arranged(dy), call.arranged(residual)
    dx = empty_like(x) if want_dx else None
    dresidual = empty_like(x) if want_dresidual else None
    if p is not None and (want_dx or want_dresidual):
        tables = _contiguous(m, scale, shift, x_scale, u if want_dx else None)
        tensors = (dy, x, *tables, residual, dx, dresidual)
        launcher, given = call.launcher(tensors, "grad_affine", activation)
        launcher.sweep(sweeps.grad_affine, p, *given, *p.sizes, slope, activation)
        launcher.done()
    dx, dresidual = _or_empty(call, dx, dresidual)
    return dx, dresidual


@on_device
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
    """``y = act(gain r (x - m) + bias + gain t + residual)`` with m, E and V.

    ``x`` and ``residual`` are (N, C, ...), m is (N, C), vectors and running buffers are (C,), the
    latter two in the table dtype. In training, three launches, the running buffers, where given,
    are updated in place; in evaluation, one launch where the rows are enough, E and V are copies
    of them. ``y`` is rounded once to the dtype of ``x``.
    """
    call = call_of(x)
    p = call.plan
    if p is None:
        return _forward_of_nothing(x, call, training, running_mean, running_var)
    vectors = (weight, bias, center_weight, scale_weight, scale_bias, running_mean, running_var)
    call.check(x, training, eps, residual, *vectors)
    x, residual = call.arranged(x), call.arranged(residual)
    y, m = empty_like(x), empty_like(call.table)
    E, V = empty_like(call.vector), empty_like(call.vector)
    tensors = (x, residual, y, m, E, V, *vectors)
    launcher, given = call.launcher(tensors, "forward", training, restrict, activation)
    options = eps, restrict, activation, slope
    if not training and p.whole is not None:
        _evaluate(launcher, p, given, options)
    else:
        _three(launcher, call, p, given, training, momentum, options)
    launcher.done()
    return y, m, E, V


_Options = tuple[float, int, int, float]  # eps, restriction, activation and its slope


def _evaluate(launcher: Launcher, p: Plan, given: Sequence[Handle], options: _Options) -> None:
    """The one launch of evaluation."""
    assert p.whole is not None
    x, residual, y, m, E, V, weight, bias, w_m, w_v, w_b, running_mean, running_var = given
    eps, restrict, activation, slope = options
    launcher.launch(
        evaluation.evaluate, p.whole_programs, p.whole_warps, x, residual, y, m, E, V,
        running_mean, running_var, weight, bias, w_m, w_v, w_b, *p.sizes[:3], eps, slope,
        restrict, activation, *p.whole,
    )  # fmt: skip


def _three(
    launcher: Launcher,
    call: Call,
    p: Plan,
    given: Sequence[Handle],
    training: bool,
    momentum: float,
    options: _Options,
) -> None:
    """The three launches of training: sweep, tables, sweep."""
    x, residual, y, m, E, V, weight, bias, w_m, w_v, w_b, running_mean, running_var = given
    eps, restrict, activation, slope = options
    _held, (scale, shift, variances, means) = call.scratch(launcher, 4)
    mean, var = m if p.chunks == 1 else means, variances if training else None
    launcher.sweep(sweeps.moments, p, x, mean, var, *p.sizes)
    M = p.sizes[0] * p.sizes[2]
    launcher.launch(
        table_math.forward, p.table_programs, p.table_warps, mean, var, m, scale, shift, E, V,
        running_mean, running_var, weight, bias, w_m, w_v, w_b, *p.sizes, momentum,
        M / max(M - 1, 1), eps, training, restrict, *p.table,
    )  # fmt: skip
    launcher.sweep(sweeps.affine, p, x, m, scale, shift, residual, y, *p.sizes, slope, activation)


@on_device
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
    call = call_of(x)
    p = call.plan
    if p is None or p.whole is None:
        return forward(
            x, residual, weight, bias, center_weight, scale_weight, scale_bias,
            running_mean, running_var, False, 0.0, eps, restrict, activation, slope,
        )[0]  # fmt: skip
    vectors = (weight, bias, center_weight, scale_weight, scale_bias, running_mean, running_var)
    call.check(x, False, eps, residual, *vectors)
    x, residual = call.arranged(x), call.arranged(residual)
    y = empty_like(x)
    tensors = (x, residual, y, None, None, None, *vectors)
    launcher, given = call.launcher(tensors, "inference", restrict, activation)
    _evaluate(launcher, p, given, (eps, restrict, activation, slope))
    launcher.done()
    return y


@on_device
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
    call = call_of(x)
    p = call.plan
    vectors = (weight, bias, center_weight, scale_weight, scale_bias)
    if p is None:
        return _backward_of_nothing(x, call, vectors, want_dx, want_dresidual)
    x, dy, residual = call.arranged(x), call.arranged(dy), call.arranged(residual)
    grads = [None if v is None else empty_like(call.vector) for v in vectors]
    dx = empty_like(x) if want_dx else None
    dresidual = empty_like(x) if want_dresidual else None
    tensors = (dy, x, residual, m, E, V, dx, dresidual, *vectors, *grads)
    launcher, given = call.launcher(tensors, "backward", training, restrict, activation)
    dy_, x_, residual_, m_, E_, V_, dx_, dresidual_, *others = given
    gamma, _, w_m, w_v, w_b = others[:5]
    _held, (first, second, scale, shift, u, p_) = call.scratch(launcher, 6)
    shift_, u_ = shift if activation else None, u if want_dx else None
    x_scale = p_ if want_dx and training else None
    launcher.sweep(
        sweeps.grad_moments, p, dy_, x_, m_, scale, shift_, residual_, first, second, E_, V_,
        *others[:5], *p.sizes, eps, slope, restrict, activation,
    )  # fmt: skip
    launcher.launch(
        table_math.backward, p.table_programs, p.table_warps, first, second, m_, E_, V_, gamma,
        w_m, w_v, w_b, None if activation else scale, x_scale, u_, *others[5:],
        *p.sizes, eps, training, restrict, *p.table,
    )  # fmt: skip
    if want_dx or want_dresidual:
        launcher.sweep(
            sweeps.grad_affine, p, dy_, x_, m_, scale, shift_, x_scale, u_, residual_, dx_,
            dresidual_, *p.sizes, slope, activation,
        )  # fmt: skip
    launcher.done()
    return _or_empty(call, dx, dresidual, *grads)


def _or_empty(
    call: Call, dx: Tensor | None, dresidual: Tensor | None, *grads: Tensor | None
) -> tuple[Tensor, ...]:
    """The gradients, those that are missing without elements."""
    return (
        empty_like(call.no_data) if dx is None else dx,
        empty_like(call.no_data) if dresidual is None else dresidual,
        *[empty_like(call.no_vector) if g is None else g for g in grads],
    )


def _forward_of_nothing(
    x: Tensor,
    call: Call,
    training: bool,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Without a single value every mean is 0 / 0; the running buffers keep theirs."""
    m, E, V = (empty_like(t).fill_(torch.nan) for t in (call.table, call.vector, call.vector))
    if not training and running_mean is not None and running_var is not None:
        E, V = running_mean.clone(), running_var.clone()
    return torch.empty_like(x), m, E, V


def _backward_of_nothing(
    x: Tensor,
    call: Call,
    vectors: tuple[Tensor | None, ...],
    want_dx: bool,
    want_dresidual: bool,
) -> tuple[Tensor, ...]:
    """The sums over no values."""
    dx = torch.empty_like(x) if want_dx else None
    dresidual = torch.empty_like(x) if want_dresidual else None
    zeros = [None if v is None else torch.zeros_like(call.vector) for v in vectors]
    return _or_empty(call, dx, dresidual, *zeros)
