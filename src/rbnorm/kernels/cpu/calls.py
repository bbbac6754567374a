"""The kernels' calls: what an input is, what is allocated for it, and the addresses of all.

A call looks at its arguments once, quickly; what does not pass is named by the one validator,
:mod:`rbnorm.kernels.checks`, or made to fit. float64, and tensors that are not plain ones (of a
subclass, fake, negative by a bit, seen by a dispatch mode), take the portable path.
"""

from __future__ import annotations

import importlib
import math
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
_EXACT = (Tensor, Parameter)
_profiled: Callable[[], bool] = torch._C._autograd._profiler_enabled
_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_keys = torch._C._dispatch_keys
with torch.inference_mode(False):
    _PLAIN = {_keys(torch.empty(0, device="cpu")).raw_repr()}
with torch.inference_mode():
    _PLAIN.add(_keys(torch.empty(0, device="cpu")).raw_repr())

Arguments = ParamSpec("Arguments")
Output = TypeVar("Output")


def _is_plain(x: Tensor) -> bool:
    """Whether a tensor is what its memory says, and nobody follows what is done with it."""
    return type(x) in _EXACT and _keys(x).raw_repr() in _PLAIN and _modes() == 0


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
        if not _is_plain(x) or x.dtype not in _TYPES or x.ndim < 2 or not x.numel():
            raise _Misfit
        self.kept: list[Tensor] = []
        self.format = torch.contiguous_format
        if not x.is_contiguous():
            last = CHANNELS_LAST.get(x.ndim)
            if last is not None and x.is_contiguous(memory_format=last):
                self.format = last
            else:
                x = x.contiguous()
        self.x, self.address, (self.N, self.C, *_) = x, x.data_ptr(), x.shape
        self.sizes = (
            _TYPES[x.dtype], self.N, self.C, x.numel() // (self.N * self.C),
            self.format is not torch.contiguous_format, torch.get_num_threads(),
        )  # fmt: skip

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

    def tables(self, *tensors: Tensor | None, written: bool = False) -> list[int]:
        """The addresses of tables (N, C)."""
        return self._addresses((self.N, self.C), tensors, written)

    def vectors(self, *tensors: Tensor | None, written: bool = False) -> list[int]:
        """The addresses of vectors (C,)."""
        return self._addresses((self.C,), tensors, written)

    def _addresses(
        self, shape: tuple[int, ...], tensors: tuple[Tensor | None, ...], written: bool
    ) -> list[int]:
        found = []
        for t in tensors:
            if t is None:
                found.append(0)
                continue
            if not (
                type(t) in _EXACT and t.dtype is torch.float32 and t.shape == shape and t.is_cpu
            ):
                raise _Misfit
            if t.is_neg() or not t.is_contiguous():
                if written:
                    raise _Misfit
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

    def attempt(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Output:
        try:
            return kernel(*args, **kwargs)
        except _Misfit:
            return validated(*args, **kwargs)  # type: ignore[no-any-return]

    @wraps(kernel)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Output:
        if not _profiled():
            return attempt(*args, **kwargs)
        with record_function(f"rbnorm::{name}"):
            return attempt(*args, **kwargs)

    return call


def _demand(holds: bool) -> None:
    if not holds:
        raise _Misfit


def _check_options(
    x: _Input, training: bool, eps: float, momentum: float, *vectors: Tensor | None
) -> None:
    """Numbers without meaning, and what must be given together."""
    _demand((vectors[3] is None) is (vectors[4] is None))
    _demand(0 < eps < math.inf if training else 0 <= eps < math.inf)
    _demand(-math.inf < momentum < math.inf)
    _demand(not training or x.x.numel() > x.C)


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
    vectors = (weight, bias, center_weight, scale_weight, scale_bias)
    _check_options(at, training, eps, momentum, *vectors)
    _demand((running_mean is None) is (running_var is None))
    _demand(training or running_mean is not None)
    places, running = at.vectors(*vectors), at.vectors(running_mean, running_var, written=training)
    other = at.data(residual)
    if training and running_mean is not None and running_var is not None:
        _demand(not (running_mean.requires_grad or running_var.requires_grad))
        size, small = at.x.nbytes, 4 * at.C
        mean, var = running
        for place in running:  # what is written must not be read after that
            for data in (at.address, other):
                _demand(not data - small < place < data + size)
            for vector in places:
                _demand(not vector - small < place < vector + small)
        _demand(not mean - small < var < mean + small)
    y, m, E, V = torch.empty_like(at.x), at.table(), at.vector(), at.vector()
    _kernels.forward(
        *at.sizes, *places, training, eps, restrict, other, activation, slope, momentum, at.address,
        *running, y.data_ptr(), m.data_ptr(), E.data_ptr(), V.data_ptr(),
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
    vectors = (weight, bias, center_weight, scale_weight, scale_bias)
    _check_options(at, False, eps, 0.0, *vectors)
    places, running = at.vectors(*vectors), at.vectors(running_mean, running_var)
    other = at.data(residual)
    y = torch.empty_like(at.x)
    _kernels.forward(
        *at.sizes, *places, False, eps, restrict, other, activation, slope, 0.0, at.address,
        *running, y.data_ptr(), 0, 0, 0,
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
    vectors = (weight, bias, center_weight, scale_weight, scale_bias)
    _check_options(at, training, eps, 0.0, *vectors)
    _demand(activation != 0 or not want_dresidual)
    places = at.vectors(*vectors)
    inputs = at.data(dy), at.address, *at.tables(m), *at.vectors(E, V)
    other = at.data(residual)
    none, nothing = x.new_empty(0), m.new_empty(0)
    dx = torch.empty_like(at.x) if want_dx else none
    dresidual = torch.empty_like(at.x) if want_dresidual else none
    grads = [nothing if v is None else at.vector() for v in vectors]
    _kernels.backward(
        *at.sizes, *places, training, eps, restrict, other, activation, slope, *inputs,
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
