"""What every entry asks of its tensors, said once: the function, the phases, the whole layer.

The CPU's and Triton's calls look for themselves, quickly, and come here for the sentence.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from rbnorm.elementwise import ACTIVATION_OF, RESTRICTION_OF, Elementwise
from rbnorm.kernels.phases import CHANNELS_LAST, positions, table_dtype

DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
ACCEPTED = "float16, bfloat16, float32 or float64"
PAIRS = (("scale_weight", "scale_bias"), ("running_mean", "running_var"))
_LIKE_INPUT = {"dy", "residual"}
_TABLES = {"m", "scale", "shift", "u"}
_WRITTEN = ("running_mean", "running_var")
_FUNCTIONS: dict[str, dict[int, Elementwise]] = {
    "restrict": RESTRICTION_OF,
    "activation": ACTIVATION_OF,
}

Output = TypeVar("Output")


def dtype_name(dtype: torch.dtype) -> str:
    """As users write it, without the module."""
    return str(dtype).removeprefix("torch.")


def check_input(name: str, x: Tensor) -> None:
    """Raise for what no layer takes."""
    if x.is_nested or x.layout is not torch.strided:
        kind = "a nested one" if x.is_nested else f"one of layout {x.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {kind}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be {ACCEPTED}, got {dtype_name(x.dtype)}")
    if x.ndim < 2:
        raise ValueError(f"{name} must have shape (N, C, ...), got {tuple(x.shape)}")


def check_tensors(
    input_name: str, x: Tensor, others: Mapping[str, Tensor | None], exact: bool
) -> None:
    """Raise for a tensor that does not belong to x by its shape, dtype or device.

    ``exact``: vectors must have the table dtype; otherwise any floating dtype will do.
    """
    wide = table_dtype(x.dtype)
    for name, tensor in others.items():
        if tensor is None:
            continue
        like = name in _LIKE_INPUT
        shape = x.shape if like else x.shape[:2] if name in _TABLES else x.shape[1:2]
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must have shape {tuple(shape)} to match {input_name} of shape "
                f"{tuple(x.shape)}, got {tuple(tensor.shape)}"
            )
        accepted = {x.dtype} if like else {wide} if exact else DTYPES
        if tensor.dtype not in accepted:
            names = ACCEPTED if len(accepted) > 1 else dtype_name(*accepted)
            raise TypeError(f"{name} must be {names}, got {dtype_name(tensor.dtype)}")
        if tensor.device != x.device:
            raise ValueError(
                f"{name} must be on the device of {input_name}, {x.device}, got {tensor.device}"
            )
    for first, second in PAIRS:
        if (others.get(first) is None) != (others.get(second) is None):
            raise ValueError(f"{first} and {second} must be given together, got only one of them")


def check_written(
    input_name: str, x: Tensor, others: Mapping[str, Tensor | None], memory: bool
) -> None:
    """Raise for running statistics that training cannot change in place.

    ``memory``: compare where they lie with where the others do, as far as these have no gaps.
    """
    read = {**others, input_name: x}
    for name in _WRITTEN:
        written = read.pop(name)
        if written is None:
            continue
        if written.requires_grad:
            raise ValueError(
                f"{name} must not require a gradient in training, which changes it in place"
            )
        begin, end = _extent(written) if memory else (0, 0)
        for other, tensor in read.items() if end else ():
            first, last = (0, 0) if tensor is None else _extent(tensor)
            if begin < last and first < end:
                raise ValueError(
                    f"{name} must not share memory with {other}, which is read after it changes"
                )


def _extent(t: Tensor) -> tuple[int, int]:
    """Where the numbers of a tensor lie; nowhere where it has gaps or no memory of its own."""
    if type(t) not in (Tensor, Parameter) or t.is_meta:
        return 0, 0
    last = CHANNELS_LAST.get(t.ndim)
    if not (t.is_contiguous() or (last and t.is_contiguous(memory_format=last))):
        return 0, 0
    return t.data_ptr(), t.data_ptr() + t.nbytes


def check_numbers(
    x: Tensor, training: bool, eps: float, momentum: float | Tensor, shared: bool = False
) -> None:
    """Raise for an eps or a momentum without meaning, and one value per channel in training.

    Where the batch is ``shared``, other processes may have more values.
    """
    if not (0 < eps < math.inf if training else 0 <= eps < math.inf):
        accepted = "positive and finite in training" if training else "non-negative and finite"
        raise ValueError(f"eps must be {accepted}, got {eps}")
    if not isinstance(momentum, Tensor) and not -math.inf < momentum < math.inf:
        raise ValueError(f"momentum must be a finite number, got {momentum}")
    if training and not shared and x.shape[0] * positions(x) == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.size()}"
        )


def check_code(name: str, code: int) -> None:
    """Raise for a restriction or activation that is not in the table."""
    if code not in _FUNCTIONS[name]:
        accepted = ", ".join(map(str, _FUNCTIONS[name]))
        raise ValueError(f"{name} must be one of the codes {accepted}, got {code}")


def checked(implementation: Callable[..., Output]) -> Callable[..., Output]:
    """A phase, or the whole layer, behind the checks.

    Raises:
        RuntimeError: A tensor does not belong to x by its shape, dtype or device, or a number has
            no meaning; the sentence names the argument. Nothing has changed.
    """
    names = list(inspect.signature(implementation).parameters)

    @wraps(implementation)
    def call(*arguments: Tensor | float | None) -> Output:
        named = dict(zip(names, arguments, strict=True))
        try:
            _check_op(named)
        except (TypeError, ValueError) as error:
            raise RuntimeError(str(error)) from None  # of which the layer's own checks make these
        return implementation(*arguments)

    return call


def _check_op(named: Mapping[str, Tensor | float | None]) -> None:
    x = named["x"]
    assert isinstance(x, Tensor)
    check_input("x", x)
    tensors = {name: t for name, t in named.items() if t is None or isinstance(t, Tensor)}
    check_tensors("x", x, {name: t for name, t in tensors.items() if name != "x"}, exact=True)
    if "running_mean" in named and not named.get("training") and named["running_mean"] is None:
        raise ValueError("running_mean and running_var must be given in evaluation, got None")
    if named.get("training") and "running_mean" in named:
        check_written("x", x, tensors, memory=True)
    for name in _FUNCTIONS.keys() & named.keys():
        check_code(name, int(named[name]))  # type: ignore[arg-type]
    activated = bool(named.get("activation"))
    if activated and "scale" in named and (named["scale"] is None or named["shift"] is None):
        raise ValueError("scale and shift must be given with an activation, got None")
    if named.get("want_dresidual") and not activated:
        raise ValueError("without an activation the gradient of the residual is dy, got no other")
    if named.get("training") and not x.numel():
        raise ValueError("x must not be empty")
    if "eps" in named:
        numbers = named.get("training", False), named["eps"], named.get("momentum", 0.0)
        check_numbers(x, *numbers)  # type: ignore[arg-type]
