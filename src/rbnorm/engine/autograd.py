"""The derivative of the layer: the closed form as one autograd function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from rbnorm.engine import layer, tables
from rbnorm.engine.batch import Batch, Group
from rbnorm.engine.call import Call, Options, Running, Vectors
from rbnorm.kernels.backends import PORTABLE, Kernels

# torch 2.11 gives zero gradients through an autograd function that dynamo traces; 2.14 does not.
_TRACED_BACKWARD: Final = torch.__version__ >= "2.14"


class _Context(torch.autograd.function.FunctionCtx):
    """What forward leaves for backward."""

    how: tuple[Kernels, Options, bool, Group | None]  # training, after the options
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


class Normalise(torch.autograd.Function):
    """The closed form with its own backward; saves x, the (N, C) means and (C,) vectors.

    A compiler that was left to differentiate the forward pass would find a backward pass of more
    sweeps. It gets E, V and, of several processes, M as outputs: it cannot follow an update of the
    running statistics in here.
    """

    # Without setup_context: where there is one, apply() binds the arguments by `inspect`, which
    # costs 100 us a call.
    @staticmethod
    def forward(
        ctx: _Context,
        kernels: Kernels,
        options: Options,
        call: Call,
        traced: bool,
        x: Tensor,
        residual: Tensor | None,
        *vectors: Tensor | None,
    ) -> Tensor | tuple[Tensor, ...]:
        """y; of a traced call also E, V and, of several processes, M."""
        if traced:  # its tensors are the arguments that follow
            call = Call(x, residual, Vectors(*vectors), *call[3:])
        training, group = call.training, call.group
        y, m, E, V, batch = layer.normalise(kernels, call, options)
        if not training and kernels.whole is None:  # the buffers, which may change before backward
            E, V = E.clone(), V.clone()
        ctx.how = kernels, options, training, group
        # An activation's derivative needs what entered it, and with it the residual.
        kept = residual if options.activation else None
        shared = () if batch is None or group is None else batch
        tensors = x, kept, m, E, V, *vectors, *shared
        ctx.save_for_backward(*tensors)
        if traced:
            M = shared[2:]
            ctx.mark_non_differentiable(E, V, *M)
            return y, E, V, *M
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Of x, the residual and the vectors."""
        dy = grads[0]
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        x, residual, m, E, V, *others = ctx.saved_tensors
        p, (kernels, options, training, group) = Vectors(*others[:5]), ctx.how
        want_dx, want_dresidual, *want_dp = ctx.needs_input_grad[4:]
        want_dz = want_dresidual and options.activation > 0
        gradients: Sequence[Tensor | None]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            running = None if training else (E, V)
            wanted = want_dx, want_dz, *want_dp
            gradients = _differentiable(dy, x, residual, p, running, options, group, wanted)
        else:
            batch = Batch(*others[5:]) if others[5:] else None
            at = dy, x, residual, m, E, V, p, training, options
            gradients = layer.differentiate(kernels, *at, batch, group, want_dx, want_dz)
        dx, dz, *dp = gradients
        dresidual = dz if want_dz else dy if want_dresidual else None
        return None, None, None, None, dx, dresidual, *dp


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
        # Views, since the tensors themselves may depend on one another.
        x = x.view_as(x)
        inputs = [x, *(v if v is None else v.view_as(v) for v in (residual, *p))]
        call = Call(x, inputs[1], Vectors(*inputs[2:]), running, running is None, 0.0, group)
        y = layer.normalise(PORTABLE, call, options)[0]
        chosen = [v for v, keep in zip(inputs, wanted, strict=True) if keep and v is not None]
        gradients = iter(torch.autograd.grad(y, chosen, dy, create_graph=True))
    return [next(gradients) if keep else None for keep in wanted]


def is_recorded(call: Call) -> bool:
    """Whether a gradient may be asked for."""
    if torch.is_grad_enabled():
        for tensor in (call.x, call.residual, *call.p):
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def traced(call: Call, options: Options) -> Tensor:
    """In plain PyTorch; in training with a backward of our own where a compiler can follow it."""
    if not (call.training and torch.compiler.is_compiling() and _TRACED_BACKWARD):
        return layer.normalise(PORTABLE, call, options)[0]
    x, residual, p, running, training, momentum, group = call
    rest = Call(None, None, None, None, training, 0.0, group)  # type: ignore[arg-type]
    output: tuple[Tensor, ...] = Normalise.apply(PORTABLE, options, rest, True, x, residual, *p)
    y, E, V, *size = output
    if running is not None:
        tables.update(running, E, V, size[0] if size else x.numel() // x.shape[1], momentum)
    return y
