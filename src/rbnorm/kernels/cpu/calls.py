"""The kernels' calls: what is allocated for the outputs of each.

The kernels look at their arguments themselves, quickly. What they refuse is made to fit where that
is a matter of layout. Else it is for the one validator, :mod:`rbnorm.kernels.checks`, which has the
sentence for what nobody takes, and past it for the portable path: float64, and tensors that are not
plain ones (of a subclass, fake, negative by a bit, seen by a dispatch mode).
"""

from __future__ import annotations

import importlib
import inspect
import operator
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.profiler import record_function
from torch.nn import Parameter

from rbnorm.kernels.checks import checked
from rbnorm.kernels.cpu import threads
from rbnorm.kernels.phases import CHANNELS_LAST, PHASES, Gradients

_kernels: Any = importlib.import_module("rbnorm.kernels.cpu._kernels")
RESTRICTIONS: dict[str, int] = _kernels.restrictions
ACTIVATIONS: dict[str, int] = _kernels.activations
INSTRUCTION_SET: str = _kernels.instruction_set
THREADS = threads.find()
_kernels.use_threads(*THREADS.addresses)
_kernels.use_torch(
    Tensor,
    Parameter,
    Tensor.is_neg,
    torch._C._to_dlpack,
    getattr(Tensor, "__dlpack_c_exchange_api__", None),  # of newer releases
)

_EXACT = {Tensor, Parameter}
_TABLES: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
_threads = torch.get_num_threads
_profiled: Callable[[], bool] = torch._C._autograd._profiler_enabled
_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_transforms: Callable[[], bool] = torch._C._are_functorch_transforms_active

Output = TypeVar("Output")


def _fitted(x: Tensor, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, those of x's shape in one layout without gaps: x's own if it is such a one."""
    form, last = torch.contiguous_format, CHANNELS_LAST.get(x.ndim)
    if last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last):
        form = last
    return tuple(
        t.contiguous(memory_format=form)
        if type(t) in _EXACT and t.layout is x.layout and t.shape == x.shape
        else t
        for t in arguments
    )


def _or_portable(kernel: Callable[..., Output]) -> Callable[..., Output]:
    """A call that goes another way where the kernel refuses: see the module.

    It has a name in the profiler, while there is one.
    """
    name = kernel.__name__
    at = list(inspect.signature(kernel).parameters).index("x")
    room = "rbnorm.kernels.phases" if name in PHASES else "rbnorm.engine.layer"

    def portable(*args: Any) -> Any:
        return getattr(importlib.import_module(room), name)(*args)

    validated: Callable[..., Output] = checked(wraps(kernel)(portable))

    @wraps(kernel)
    def call(*args: Any) -> Output:
        if _profiled():
            with record_function(f"rbnorm::{name}"):
                return attempt(*args)
        return attempt(*args)

    def attempt(*args: Any) -> Output:
        x = args[at]
        if type(x) not in _EXACT or x.layout is not torch.strided or x.is_nested or x.ndim < 2:
            return validated(*args)
        if _modes() or _transforms():
            return validated(*args)
        try:
            return kernel(*args)
        except _kernels.Refused:
            fitted = _fitted(x, args)
        if any(map(operator.is_not, fitted, args)):
            with suppress(_kernels.Refused):
                return kernel(*fitted)
        return validated(*args)

    return call


def _table(x: Tensor) -> Tensor:
    N, C, *_ = x.shape
    return torch.empty(N, C, **_TABLES)


def _demand(holds: bool) -> None:
    if not holds:
        raise _kernels.Refused


@_or_portable
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
    """As :func:`rbnorm.engine.layer.forward`."""
    if training and running_mean is not None and running_var is not None:  # both are written
        _demand(not (running_mean.requires_grad or running_var.requires_grad))
    y, m = torch.empty_like(x), _table(x)
    E, V = m.new_empty(m.shape[1]), m.new_empty(m.shape[1])
    _kernels.forward(
        x, residual, weight, bias, center_weight, scale_weight, scale_bias, running_mean,
        running_var, training, momentum, eps, restrict, activation, slope, _threads(), y, m, E, V,
    )  # fmt: skip
    return y, m, E, V


@_or_portable
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
    """As :func:`rbnorm.engine.layer.inference`."""
    y = torch.empty_like(x)
    _kernels.forward(
        x, residual, weight, bias, center_weight, scale_weight, scale_bias, running_mean,
        running_var, False, 0.0, eps, restrict, activation, slope, _threads(), y, None, None, None,
    )  # fmt: skip
    return y


@_or_portable
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
    """As :func:`rbnorm.engine.layer.backward`."""
    dx = torch.empty_like(x) if want_dx else None
    dresidual = torch.empty_like(x) if want_dresidual else None
    vectors = weight, bias, center_weight, scale_weight, scale_bias
    grads = [None if v is None else torch.empty_like(V) for v in vectors]
    _kernels.backward(
        dy, x, residual, m, E, V, *vectors, training, eps, restrict, activation, slope, _threads(),
        dx, dresidual, *grads,
    )  # fmt: skip
    return tuple(m.new_empty(0) if t is None else t for t in (dx, dresidual, *grads))  # type: ignore[return-value]


@_or_portable
def mean(x: Tensor) -> Tensor:
    """As :meth:`rbnorm.kernels.phases.Phases.mean`."""
    m = _table(x)
    _kernels.moments(x, _threads(), m, None)
    return m


@_or_portable
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """As :meth:`rbnorm.kernels.phases.Phases.moments`."""
    m, v = _table(x), _table(x)
    _kernels.moments(x, _threads(), m, v)
    return m, v


@_or_portable
def affine(
    x: Tensor,
    m: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: int,
    slope: float,
) -> Tensor:
    """As :meth:`rbnorm.kernels.phases.Phases.affine`."""
    y = torch.empty_like(x)
    _kernels.affine(x, m, scale, shift, residual, activation, slope, _threads(), y)
    return y


@_or_portable
def grad_moments(
    dy: Tensor,
    x: Tensor,
    m: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: int,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """As :meth:`rbnorm.kernels.phases.Phases.grad_moments`."""
    S1, S2 = _table(x), _table(x)
    _kernels.grad_moments(dy, x, m, scale, shift, residual, activation, slope, _threads(), S1, S2)
    return S1, S2


@_or_portable
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
) -> tuple[Tensor, Tensor]:
    """As :meth:`rbnorm.kernels.phases.Phases.grad_affine`."""
    dx = torch.empty_like(x) if want_dx else None
    dresidual = torch.empty_like(x) if want_dresidual else None
    _kernels.grad_affine(
        dy, x, m, scale, shift, x_scale, u, residual, activation, slope, _threads(), dx, dresidual
    )
    none = x.new_empty(0)
    return none if dx is None else dx, none if dresidual is None else dresidual
