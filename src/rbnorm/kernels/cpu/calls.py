"""The kernels' calls: what an input is, what is allocated for it, and the addresses of all.

A call looks at its arguments once, quickly; what does not pass is named by the one validator,
:mod:`rbnorm.kernels.checks`, or made to fit. float64, and tensors that are not plain ones (of a
subclass, fake, negative by a bit, seen by a dispatch mode), take the portable path.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

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

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_EXACT = {Tensor, Parameter}
_WIDE = torch.float32
_profiled: Callable[[], bool] = torch._C._autograd._profiler_enabled
_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_transforms: Callable[[], bool] = torch._C._are_functorch_transforms_active

Arguments = ParamSpec("Arguments")
Output = TypeVar("Output")


def _is_plain(t: Tensor) -> bool:
    """Whether a tensor is what its memory says."""
    if type(t) not in _EXACT or not t.is_cpu or t.layout is not torch.strided:
        return False
    return not (t.is_neg() or t.is_nested)


class _Misfit(Exception):  # noqa: N818 - never leaves this module
    """An argument that the kernels do not take as it is."""


class _Input:
    """x as the kernels see it: without gaps, contiguous or with the channels last.

    Attributes:
        sizes: What every kernel is told first.
        kept: Copies that must live until the kernel has run.
    """

    __slots__ = ("C", "N", "address", "format", "kept", "sizes", "x")

    def __init__(self, x: Tensor) -> None:
        if not _is_plain(x) or _modes() or _transforms():
            raise _Misfit
        code, count = _TYPES.get(x.dtype), x.numel()
        if code is None or not count or x.ndim < 2:
            raise _Misfit
        last = False
        self.format: torch.memory_format = torch.contiguous_format
        if not x.is_contiguous():
            form = CHANNELS_LAST.get(x.ndim)
            if form is not None and x.is_contiguous(memory_format=form):
                last, self.format = True, form
            else:
                x = x.contiguous()
        self.kept: list[Tensor] = []
        self.x, self.address, (N, C, *_) = x, x.data_ptr(), x.shape
        self.N, self.C = N, C
        self.sizes = code, N, C, count // (N * C), last, torch.get_num_threads()

    def table(self) -> Tensor:
        return torch.empty((self.N, self.C), dtype=torch.float32, device="cpu")

    def vector(self) -> Tensor:
        return torch.empty(self.C, dtype=torch.float32, device="cpu")

    def data(self, t: Tensor | None) -> int:
        """The address of what has x's shape and dtype, in its layout; 0 for None."""
        if t is None:
            return 0
        if not _is_plain(t) or t.dtype is not self.x.dtype or t.shape != self.x.shape:
            raise _Misfit
        if not t.is_contiguous(memory_format=self.format):
            t = torch.empty_like(self.x).copy_(t)
            self.kept.append(t)
        return t.data_ptr()

    def tables(self, *tensors: Tensor | None) -> list[int]:
        """The addresses of tables (N, C)."""
        return self._addresses((self.N, self.C), tensors)

    def vectors(self, *tensors: Tensor | None) -> list[int]:
        """The addresses of vectors (C,)."""
        return self._addresses((self.C,), tensors)

    def _addresses(self, shape: tuple[int, ...], tensors: tuple[Tensor | None, ...]) -> list[int]:
        found = []
        for t in tensors:
            if t is None:
                found.append(0)
                continue
            if type(t) not in _EXACT or t.dtype is not _WIDE or t.shape != shape or not t.is_cpu:
                raise _Misfit
            if t.is_neg() or not t.is_contiguous():
                t = t.resolve_neg().contiguous()  # noqa: PLW2901
                self.kept.append(t)
            found.append(t.data_ptr())
        return found


