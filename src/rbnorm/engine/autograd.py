"""The layer as one autograd function (phase, tables, phase), eager or traced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor
from torch._C import _set_tracing_state  # type: ignore[attr-defined]
from torch.autograd import forward_ad

from rbnorm.engine import batch as batches
from rbnorm.engine import layer, tables
from rbnorm.engine.batch import Batch, Group
from rbnorm.engine.tables import Options, Vectors
from rbnorm.kernels import Kernels
from rbnorm.kernels.backends import PORTABLE
from rbnorm.kernels.phases import positions, table_dtype

Running = tuple[Tensor, Tensor]

# Through an autograd function that dynamo traces torch 2.11 gives gradients of zero; 2.14 does not.
_TRACED_BACKWARD: Final = torch.__version__ >= "2.14"


def is_traced() -> bool:
    """Whether somebody follows the operations: a compiler, a tracer, a transform, forward mode.

    They see plain PyTorch; everything else runs on the kernels of the device.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


@contextmanager
def unrecorded() -> Iterator[None]:
    """Python's own arithmetic with shapes, which ``torch.jit.trace`` would record and warn of."""
    state = torch._C._get_tracing_state()
    _set_tracing_state(None)
    try:
        yield
    finally:
        _set_tracing_state(state)


def _forward(
    kernels: Kernels,
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    running: Running | None,
    momentum: float | Tensor | None,
    options: Options,
    group: Group | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Batch | None]:
    """y, m, new E and V, and the batch where several processes have one.

    Training updates ``running``; evaluation copies it, as it may change before backward needs it.
    """
    whole = kernels.whole if group is None else None
    if momentum is None:
        assert running is not None
        if whole is not None:
            return *whole.forward(x, residual, *p, *running, False, 0.0, *options), None
        fixed = running[0].clone(), running[1].clone()
        return layer.normalise(kernels.phases, x, residual, p, fixed, options)
    if (  # kernels write buffers of the table dtype without gaps, by a number's momentum
        whole is not None
        and running is not None
        and not isinstance(momentum, Tensor)
        and running[0].dtype is running[1].dtype is table_dtype(x.dtype)
        and running[0].is_contiguous()
        and running[1].is_contiguous()
    ):
        return *whole.forward(x, residual, *p, *running, True, momentum, *options), None
    if whole is None:
        y, m, E, V, batch = layer.normalise(kernels.phases, x, residual, p, None, options, group)
        assert batch is not None
        M, batch = batch.M, None if group is None else batch
    else:
        y, m, E, V = whole.forward(x, residual, *p, None, None, True, 0.0, *options)
        M, batch = x.numel() // x.shape[1], None
    if running is not None:
        tables.update(running, E, V, M, momentum)
    return y, m, E, V, batch


class _Context(torch.autograd.function.FunctionCtx):
    """What forward leaves for backward."""

    kernels: Kernels
    options: Options
    group: Group | None
    training: bool
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


