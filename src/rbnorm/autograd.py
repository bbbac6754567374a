"""The layer in closed form as an autograd function over the ops, differentiable twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rbnorm import kernels
from rbnorm.batch import Group, Shared
from rbnorm.kernels import fused, phases
from rbnorm.kernels.fused import WHOLE, Batch, Options, Vectors

Running = tuple[Tensor, Tensor]


def _fits(running: Running, x: Tensor) -> bool:
    """Whether the op can read and write these buffers."""
    dtype = phases.table_dtype(x.dtype)
    return all(buffer.dtype == dtype and buffer.is_contiguous() for buffer in running)


def _fitting(running: Running, x: Tensor) -> Running:
    dtype = phases.table_dtype(x.dtype)
    return running[0].to(dtype).contiguous(), running[1].to(dtype).contiguous()


def _batch(group: Group | None, x: Tensor, *, visible: bool) -> Batch:
    """The batch that x belongs to; ``visible`` is in plain PyTorch, not by the ops."""
    if group is None:
        return WHOLE
    sweeps = phases if visible else torch.ops.rbnorm
    return Shared(group, phases.positions(x), sweeps)


def _backend(batch: Batch) -> Any:
    """What runs the whole layer now: ``forward``, ``inference`` and ``backward``."""
    return kernels.active() if batch is WHOLE else batch


def _train(
    batch: Batch,
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    running: Running | None,
    momentum: float | Tensor,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op in training; buffers it cannot write, and a tensor's momentum, are met after it."""
    forward = _backend(batch).forward
    if running is None:
        return forward(x, residual, *p, None, None, True, 0.0, *options)  # type: ignore[no-any-return]
    if not isinstance(momentum, Tensor) and _fits(running, x):
        return forward(x, residual, *p, *running, True, momentum, *options)  # type: ignore[no-any-return]
    y, m, E, V = forward(x, residual, *p, None, None, True, 0.0, *options)
    fused.update(running, E, V, batch.size(x), momentum)
    return y, m, E, V


class _ClosedForm(torch.autograd.Function):
    """The closed form with its own backward; saves x, the (N, C) means and (C,) vectors."""

    # forward and setup_context in one: apply() binds the arguments of split ones by `inspect`,
    # which costs 100 us a call.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        running: Running | None,
        momentum: float | Tensor | None,
        options: Options,
        batch: Batch,
        *vectors: Tensor | None,
    ) -> Tensor:
        ctx.batch, ctx.ops = batch, _backend(batch)
        p = Vectors(*vectors)
        if momentum is not None:
            y, m, E, V = _train(batch, x, residual, p, running, momentum, options)
        else:
            assert running is not None
            given = _fitting(running, x)
            y, m, E, V = ctx.ops.forward(x, residual, *p, *given, False, 0.0, *options)
        ctx.training, ctx.options = momentum is not None, options
        # An activation's derivative needs what entered it, and with it the residual.
        kept = residual if options.activation else None
        ctx.save_for_backward(x, kept, m, E, V, *vectors)
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        x, residual, m, E, V, *p = ctx.saved_tensors
        want_x, want_residual, _, _, _, _, *want = ctx.needs_input_grad
        dresidual = dy if want_residual else None
        wanted = (want_x, want_residual and bool(ctx.options.activation), *want)
        if torch.is_grad_enabled():
            running = None if ctx.training else (E, V)
            again = (x, residual, Vectors(*p), running, ctx.options, ctx.batch.again())
            found = _differentiable(dy, *again, wanted)
        else:
            found = ctx.ops.backward(
                dy, x, residual, m, E, V, *p, ctx.training, *ctx.options, *wanted[:2]
            )
        dx, dz, *dp = (g if keep else None for g, keep in zip(found, wanted, strict=True))
        return dx, dresidual if dz is None else dz, None, None, None, None, *dp


