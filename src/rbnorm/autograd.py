"""The layer as one autograd function (phase, tables, phase), eager or traced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._C import _set_tracing_state  # type: ignore[attr-defined]
from torch.autograd import forward_ad

from rbnorm import batch as batches
from rbnorm import tables
from rbnorm.batch import Batch, Group
from rbnorm.kernels import Kernels, layer
from rbnorm.kernels.backends import PORTABLE
from rbnorm.kernels.phases import positions, table_dtype
from rbnorm.tables import Options, Vectors

Running = tuple[Tensor, Tensor]


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


def _fits(running: Running, x: Tensor) -> bool:
    """Whether kernels can write these buffers."""
    mean, var = running
    dtype = table_dtype(x.dtype)
    return (
        mean.dtype is dtype and var.dtype is dtype and mean.is_contiguous() and var.is_contiguous()
    )


def _train(
    kernels: Kernels,
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    running: Running | None,
    momentum: float | Tensor,
    options: Options,
    group: Group | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Batch | None]:
    """y, m, E, V, and the batch where several processes have one; updates ``running``."""
    whole = kernels.whole if group is None else None
    own = None
    if whole is None:
        y, m, E, V, batch = layer.normalise(kernels.phases, x, residual, p, None, options, group)
        assert batch is not None
        M, own = batch.M, batch if group is not None else None
    elif running is None:
        y, m, E, V = whole.forward(x, residual, *p, None, None, True, 0.0, *options)
    elif not isinstance(momentum, Tensor) and _fits(running, x):
        return *whole.forward(x, residual, *p, *running, True, momentum, *options), None
    else:  # buffers that the kernels cannot write, and a tensor's momentum
        y, m, E, V = whole.forward(x, residual, *p, None, None, True, 0.0, *options)
        M = x.numel() // x.shape[1]
    if running is not None:
        tables.update(running, E, V, M, momentum)
    return y, m, E, V, own


def _evaluate(
    kernels: Kernels,
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    running: Running,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
    """Y and m, with new E and V: a buffer may change before backward needs it."""
    E, V = running
    if kernels.whole is not None:
        return *kernels.whole.forward(x, residual, *p, E, V, False, 0.0, *options), None
    E, V = E.clone(), V.clone()
    y, m, _, _, _ = layer.normalise(kernels.phases, x, residual, p, (E, V), options)
    return y, m, E, V, None


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
        running = None
        if running_mean is not None and running_var is not None:
            running = running_mean, running_var
        if momentum is not None:
            y, m, E, V, batch = _train(used, x, residual, p, running, momentum, options, group)
        else:
            assert running is not None
            y, m, E, V, batch = _evaluate(used, x, residual, p, running, options)
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
        found: Sequence[Tensor | None]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            running = None if ctx.training else (E, V)
            found = _differentiable(dy, x, residual, p, running, options, ctx.group, wanted)
        elif ctx.kernels.whole is not None and ctx.group is None:
            found = ctx.kernels.whole.backward(
                dy, x, residual, m, E, V, *p, ctx.training, *options, want_dx, want_dz
            )
        else:
            batch = None
            if ctx.training:
                batch = Batch(*others[5:]) if ctx.group else batches.alone(m, positions(x))
            found = layer.differentiate(
                ctx.kernels.phases, dy, x, residual, m, E, V, p, options, batch, ctx.group,
                want_dx, want_dz,
            )  # fmt: skip
        dx, dz, *dp = (grad if keep else None for grad, keep in zip(found, wanted, strict=True))
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
        found = iter(torch.autograd.grad(y, chosen, dy, create_graph=True))
    return [next(found) if keep else None for keep in wanted]


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
        return _train(kernels, x, residual, p, running, momentum, options, group)[0]
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
    """In plain PyTorch; with a backward of our own where the tracer is a compiler."""
    used = running if momentum is None else None
    M: int | Tensor = x.numel() // x.shape[1]
    if torch.compiler.is_compiling():
        training = None if momentum is None else 0.0
        output: tuple[Tensor, ...] = _Normalise.apply(
            x, residual, *(used or (None, None)), training, options, group, None, *p
        )
        y, E, V, *size = output
        M = size[0] if size else M
    else:
        y, _, E, V, batch = layer.normalise(PORTABLE.phases, x, residual, p, used, options, group)
        M = batch.M if batch is not None else M
    if momentum is not None and running is not None:
        tables.update(running, E, V, M, momentum)
    return y
