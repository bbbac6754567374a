"""What a call must be, said once, whichever way it goes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rbnorm.definition import STATISTICS, Restriction, Statistic, resolve
from rbnorm.elementwise import ACTIVATIONS, RESTRICTIONS
from rbnorm.engine.call import Call, Vectors
from rbnorm.kernels.phases import (
    CHANNELS_LAST,
    DTYPES,
    PLAIN,
    is_traced,
    positions,
    table_dtype,
)

_ACCEPTED = "float16, bfloat16, float32 or float64"
_VECTORS = Vectors._fields  # where the tracer of torch 2.4 finds them
_PAIRS = (("scale_weight", "scale_bias"), ("running_mean", "running_var"))
_WRITTEN = ("running_mean", "running_var")


def is_direct(call: Call) -> bool:
    """Whether kernels that look at what they are given can take it as it is."""
    x, _, p, running, training, momentum, _ = call
    dtype = table_dtype(x.dtype)
    for vector in p:
        if vector is not None and vector.dtype is not dtype:
            return False
    if running is None:
        return training
    mean, var = running
    if mean is None or var is None:
        return False
    if not (mean.dtype is var.dtype is dtype and mean.is_contiguous() and var.is_contiguous()):
        return False
    if training and (mean.requires_grad or var.requires_grad):
        return False
    return isinstance(momentum, Tensor) or -math.inf < momentum < math.inf


def check(
    call: Call,
    eps: float,
    statistic: str | Statistic,
    restrict: str | Restriction,
    activation: str | None,
) -> None:
    """Raise for a call that no way accepts; nothing has changed yet."""
    x, residual, p, running, training, momentum, group = call
    mean, var = running or (None, None)
    _check_input(x)
    vectors = dict(zip(_VECTORS, p, strict=True))
    others = {**vectors, "running_mean": mean, "running_var": var, "residual": residual}
    _check_tensors(x, others)
    if not training and mean is None:
        raise ValueError("running_mean and running_var must be given in evaluation, got None")
    if training:
        _check_written({**others, "input": x})
    if not (0 < eps < math.inf if training else 0 <= eps < math.inf):
        accepted = "positive and finite in training" if training else "non-negative and finite"
        raise ValueError(f"eps must be {accepted}, got {eps}")
    if not isinstance(momentum, Tensor) and not -math.inf < momentum < math.inf:
        raise ValueError(f"momentum must be a finite number, got {momentum}")
    # Other processes of a group may have more values.
    if training and group is None and x.shape[0] * positions(x) == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.size()}"
        )
    resolve("statistic", statistic, STATISTICS)
    resolve("restrict", restrict, RESTRICTIONS)
    if activation is not None and activation not in ACTIVATIONS:
        accepted = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activation must be None or one of {accepted}, got {activation!r}")


def _name(tensor: Tensor) -> str:
    """The dtype as users write it, without the module."""
    return str(tensor.dtype).removeprefix("torch.")


def _check_input(x: Tensor) -> None:
    if x.is_nested or x.layout is not torch.strided:
        kind = "a nested one" if x.is_nested else f"one of layout {x.layout}"
        raise TypeError(f"input must be a dense tensor, got {kind}")
    if x.dtype not in DTYPES:
        raise TypeError(f"input must be {_ACCEPTED}, got {_name(x)}")
    if x.ndim < 2:
        raise ValueError(f"input must have shape (N, C, ...), got {tuple(x.shape)}")


def _check_tensors(x: Tensor, others: Mapping[str, Tensor | None]) -> None:
    """Raise for a tensor that does not belong to x by its shape, dtype or device."""
    for name, tensor in others.items():
        if tensor is None:
            continue
        shape, dtypes, accepted = x.shape[1:2], DTYPES, _ACCEPTED
        if name == "residual":
            shape, dtypes, accepted = x.shape, {x.dtype}, _name(x)
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must have shape {tuple(shape)} to match input of shape "
                f"{tuple(x.shape)}, got {tuple(tensor.shape)}"
            )
        if tensor.dtype not in dtypes:
            raise TypeError(f"{name} must be {accepted}, got {_name(tensor)}")
        if tensor.device != x.device:
            raise ValueError(
                f"{name} must be on the device of input, {x.device}, got {tensor.device}"
            )
    for first, second in _PAIRS:
        if (others.get(first) is None) != (others.get(second) is None):
            raise ValueError(f"{first} and {second} must be given together, got only one of them")


def _check_written(tensors: dict[str, Tensor | None]) -> None:
    """Raise for running statistics that training cannot change in place.

    Where they lie is compared with where the others do, as far as these have no gaps; tracers have
    no memory.
    """
    traced = is_traced()
    for name in _WRITTEN:
        written = tensors.pop(name)
        if written is None:
            continue
        if written.requires_grad:
            raise ValueError(
                f"{name} must not require a gradient in training, which changes it in place"
            )
        begin, end = (0, 0) if traced else _extent(written)
        for other, tensor in tensors.items() if end else ():
            first, last = (0, 0) if tensor is None else _extent(tensor)
            if begin < last and first < end:
                raise ValueError(
                    f"{name} must not share memory with {other}, which is read after it changes"
                )


def _extent(t: Tensor) -> tuple[int, int]:
    """Where the numbers of a tensor lie; nowhere where it has gaps or no memory of its own."""
    if type(t) not in PLAIN or t.is_meta:
        return 0, 0
    last = CHANNELS_LAST.get(t.ndim)
    if not (t.is_contiguous() or (last and t.is_contiguous(memory_format=last))):
        return 0, 0
    return t.data_ptr(), t.data_ptr() + t.nbytes
