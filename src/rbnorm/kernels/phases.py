"""The contract of a backend, five phases over big tensors, and their form in plain PyTorch.

Letters: ``x``, ``dy``, ``residual`` and what has their size are (N, C, ...), of one floating dtype
and any layout; ``m``, ``scale``, ``shift``, ``u`` and the statistics are tables (N, C), ``x_scale``
is (C,), all in the table dtype: float32, or float64 for a float64 input. Phases that see what a
layer puts out take its *epilogue*: a residual that is added, and the code of an activation in
:mod:`rbnorm.elementwise` (0 for none) with its negative slope. The whole layer is these phases with
the math of :mod:`rbnorm.tables` between them, so a backend that has the five runs everything.

The plain form runs on any device and can be traced and differentiated. Where nobody follows it, it
takes fewer passes: in place, with half types by tiles, and sums by BatchNorm's own backward pass.
In-place arithmetic only ever touches temporaries.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from rbnorm.elementwise import ACTIVATION_OF

if TYPE_CHECKING:
    from typing_extensions import Unpack

PHASES: Final = ("mean", "moments", "affine", "grad_moments", "grad_affine")
Epilogue = tuple[Tensor | None, int, float]  # residual, activation, slope
Gradients = tuple[Tensor | None, ...]  # of x, the residual and the five vectors
DTYPES: Final = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
CHANNELS_LAST: Final = {4: torch.channels_last, 5: torch.channels_last_3d}
PLAIN: Final = {Tensor, Parameter}  # exactly: what is more than its numbers is a subclass
_HALF: Final = {torch.float16, torch.bfloat16}
_TILE: Final = 2**19  # numbers: 2 MB of float32, which stays in a processor's last cache

Phase = TypeVar("Phase", bound=Callable[..., Any])


class Unfit(Exception):  # noqa: N818 - an answer, no error
    """A kernel's answer to what it does not take; nothing has changed."""


class Phases(Protocol):
    """What a backend provides; :mod:`rbnorm.kernels.phases` itself is one, and the slowest."""

    def mean(self, x: Tensor, /) -> Tensor:
        """``m``, the mean of each instance and channel."""

    def moments(self, x: Tensor, /) -> tuple[Tensor, Tensor]:
        """``m``, and the biased variance ``v``."""

    def affine(
        self,
        x: Tensor,
        m: Tensor,
        scale: Tensor,
        shift: Tensor,
        /,
        *epilogue: Unpack[Epilogue],
    ) -> Tensor:
        """``y = act(scale (x - m) + shift + residual)``, rounded once to the dtype of x."""

    def grad_moments(
        self,
        dy: Tensor,
        x: Tensor,
        m: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        /,
        *epilogue: Unpack[Epilogue],
    ) -> tuple[Tensor, Tensor]:
        """The means ``S1`` of dz and ``S2`` of dz (x - m), where ``dz = dy act'(z)``.

        ``z = scale (x - m) + shift + residual``; without an activation scale and shift may be None.
        """

    def grad_affine(
        self,
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
        /,
    ) -> tuple[Tensor | None, Tensor | None]:
        """``dx = scale dz + x_scale (x - m) + u``, and ``dresidual = dz``.

        What is not wanted is None. Without an activation dz is dy, and not to be wanted.
        """


class Whole(NamedTuple):
    """A backend's override: the layer by one call each.

    ``forward(x, residual, *vectors, running_mean, running_var, training, momentum, *options)``
    gives y, m, E and V, new tensors all, and in training updates the running statistics;
    ``inference``, without training and momentum, gives y alone;
    ``backward(dy, x, residual, m, E, V, *vectors, training, *options, want_dx, want_dresidual)``
    gives the gradients of x, the residual and the vectors, None where there is none.
    They look at their arguments themselves, at less cost than we do, and raise :class:`Unfit`.
    """

    forward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    inference: Callable[..., Tensor]
    backward: Callable[..., Gradients]


def table_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and tables for an input of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def positions(x: Tensor) -> int:
    """The number L of positions per channel of one instance."""
    return math.prod(x.shape[2:])  # numel() would fix the sizes of a program that is traced


def standard(y: Tensor) -> Tensor:
    """``y`` in BatchNorm's output layout: contiguous, or channels_last where it is that already."""
    # torch.func.vmap does not tell the layout of one of its instances.
    vmapped = not torch.compiler.is_compiling() and torch._C._functorch.is_batchedtensor(y)
    last = CHANNELS_LAST.get(y.ndim)
    if last is not None and not vmapped and y.is_contiguous(memory_format=last):
        return y
    return y.contiguous()


def _spread(table: Tensor, x: Tensor) -> Tensor:
    """View an (N, C) or (C,) table so that it broadcasts against ``x``."""
    return table.reshape(table.shape + (1,) * (x.ndim - 2))