class _Visible(torch.autograd.Function):
    """The closed form and its own backward in plain PyTorch, for a compiler to fuse.

    Left to differentiate the forward pass, a compiler finds a backward pass of more sweeps.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        restrict: int,
        activation: int,
        slope: float,
        group: Group | None,
        *vectors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        options = Options(eps, restrict, activation, slope)
        batch = _batch(group, x, visible=True)
        running = None
        if running_mean is not None and running_var is not None:
            running = running_mean.clone(), running_var.clone()
        y, m, E, V = fused.normalise(x, residual, Vectors(*vectors), running, options, batch)
        kept = residual if activation else None
        ctx.save_for_backward(x, kept, m, E, V, *vectors, *batch.known)
        ctx.options, ctx.training, ctx.group = options, running is None, group
        ctx.with_residual = residual is not None
        ctx.mark_non_differentiable(E, V, *batch.known[2:])
        return y, E, V, *batch.known[2:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0]
        x, residual, m, E, V, *p = ctx.saved_tensors
        batch = _batch(ctx.group, x, visible=True)
        if batch is not WHOLE:
            p, batch.known = p[:5], tuple(p[5:])
        activated = ctx.options.activation > 0
        backward: Any = fused.backward
        dx, dz, *found = backward(
            dy, x, residual, m, E, V, *p, ctx.training, *ctx.options, True, activated, batch
        )
        dresidual = (dz if activated else dy) if ctx.with_residual else None
        dp = (None if vector is None else g for vector, g in zip(p, found, strict=True))
        return dx, dresidual, None, None, None, None, None, None, None, *dp


def _differentiable(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    running: Running | None,
    options: Options,
    batch: Batch,
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """The same gradients, differentiable in dy, x and the vectors: the double backward."""
    with torch.enable_grad():
        # Views are differentiated in place of their bases, whose history may have them in common.
        x = x.view_as(x)
        inputs = [x, *(v if v is None else v.view_as(v) for v in (residual, *p))]
        y = fused.normalise(x, inputs[1], Vectors(*inputs[2:]), running, options, batch)[0]
        chosen = [v for v, keep in zip(inputs, wanted, strict=True) if keep and v is not None]
        found = iter(torch.autograd.grad(y, chosen, dy, create_graph=True))
    return [next(found) if keep else None for keep in wanted]


def _traced() -> bool:
    """Whether somebody follows the operations: a compiler, a tracer, a transform, forward mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def normalise(
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    running: Running | None,
    momentum: float | Tensor | None,
    options: Options,
    group: Group | None = None,
) -> Tensor:
    """Normalise x, and in training, where ``momentum`` is given, update ``running`` in place.

    ``p`` is in the table dtype. In training ``group`` are the processes whose batches are
    one; it is None in evaluation. Compilers, tracers and transforms see plain PyTorch.
    """
    if _traced():
        return _visible(x, residual, p, running, momentum, options, group)
    batch = _batch(group, x, visible=options.activation > 0)  # the ops' own sweeps have no tail
    if torch.is_grad_enabled():
        for tensor in (x, residual, *p):
            if tensor is not None and tensor.requires_grad:
                return _ClosedForm.apply(  # type: ignore[no-any-return]
                    x, residual, running, momentum, options, batch, *p
                )
    if momentum is not None:
        return _train(batch, x, residual, p, running, momentum, options)[0]
    assert running is not None
    mean, var = running if _fits(running, x) else _fitting(running, x)
    return kernels.active().inference(x, residual, *p, mean, var, *options)  # type: ignore[no-any-return]


def _visible(
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    running: Running | None,
    momentum: float | Tensor | None,
    options: Options,
    group: Group | None,
) -> Tensor:
    y: Tensor
    given = _fitting(running, x) if momentum is None and running is not None else None
    if torch.compiler.is_compiling():
        y, E, V, *size = _Visible.apply(x, residual, *(given or (None, None)), *options, group, *p)
    else:
        batch = _batch(group, x, visible=True)
        y, _, E, V = fused.normalise(x, residual, p, given, options, batch)
        size = list(batch.known[2:])
    if momentum is not None and running is not None:
        fused.update(running, E, V, size[0] if size else WHOLE.size(x), momentum)
    return y