def _or_portable(
    kernel: Callable[Arguments, Output],
) -> Callable[Arguments, Output]:
    """A call that names what is wrong, or goes the portable way, where the kernel cannot run.

    It has a name in the profiler, while there is one.
    """
    name = kernel.__name__
    room = "rbnorm.kernels.phases" if name in PHASES else "rbnorm.engine.layer"

    def portable(*args: Any) -> Any:
        return getattr(importlib.import_module(room), name)(*args)

    validated = checked(wraps(kernel)(portable))

    @wraps(kernel)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Output:
        if _profiled():
            with record_function(f"rbnorm::{name}"):
                return attempt(*args, **kwargs)
        return attempt(*args, **kwargs)

    def attempt(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Output:
        try:
            return kernel(*args, **kwargs)
        except (_Misfit, _kernels.Refused):
            return validated(*args, **kwargs)  # type: ignore[no-any-return]

    return call


def _demand(holds: bool) -> None:
    if not holds:
        raise _Misfit


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
    at = _Input(x)
    places = at.vectors(
        weight, bias, center_weight, scale_weight, scale_bias, running_mean, running_var
    )
    if training and running_mean is not None and running_var is not None:
        _demand(running_mean.data_ptr() == places[5] and running_var.data_ptr() == places[6])
        _demand(not (running_mean.requires_grad or running_var.requires_grad))
    other = at.data(residual)
    y, m, E, V = torch.empty_like(at.x), at.table(), at.vector(), at.vector()
    _kernels.forward(
        *at.sizes, *places, training, eps, restrict, other, activation, slope, momentum, at.address,
        y.data_ptr(), m.data_ptr(), E.data_ptr(), V.data_ptr(),
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
    at = _Input(x)
    places = at.vectors(
        weight, bias, center_weight, scale_weight, scale_bias, running_mean, running_var
    )
    other = 0 if residual is None else at.data(residual)
    y = torch.empty_like(at.x)
    _kernels.forward(
        *at.sizes, *places, False, eps, restrict, other, activation, slope, 0.0, at.address,
        y.data_ptr(), 0, 0, 0,
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
    at = _Input(x)
    _demand(activation != 0 or not want_dresidual)
    vectors = (weight, bias, center_weight, scale_weight, scale_bias)
    places = at.vectors(*vectors, E, V)
    inputs = at.data(dy), at.address, *at.tables(m), at.data(residual)
    dx = torch.empty_like(at.x) if want_dx else x.new_empty(0)
    dresidual = torch.empty_like(at.x) if want_dresidual else x.new_empty(0)
    grads = [m.new_empty(0) if v is None else at.vector() for v in vectors]
    _kernels.backward(
        *at.sizes, *places, training, eps, restrict, inputs[3], activation, slope, *inputs[:3],
        *[t.data_ptr() for t in (dx, dresidual, *grads)],
    )  # fmt: skip
    return dx, dresidual, *grads  # type: ignore[return-value]


@_or_portable
def mean(x: Tensor) -> Tensor:
    """As :meth:`rbnorm.kernels.phases.Phases.mean`."""
    at = _Input(x)
    m = at.table()
    _kernels.moments(*at.sizes, 0, 0, 0.0, 0, at.address, *[0] * 7, m.data_ptr(), 0)
    return m


@_or_portable
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """As :meth:`rbnorm.kernels.phases.Phases.moments`."""
    at = _Input(x)
    m, v = at.table(), at.table()
    _kernels.moments(*at.sizes, 0, 0, 0.0, 0, at.address, *[0] * 7, m.data_ptr(), v.data_ptr())
    return m, v


@_or_portable
def affine(
    x: Tensor,
    m: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: int,
    slope: float,
) -> Tensor:
    """As :meth:`rbnorm.kernels.phases.Phases.affine`."""
    at = _Input(x)
    places, other = at.tables(m, scale, shift), at.data(residual)
    y = torch.empty_like(at.x)
    _kernels.affine(
        *at.sizes, other, activation, slope, 0, at.address, *places, 0, 0, y.data_ptr(), 0, 0, 0
    )
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
    at = _Input(x)
    _demand(activation == 0 or (scale is not None and shift is not None))
    places, other = at.tables(m, scale, shift), at.data(residual)
    S1, S2 = at.table(), at.table()
    _kernels.grad_moments(
        *at.sizes, other, activation, slope, at.data(dy), at.address, *places, 0, 0, 0, 0,
        S1.data_ptr(), S2.data_ptr(),
    )  # fmt: skip
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
    at = _Input(x)
    _demand(shift is not None if activation else not want_dresidual)
    _demand(want_dx or want_dresidual)
    places, other, given = at.tables(m, scale, shift, u), at.data(residual), at.data(dy)
    factor = at.vectors(x_scale)
    dx = torch.empty_like(at.x) if want_dx else x.new_empty(0)
    dresidual = torch.empty_like(at.x) if want_dresidual else x.new_empty(0)
    _kernels.grad_affine(
        *at.sizes, other, activation, slope, given, at.address, *places[:3], *factor, places[3],
        dx.data_ptr(), dresidual.data_ptr(), 0, 0,
    )  # fmt: skip
    return dx, dresidual
