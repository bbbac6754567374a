"""The five phases on a device; :class:`rbnorm.kernels.phases.Phases` says what each computes.

Nothing here waits for the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, empty_like

from rbnorm.kernels import phases as portable
from rbnorm.kernels.triton import sweeps, tables
from rbnorm.kernels.triton.calls import Call, Handle, Launcher, call_of, on_device

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rbnorm.kernels.phases import Epilogue

_NO_PARAMETERS = (None,) * 7


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [t if t is None or t.is_contiguous() else t.contiguous() for t in tensors]


def _handle(launcher: Launcher, t: Tensor | None) -> Handle:
    """A new tensor as the launcher takes it."""
    return t.data_ptr() if launcher.ready and t is not None else t


def _merge(
    launcher: Launcher, call: Call, mean: Tensor, var: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and, where ``var`` is given, variance of every row, from those of its chunks."""
    plan = call.plan
    assert plan is not None
    if plan.chunks == 1:
        return mean, mean if var is None else var
    m, v = empty_like(call.table), None if var is None else empty_like(call.table)
    launcher.launch(
        tables.merge, plan.table_programs, plan.table_warps,
        *(_handle(launcher, t) for t in (mean, var, m, v)), *plan.sizes, *plan.table,
    )  # fmt: skip
    return m, m if v is None else v


def _moments(x: Tensor, with_variance: bool) -> tuple[Tensor, Tensor]:
    """The mean, and the variance or the mean again."""
    call = call_of(x)
    plan = call.plan
    if plan is None:
        return portable.moments(x)
    x = call.arranged(x)
    launcher, (x_,) = call.launcher((x,), "moments", with_variance)
    mean = empty_like(call.chunks)
    var = empty_like(call.chunks) if with_variance else None
    launcher.sweep(
        sweeps.moments, plan, x_, _handle(launcher, mean), _handle(launcher, var), *plan.sizes
    )
    merged = _merge(launcher, call, mean, var)
    launcher.done()
    return merged


@on_device
def mean(x: Tensor) -> Tensor:
    """``m``."""
    return _moments(x, with_variance=False)[0]


@on_device
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """``m`` and ``v``."""
    return _moments(x, with_variance=True)


@on_device
def affine(
    x: Tensor, m: Tensor, scale: Tensor, shift: Tensor, *epilogue: Unpack[Epilogue]
) -> Tensor:
    """``y``."""
    residual, activation, slope = epilogue
    call = call_of(x)
    plan = call.plan
    if plan is None:
        return torch.empty_like(x)
    x, residual = call.arranged(x), call.arranged(residual)
    y = empty_like(x)
    tensors = (x, *_contiguous(m, scale, shift), residual, y)
    launcher, handles = call.launcher(tensors, "affine", activation)
    launcher.sweep(sweeps.affine, plan, *handles, *plan.sizes, slope, activation)
    launcher.done()
    return y


@on_device
def grad_moments(
    dy: Tensor,
    x: Tensor,
    m: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    *epilogue: Unpack[Epilogue],
) -> tuple[Tensor, Tensor]:
    """``S1`` and ``S2``."""
    residual, activation, slope = epilogue
    call = call_of(x)
    plan = call.plan
    if plan is None:
        empty = torch.empty_like(m)
        return empty.fill_(torch.nan), empty.clone()
    x, dy, residual = call.arranged(x), call.arranged(dy), call.arranged(residual)
    tensors = (dy, x, *_contiguous(m, scale, shift), residual)
    launcher, handles = call.launcher(tensors, "grad_moments", activation)
    S1, S2 = empty_like(call.chunks), empty_like(call.chunks)
    launcher.sweep(
        sweeps.grad_moments, plan, *handles, _handle(launcher, S1), _handle(launcher, S2),
        *_NO_PARAMETERS, *plan.sizes, 0.0, slope, 0, activation,
    )  # fmt: skip
    merged = _merge(launcher, call, S1)[0], _merge(launcher, call, S2)[0]
    launcher.done()
    return merged


@on_device
def grad_affine(
    dy: Tensor,
    x: Tensor,
    m: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    x_scale: Tensor | None,
    u: Tensor,
    residual: Tensor | None,
    activation: int,
    slope: float,
    want_dx: bool,
    want_dresidual: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """``dx`` and ``dresidual``."""
    call = call_of(x)
    plan = call.plan
    x, dy, residual = call.arranged(x), call.arranged(dy), call.arranged(residual)
    dx = empty_like(x) if want_dx else None
    dresidual = empty_like(x) if want_dresidual else None
    if plan is not None and (want_dx or want_dresidual):
        vectors = _contiguous(m, scale, shift, x_scale, u if want_dx else None)
        tensors = (dy, x, *vectors, residual, dx, dresidual)
        launcher, handles = call.launcher(tensors, "grad_affine", activation)
        launcher.sweep(sweeps.grad_affine, plan, *handles, *plan.sizes, slope, activation)
        launcher.done()
    return dx, dresidual