def is_traced() -> bool:
    """Whether somebody follows the operations: a compiler, a tracer, a transform, forward mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def _is_eager(*tensors: Tensor | None) -> bool:
    """Whether nobody follows the operations, autograd included, on plain tensors of a CPU."""
    if is_traced():
        return False
    recorded = torch.is_grad_enabled()
    return all(
        t is None or (type(t) in PLAIN and t.is_cpu and not (recorded and t.requires_grad))
        for t in tensors
    )


def _by_tiles(phase: Phase) -> Phase:
    """On a CPU half types go through a phase as float32, a few instances at a time."""
    at = list(inspect.signature(phase).parameters).index("x")
    narrow = phase.__name__ in {"affine", "grad_affine"}

    def empty(t: Tensor, x: Tensor) -> Tensor:
        return standard(torch.empty_like(x)) if narrow else t.new_empty(x.shape[:2])

    @wraps(phase)
    def call(*arguments: Any) -> Any:
        x, tensors = arguments[at], [a for a in arguments if isinstance(a, Tensor)]
        if x.dtype not in _HALF or not _is_eager(*tensors):
            return phase(*arguments)
        count = max(1, min(x.shape[0], x.numel() // _TILE))
        cut = [
            a.tensor_split(count) if isinstance(a, Tensor) and a.ndim > 1 else (a,) * count
            for a in arguments
        ]
        joined: list[Tensor | None] = []
        for k, tile in enumerate(zip(*cut, strict=True)):
            output = phase(*(a.float() if isinstance(a, Tensor) else a for a in tile))
            outputs = output if isinstance(output, tuple) else (output,)
            if not joined:
                joined = [t if t is None else empty(t, x) for t in outputs]
            for whole, t in zip(joined, outputs, strict=True):
                if whole is not None:
                    whole.tensor_split(count)[k].copy_(t)
        return tuple(joined) if isinstance(output, tuple) else joined[0]

    return call  # type: ignore[return-value]


@_by_tiles
def mean(x: Tensor) -> Tensor:
    """As :meth:`Phases.mean`."""
    dtype = table_dtype(x.dtype)
    if x.ndim == 2:  # no axes, and an empty ``dim`` would mean all
        return x.to(dtype, copy=True, memory_format=torch.contiguous_format)
    axes = tuple(range(2, x.ndim))
    if x.dtype is dtype:  # exporters know the mean without a dtype
        return x.mean(axes).contiguous()
    return x.mean(axes, dtype=dtype).contiguous()


@_by_tiles
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """As :meth:`Phases.moments`, in two passes.

    The second one also corrects both for the rounding of the first one's sums, which is
    what limits the accuracy of float32 when the mean is large against the spread.
    """
    rough = mean(x)
    deviation = x - _spread(rough, x)
    rest = mean(deviation)
    v = mean(deviation.square_())
    # Where v overflows, its correction would too: infinity stays infinity, as in BatchNorm.
    v = torch.where(v < torch.inf, v - rest * rest, v)
    return rough + rest, v.clamp_min(0)


def _line(x: Tensor, scale: Tensor, shift: Tensor, own: bool = False) -> Tensor:
    """``scale x + shift``, in the memory of x if that is our ``own``."""
    scale, shift = _spread(scale, x), _spread(shift, x)
    if is_traced():  # most formats have no addcmul
        return shift + scale * x
    own = own and _is_eager(x, scale, shift)
    # Of operands that repeat their numbers addcmul is vectorised for one, and here are two.
    if x.is_contiguous():
        return (x.mul_(scale) if own else x * scale).add_(shift)
    return torch.addcmul(shift, scale, x, out=x if own else None)


def _before_activation(
    x: Tensor, m: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None
) -> Tensor:
    """``z = scale (x - m) + shift + residual`` in the table dtype."""
    z = _line(x - _spread(m, x), scale, shift, own=True)
    return z if residual is None else z + residual


@_by_tiles
def affine(
    x: Tensor,
    m: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: int,
    slope: float,
) -> Tensor:
    """As :meth:`Phases.affine`."""
    z = _before_activation(x, m, scale, shift, residual)
    return standard(ACTIVATION_OF[activation](z, slope).to(x.dtype))


def _dz(
    dy: Tensor,
    x: Tensor,
    m: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: int,
    slope: float,
) -> Tensor:
    """The gradient of what enters the activation."""
    if not activation:
        return dy
    assert scale is not None
    assert shift is not None
    z = _before_activation(x, m, scale, shift, residual)
    return ACTIVATION_OF[activation].grad(z, slope) * dy


@_by_tiles
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
    """As :meth:`Phases.grad_moments`."""
    dz = _dz(dy, x, m, scale, shift, residual, activation, slope)
    dense = x.is_contiguous() and dz.is_contiguous() and x.numel() > 0
    if dense and x.dtype is m.dtype and _is_eager(dz, x, m):
        # The gradients of weight and bias of a BatchNorm that has a channel for each mean.
        view, ones = (1, m.numel(), positions(x)), m.new_ones(m.numel())
        wanted = [False, True, True]
        _, S2, S1 = torch.ops.aten.native_batch_norm_backward(
            dz.view(view), x.view(view), None, None, None, m.reshape(-1), ones, True, 0.0, wanted
        )
        return S1.view_as(m).div_(positions(x)), S2.view_as(m).div_(positions(x))
    return mean(dz), mean((x - _spread(m, x)).mul_(dz))


@_by_tiles
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
    """As :meth:`Phases.grad_affine`."""
    dz = _dz(dy, x, m, scale, shift, residual, activation, slope)
    dx = dresidual = None
    if want_dresidual:
        dresidual = standard(dz.to(x.dtype))
    if want_dx:
        if x_scale is None:
            dx = _line(dz, scale, u)
        else:
            dx = _line(x - _spread(m, x), x_scale[None], u, own=True)
            dx.addcmul_(_spread(scale, x), dz)
        dx = standard(dx.to(x.dtype))
    return dx, dresidual
