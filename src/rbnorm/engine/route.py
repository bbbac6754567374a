"""Which way a call goes: decided here, once, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch._C import _set_tracing_state  # type: ignore[attr-defined]

from rbnorm.engine.call import Call
from rbnorm.kernels.backends import PORTABLE, Kernels, active
from rbnorm.kernels.phases import is_traced, table_dtype

# torch before 2.7 cannot tell, and has no such graphs.
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)

Output = TypeVar("Output")
Way = Literal["empty", "switchable", "literal", "traced", "whole", "phases"]


def route(call: Call, closed: bool) -> tuple[Way, Kernels]:
    """The way of a call that has been checked, and the kernels that it takes.

    ========== ============================================ ========================================
    way        when, the first that holds                   what runs
    ========== ============================================ ========================================
    empty      no process has a value                       nothing: an empty output
    switchable a training graph is exported                 the literal definition around
                                                            ``aten.batch_norm``
    literal    the options have no closed form              the literal definition
    traced     a compiler or tracer follows the operations  the closed form in plain PyTorch
    whole      the device has kernels for the whole layer,  one call of these in each direction
               and the batch is this process's own
    phases     otherwise                                    phases with tables between them
    ========== ============================================ ========================================

    ``closed`` says that the statistic is the mean and the restriction has a name.
    """
    x, traced = call.x, is_traced()
    empty = unrecorded(x.numel) == 0 if traced else x.numel() == 0
    if empty and (call.group is None or 0 in x.shape[1:2]):
        return "empty", PORTABLE
    if traced and is_switchable(call):
        return "switchable", PORTABLE
    if not closed:
        return "literal", PORTABLE
    if traced:
        return "traced", PORTABLE
    kernels = active(x.device.type)
    if kernels.whole is not None and call.group is None:
        return "whole", kernels
    return "phases", Kernels(kernels.phases)


def is_switchable(call: Call) -> bool:
    """Whether a training graph is exported that other tools may switch to evaluation.

    PT2E quantisation, in torch and torchao, turns one into the other by what it knows to differ
    between them, ``aten.batch_norm``: so RBN's standardisation has that form there.
    """
    return (
        _is_exporting()
        and call.training
        and call.group is None
        and call.running is not None
        and isinstance(call.momentum, int | float)
        and call.running[0].dtype == table_dtype(call.x.dtype)
    )


def unrecorded(function: Callable[..., Output], *arguments: object) -> Output:
    """A result of arithmetic with shapes, which ``torch.jit.trace`` would record and warn of."""
    if torch.compiler.is_compiling():
        return function(*arguments)
    state = torch._C._get_tracing_state()
    _set_tracing_state(None)
    try:
        return function(*arguments)
    finally:
        _set_tracing_state(state)
