"""What every op asks of its tensors, said once for the implementations in Python.

The C++ ones look for themselves, at less cost; see ``csrc/ops.cpp``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from rbnorm.definition import RESTRICTIONS
from rbnorm.kernels.fused import ACTIVATIONS
from rbnorm.kernels.phases import table_dtype

DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
ACCEPTED = "float16, bfloat16, float32 or float64"
_LIKE_X = {"dy", "residual"}
_TABLES = {"m", "center", "scale", "shift", "dy_scale"}
_INDICES = {"restrict": len(RESTRICTIONS), "activation": len(ACTIVATIONS)}
_PAIRS = (("scale_weight", "scale_bias"), ("running_mean", "running_var"))


def dtype_name(dtype: torch.dtype) -> str:
    """As users write it, without the module."""
    return str(dtype).removeprefix("torch.")


def _check(name: str, tensor: Tensor, x: Tensor) -> None:
    """One tensor beside x: like x, a table (N, C), or else a vector (C,)."""
    shape, dtype = x.shape[1:2], table_dtype(x.dtype)
    if name in _LIKE_X:
        shape, dtype = x.shape, x.dtype
    elif name in _TABLES:
        shape = x.shape[:2]
    if tensor.shape != shape:
        raise RuntimeError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.dtype != dtype:
        raise RuntimeError(f"{name} must be {dtype_name(dtype)}, got {dtype_name(tensor.dtype)}")
    if tensor.device != x.device:
        raise RuntimeError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")


def _check_all(given: dict[str, Any]) -> None:
    x = given["x"]
    if x.ndim < 2:
        raise RuntimeError(f"x must have shape (N, C, ...), got {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise RuntimeError(f"x must be {ACCEPTED}, got {dtype_name(x.dtype)}")
    for name, value in given.items():
        if isinstance(value, Tensor) and name != "x":
            _check(name, value, x)
        if name in _INDICES and not 0 <= value < _INDICES[name]:
            raise RuntimeError(f"{name} must be 0 to {_INDICES[name] - 1}, got {value}")
    for first, second in _PAIRS:
        if (given.get(first) is None) != (given.get(second) is None):
            raise RuntimeError(f"{first} and {second} must be given together")


def checked(op: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
    """An implementation of an op that is defined already, behind the checks.

    Raises:
        RuntimeError: A tensor does not belong to x by its shape, dtype or device, or there is no
            such restriction or activation; the sentence names the argument. Nothing has changed.
    """
    names = [argument.name for argument in getattr(torch.ops.rbnorm, op).default._schema.arguments]

    @wraps(implementation)
    def call(*arguments: Any) -> Any:
        _check_all(dict(zip(names, arguments, strict=True)))
        return implementation(*arguments)

    return call
