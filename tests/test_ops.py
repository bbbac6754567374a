"""The phases and the whole layer: their definitions, and direct calls with wrong arguments."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import LAYOUTS
from direct import (
    KERNELS,
    LAYER,
    OPS,
    SWEEPS,
    arguments,
    layer_arguments,
    named,
    wrong,
)
from tolerances import assert_close
from torch import Tensor

from rbnorm.kernels.checks import checked

# Every code that may meet a direct call's arguments, by op.
RUNNERS: dict[str, Callable[[str], Callable[..., Any]]] = {"portable": lambda op: checked(OPS[op])}
if KERNELS is not None:
    RUNNERS["c++"] = lambda op: getattr(KERNELS, op)
SHAPES = [(3, 2, 4, 5), (4, 3), (1, 2, 7), (2, 2, 3, 1, 2), (0, 2, 4, 4), (3, 1, 1)]


def expected(name: str, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The definition in float64, with every table spread over the positions."""
    x = args[1] if name.startswith("grad") else args[0]
    flat = [t.double() for t in args if isinstance(t, Tensor)]
    view = [t if t.ndim == x.ndim else t.reshape(t.shape + (1,) * (x.ndim - 2)) for t in flat]
    axes = tuple(range(2, x.ndim))

    def total(t: Tensor) -> Tensor:
        return t.sum(axes) if axes else t

    L = x.shape[2:].numel()
    if name == "mean":
        return (total(view[0]) / L,)
    if name == "moments":
        m = total(view[0]) / L
        spread = m.reshape(m.shape + (1,) * len(axes))
        return m, total((view[0] - spread).square()) / L
    if name == "affine":
        return (view[2] * (view[0] - view[1]) + view[3],)
    if name == "grad_moments":
        return total(view[0]) / L, total(view[0] * (view[1] - view[2])) / L
    return (view[3] * view[0] + view[4] * (view[1] - view[2]) + view[5],)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_op_equals_its_definition(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str, runner: str
) -> None:
    args = arguments(name, shape, dtype, layout)
    result = RUNNERS[runner](name)(*args)
    found = result if isinstance(result, tuple) else (result,)
    found = found[:1] if name == "grad_affine" else found
    for actual, wanted in zip(found, expected(name, args), strict=True):
        assert_close(actual, wanted, actual.dtype, scale=8.0)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("op", OPS)
def test_every_wrong_argument_is_named(op: str, runner: str) -> None:
    """In both layouts; and nothing has changed, such as the running statistics."""
    run = RUNNERS[runner](op)
    for layout in ("contiguous", "channels_last"):
        args = named(op, (3, 4, 5, 6), torch.float32, layout)
        before = {k: v.clone() for k, v in args.items() if isinstance(v, Tensor)}
        run(*args.values())
        for k in {"running_mean", "running_var"} & args.keys():
            args[k].copy_(before[k])
        for name, value in args.items():
            for bad in wrong(name, value):
                with pytest.raises(RuntimeError, match=rf"\b{name} must (be|have)|^x must have"):
                    run(*{**args, name: bad}.values())
        assert all(torch.equal(args[k], v) for k, v in before.items())


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("op", LAYER)
def test_pairs_are_given_together(op: str, runner: str) -> None:
    args = layer_arguments(op, (3, 4, 5, 6), torch.float32, "contiguous")
    pairs = [("scale_weight", "scale_bias")]
    pairs += [("running_mean", "running_var")] if op == "forward" else []
    for first, second in pairs:
        for name in (first, second):
            with pytest.raises(RuntimeError, match=f"{first} and {second} must be given together"):
                RUNNERS[runner](op)(*{**args, name: None}.values())


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("other", ["x", "residual", "bias", "running_mean"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_statistics_in_the_memory_of_what_is_read(layout: str, other: str, runner: str) -> None:
    args = layer_arguments("forward", (3, 4, 5, 6), torch.float32, layout)
    whole = args[other].as_strided((args[other].numel(),), (1,))
    args["running_var"] = whole[-4:]
    before = args["running_mean"].clone()
    first, second = "running_var", other
    if other == "running_mean":  # the first one that is looked at
        first, second = second, first
    with pytest.raises(RuntimeError, match=f"{first} must not share memory with {second}, which"):
        RUNNERS[runner]("forward")(*args.values())
    assert torch.equal(args["running_mean"], before)


@pytest.mark.parametrize("runner", [name for name in RUNNERS if name != "c++"])
@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_statistics_that_require_a_gradient(name: str, runner: str) -> None:
    args = layer_arguments("forward", (3, 4, 5, 6), torch.float32, "contiguous")
    args[name].requires_grad_()
    with pytest.raises(RuntimeError, match=f"^{name} must not require a gradient in training"):
        RUNNERS[runner]("forward")(*args.values())


REFUSED = [
    ("forward", {"eps": 0.0}, "eps must be positive and finite in training, got 0"),
    ("forward", {"eps": -1e-5}, "eps must be positive and finite in training"),
    ("forward", {"eps": math.nan}, "eps must be positive and finite in training, got nan"),
    ("forward", {"eps": -1.0, "training": False}, "eps must be non-negative and finite, got -1"),
    ("inference", {"eps": math.inf}, "eps must be non-negative and finite, got inf"),
    ("backward", {"eps": 0.0}, "eps must be positive and finite in training, got 0"),
    ("forward", {"momentum": math.inf}, "momentum must be a finite number, got inf"),
    (
        "forward",
        {"running_mean": None, "running_var": None, "training": False},
        "running_mean and running_var must be given in evaluation",
    ),
    ("backward", {"activation": 0}, "without an activation the gradient of the residual is dy"),
]


@pytest.mark.skipif("c++" not in RUNNERS, reason="there are no kernels")
@pytest.mark.parametrize(("op", "change", "message"), REFUSED)
def test_option_that_the_kernels_refuse(op: str, change: dict[str, Any], message: str) -> None:
    args = layer_arguments(op, (3, 4, 5, 6), torch.float32, "contiguous")
    before = {k: v.clone() for k, v in args.items() if isinstance(v, Tensor)}
    with pytest.raises(RuntimeError, match=message):
        getattr(KERNELS, op)(*{**args, **change}.values())
    assert all(torch.equal(args[k], v) for k, v in before.items())


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("op", LAYER)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (1, 3), (1, 3, 1, 1)])
def test_too_little_data(runner: str, op: str, shape: tuple[int, ...]) -> None:
    args = layer_arguments(op, shape, torch.float32, "contiguous")
    run, single = RUNNERS[runner](op), math.prod(shape) > 0
    if op == "inference":
        assert run(*args.values()).shape == shape
        return
    message = (
        "Expected more than 1 value per channel when training" if single else "x must not be empty"
    )
    with pytest.raises(RuntimeError, match=message):
        run(*args.values())
