"""The whole layer on a device: no Python runs between its launches, and nothing waits for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, empty_like

from rbnorm.kernels.phases import Gradients
from rbnorm.kernels.triton import evaluation, sweeps, tables
from rbnorm.kernels.triton.calls import Call, Handle, Launcher, call_of, on_device
from rbnorm.kernels.triton.plan import Plan

_Options = tuple[float, float, int, int]  # eps, the activation's slope, restriction, activation


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
    plan = call.plan
    if plan is None:
        return _forward_of_nothing(x, call, training, running_mean, running_var)
    vectors = (weight, bias, center_weight, scale_weight, scale_bias, running_mean, running_var)
    call.check(x, training, eps, residual, *vectors)
    x, residual = call.arranged(x), call.arranged(residual)
    y, m = empty_like(x), empty_like(call.table)
    E, V = empty_like(call.vector), empty_like(call.vector)
    tensors = (x, residual, y, m, E, V, *vectors)
    launcher, handles = call.launcher(tensors, "forward", training, restrict, activation)
    options = eps, slope, restrict, activation
    if not training and plan.whole is not None:
        _evaluate(launcher, plan, handles, options)
    else:
        _three(launcher, call, plan, handles, training, momentum, options)
    launcher.done()
    return y, m, E, V


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


def _evaluate(launcher: Launcher, plan: Plan, handles: Sequence[Handle], options: _Options) -> None:
    """The one launch of evaluation."""
    assert plan.whole is not None
    launcher.launch(
        evaluation.evaluate, plan.whole_programs, plan.whole_warps, *handles, *plan.sizes[:3],
        *options, *plan.whole,
    )  # fmt: skip


def _three(
    launcher: Launcher,
    call: Call,
    plan: Plan,
    handles: Sequence[Handle],
    training: bool,
    momentum: float,
    options: _Options,
) -> None:
    """The three launches of training: sweep, tables, sweep."""
    x, residual, y, m, E, V, *vectors = handles
    eps, slope, restrict, activation = options
    _held, (scale, shift, variances, means) = call.scratch(launcher, 4)
    mean, var = m if plan.chunks == 1 else means, variances if training else None
    launcher.sweep(sweeps.moments, plan, x, mean, var, *plan.sizes)
    M = plan.sizes[0] * plan.sizes[2]
    launcher.launch(
        tables.forward, plan.table_programs, plan.table_warps, mean, var, m, scale, shift, E, V,
        *vectors, *plan.sizes, momentum, M / max(M - 1, 1), eps, training, restrict, *plan.table,
    )  # fmt: skip
    launcher.sweep(
        sweeps.affine, plan, x, m, scale, shift, residual, y, *plan.sizes, slope, activation
    )


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
    plan = call.plan
    vectors = (weight, bias, center_weight, scale_weight, scale_bias, running_mean, running_var)
    if plan is None or plan.whole is None:
        return forward(x, residual, *vectors, False, 0.0, eps, restrict, activation, slope)[0]
    call.check(x, False, eps, residual, *vectors)
    x, residual = call.arranged(x), call.arranged(residual)
    y = empty_like(x)
    tensors = (x, residual, y, None, None, None, *vectors)
    launcher, handles = call.launcher(tensors, "inference", restrict, activation)
    _evaluate(launcher, plan, handles, (eps, slope, restrict, activation))
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
) -> Gradients:
    """Gradients for x, the residual and the five vectors, in three launches.

    m, E and V are what ``forward`` returned. A gradient that is not wanted, or of a vector that is
    absent, is None.
    """
    call = call_of(x)
    plan = call.plan
    vectors = (weight, bias, center_weight, scale_weight, scale_bias)
    x, dy, residual = call.arranged(x), call.arranged(dy), call.arranged(residual)
    grads = [None if v is None else empty_like(call.vector) for v in vectors]
    dx = empty_like(x) if want_dx else None
    dresidual = empty_like(x) if want_dresidual else None
    if plan is None:  # sums over no values
        return dx, dresidual, *[g if g is None else g.zero_() for g in grads]
    tensors = (dy, x, residual, m, E, V, dx, dresidual, *vectors, *grads)
    launcher, handles = call.launcher(tensors, "backward", training, restrict, activation)
    dy_, x_, residual_, m_, E_, V_, dx_, dresidual_, *others = handles
    gamma, _, w_m, w_v, w_b = others[:5]
    _held, (S1, S2, scale, shift, u, x_scale) = call.scratch(launcher, 6)
    shift_, u_ = shift if activation else None, u if want_dx else None
    x_scale_ = x_scale if want_dx and training else None
    launcher.sweep(
        sweeps.grad_moments, plan, dy_, x_, m_, scale, shift_, residual_, S1, S2, E_, V_,
        *others[:5], *plan.sizes, eps, slope, restrict, activation,
    )  # fmt: skip
    launcher.launch(
        tables.backward, plan.table_programs, plan.table_warps, S1, S2, m_, E_, V_, gamma,
        w_m, w_v, w_b, None if activation else scale, x_scale_, u_, *others[5:],
        *plan.sizes, eps, training, restrict, *plan.table,
    )  # fmt: skip
    if want_dx or want_dresidual:
        launcher.sweep(
            sweeps.grad_affine, plan, dy_, x_, m_, scale, shift_, x_scale_, u_, residual_,
            dx_, dresidual_, *plan.sizes, slope, activation,
        )  # fmt: skip
    launcher.done()
    return dx, dresidual, *grads
