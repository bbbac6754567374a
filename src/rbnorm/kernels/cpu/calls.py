"""The kernels' calls: what is allocated for the outputs of each.

The kernels look at their arguments themselves, quickly. What they refuse is made to fit where that
is a matter of layout. Else a phase goes by plain PyTorch, and the whole layer is :class:`Unfit`:
float64, tensors that are not plain ones (of a subclass, fake, negative by a bit, seen by a dispatch
mode), and what nobody takes.
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

from rbnorm.kernels import phases
from rbnorm.kernels.cpu import threads
from rbnorm.kernels.phases import CHANNELS_LAST, PLAIN, Gradients, Unfit

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
        if type(t) in PLAIN and t.layout is x.layout and t.shape == x.shape
        else t
        for t in arguments
    )


def _refuse(*_: Any) -> Any:
    raise Unfit


def _offered(kernel: Callable[..., Output]) -> Callable[..., Output]:
    """A call that goes another way where the kernel refuses: see the module.

    It has a name in the profiler, while there is one.
    """
    name = kernel.__name__
    at = list(inspect.signature(kernel).parameters).index("x")
    other: Callable[..., Output] = getattr(phases, name, _refuse)

    @wraps(kernel)
    def call(*args: Any) -> Output:
        if _profiled():
            with record_function(f"rbnorm::{name}"):
                return attempt(*args)
        return attempt(*args)

    def attempt(*args: Any) -> Output:
        x = args[at]
        if type(x) not in PLAIN or x.layout is not torch.strided or x.is_nested or x.ndim < 2:
            return other(*args)
        if _modes() or _transforms():
            return other(*args)
        try:
            return kernel(*args)
        except _kernels.Refused:
            fitted = _fitted(x, args)
        if any(map(operator.is_not, fitted, args)):
            with suppress(_kernels.Refused):
                return kernel(*fitted)
        return other(*args)

    return call


def _table(x: Tensor) -> Tensor:
    N, C, *_ = x.shape
    return torch.empty(N, C, **_TABLES)


def _demand(holds: bool) -> None:
    if not holds:
        raise _kernels.Refused


@_offered
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
    """As :class:`rbnorm.kernels.phases.Whole` has it."""
    if training and running_mean is not None and running_var is not None:  # both are written
        _demand(not (running_mean.requires_grad or running_var.requires_grad))
    y, m = torch.empty_like(x), _table(x)
    E, V = m.new_empty(m.shape[1]), m.new_empty(m.shape[1])
    _kernels.forward(
        x, residual, weight, bias, center_weight, scale_weight, scale_bias, running_mean,
        running_var, training, momentum, eps, restrict, activation, slope, _threads(), y, m, E, V,
    )  # fmt: skip
    return y, m, E, V


@_offered
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
    """As :class:`rbnorm.kernels.phases.Whole` has it."""
    y = torch.empty_like(x)
    _kernels.forward(
        x, residual, weight, bias, center_weight, scale_weight, scale_bias, running_mean,
        running_var, False, 0.0, eps, restrict, activation, slope, _threads(), y, None, None, None,
    )  # fmt: skip
    return y


@_offered
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
    """As :class:`rbnorm.kernels.phases.Whole` has it."""
    dx = torch.empty_like(x) if want_dx else None
    dresidual = torch.empty_like(x) if want_dresidual else None
    vectors = weight, bias, center_weight, scale_weight, scale_bias
    grads = [None if v is None else torch.empty_like(V) for v in vectors]
    _kernels.backward(
        dy, x, residual, m, E, V, *vectors, training, eps, restrict, activation, slope, _threads(),
        dx, dresidual, *grads,
    )  # fmt: skip
    return dx, dresidual, *grads


@_offered
def mean(x: Tensor) -> Tensor:
    """As :meth:`rbnorm.kernels.phases.Phases.mean`."""
    m = _table(x)
    _kernels.moments(x, _threads(), m, None)
    return m


@_offered
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """As :meth:`rbnorm.kernels.phases.Phases.moments`."""
    m, v = _table(x), _table(x)
    _kernels.moments(x, _threads(), m, v)
    return m, v


@_offered
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


@_offered
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


@_offered
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
    """As :meth:`rbnorm.kernels.phases.Phases.grad_affine`."""
    dx = torch.empty_like(x) if want_dx else None
    dresidual = torch.empty_like(x) if want_dresidual else None
    _kernels.grad_affine(
        dy, x, m, scale, shift, x_scale, u, residual, activation, slope, _threads(), dx, dresidual
    )
    return dx, dresidual