class _Normalise(torch.autograd.Function):
    """The closed form with its own backward; saves x, the (N, C) means and (C,) vectors.

    A compiler that was left to differentiate the forward pass would find a backward pass of more
    sweeps. It gets E, V and, of several processes, M as outputs: it cannot follow an update of the
    running statistics in here.
    """

    # forward and setup_context in one: apply() binds the arguments of split ones by `inspect`,
    # which costs 100 us a call.
    @staticmethod
    def forward(
        ctx: _Context,
        x: Tensor,
        residual: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float | Tensor | None,
        options: Options,
        group: Group | None,
        kernels: Kernels | None,
        *vectors: Tensor | None,
    ) -> Tensor | tuple[Tensor, ...]:
        p = Vectors(*vectors)
        traced = kernels is None
        used = PORTABLE if kernels is None else kernels
        running = (
            None if running_mean is None or running_var is None else (running_mean, running_var)
        )
        y, m, E, V, batch = _forward(used, x, residual, p, running, momentum, options, group)
        ctx.kernels, ctx.options, ctx.group = used, options, group
        ctx.training = momentum is not None
        # An activation's derivative needs what entered it, and with it the residual.
        kept = residual if options.activation else None
        tensors = x, kept, m, E, V, *vectors, *(() if batch is None else batch)
        ctx.save_for_backward(*tensors)
        if traced:
            M = () if batch is None else (batch.M,)
            ctx.mark_non_differentiable(E, V, *M)
            return y, E, V, *M
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dy = grads[0]
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        x, residual, m, E, V, *others = ctx.saved_tensors
        p, options = Vectors(*others[:5]), ctx.options
        want_dx, want_dresidual, *_ = ctx.needs_input_grad
        want_dz = want_dresidual and options.activation > 0
        wanted = (want_dx, want_dz, *ctx.needs_input_grad[8:])
        gradients: Sequence[Tensor | None]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            running = None if ctx.training else (E, V)
            gradients = _differentiable(dy, x, residual, p, running, options, ctx.group, wanted)
        elif ctx.kernels.whole is not None and ctx.group is None:
            gradients = ctx.kernels.whole.backward(
                dy, x, residual, m, E, V, *p, ctx.training, *options, want_dx, want_dz
            )
        else:
            batch = None
            if ctx.training:
                batch = Batch(*others[5:]) if ctx.group else batches.alone(m, positions(x))
            gradients = layer.differentiate(
                ctx.kernels.phases, dy, x, residual, m, E, V, p, options, batch, ctx.group,
                want_dx, want_dz,
            )  # fmt: skip
        dx, dz, *dp = (g if keep else None for g, keep in zip(gradients, wanted, strict=True))
        dresidual = dz if want_dz else dy if want_dresidual else None
        return dx, dresidual, None, None, None, None, None, None, *dp


def _differentiable(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    running: Running | None,
    options: Options,
    group: Group | None,
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """The same gradients, differentiable in dy, x and the vectors: the double backward."""
    with torch.enable_grad():
        # Views are differentiated in place of their bases, whose history may have them in common.
        x = x.view_as(x)
        inputs = [x, *(v if v is None else v.view_as(v) for v in (residual, *p))]
        vectors = Vectors(*inputs[2:])
        y = layer.normalise(PORTABLE.phases, x, inputs[1], vectors, running, options, group).y
        chosen = [v for v, keep in zip(inputs, wanted, strict=True) if keep and v is not None]
        gradients = iter(torch.autograd.grad(y, chosen, dy, create_graph=True))
    return [next(gradients) if keep else None for keep in wanted]


def normalise(
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    running: Running | None,
    momentum: float | Tensor | None,
    options: Options,
    kernels: Kernels | None,
    group: Group | None = None,
) -> Tensor:
    """Normalise x, and in training, where ``momentum`` is given, update ``running`` in place.

    ``p`` is in the table dtype, and so is ``running`` in evaluation, contiguous. ``kernels`` are
    the device's, or None where :func:`is_traced`. In training ``group`` are the processes whose
    batches are one; it is None in evaluation.
    """
    if kernels is None:
        return _traced(x, residual, p, running, momentum, options, group)
    if torch.is_grad_enabled():
        for tensor in (x, residual, *p):
            if tensor is not None and tensor.requires_grad:
                mean, var = running or (None, None)
                y: Tensor = _Normalise.apply(
                    x, residual, mean, var, momentum, options, group, kernels, *p
                )
                return y
    if momentum is not None:
        return _forward(kernels, x, residual, p, running, momentum, options, group)[0]
    assert running is not None
    if kernels.whole is not None:
        return kernels.whole.inference(x, residual, *p, *running, *options)
    return layer.normalise(kernels.phases, x, residual, p, running, options).y


def _traced(
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    running: Running | None,
    momentum: float | Tensor | None,
    options: Options,
    group: Group | None,
) -> Tensor:
    """In plain PyTorch; in training with a backward of our own where a compiler can follow it."""
    M: int | Tensor = x.numel() // x.shape[1]
    if torch.compiler.is_compiling() and momentum is not None and _TRACED_BACKWARD:
        output: tuple[Tensor, ...] = _Normalise.apply(
            x, residual, None, None, 0.0, options, group, None, *p
        )
        y, E, V, *size = output
        M = size[0] if size else M
    else:
        fixed = running if momentum is None else None
        y, _, E, V, batch = layer.normalise(PORTABLE.phases, x, residual, p, fixed, options, group)
        M = batch.M if batch is not None else M
    if momentum is not None and running is not None:
        tables.update(running, E, V, M, momentum)
    return y
