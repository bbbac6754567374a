"""The phases against their definitions, and what the C++ kernels refuse to read."""

import math
from typing import Any

import pytest
import torch
from cases import DTYPES, LAYOUTS
from direct import (
    KERNELS,
    LAYER,
    NAMES,
    ON,
    SWEEPS,
    compare,
    layer_arguments,
    named,
    refuses,
    wrong,
)
from torch import Tensor

compiled = pytest.mark.skipif(KERNELS is None, reason="there are no kernels")
SHAPES = [(3, 2, 4, 5), (4, 3), (1, 2, 7), (2, 2, 3, 1, 2), (0, 2, 4, 4), (3, 1, 1)]


@pytest.mark.parametrize("runner", ON)
@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_op_equals_its_definition(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str, runner: str
) -> None:
    compare(ON[runner], name, shape, dtype, layout)


@compiled
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", NAMES)
def test_every_wrong_argument_is_refused(op: str, layout: str, dtype: torch.dtype) -> None:
    """And nothing has changed, such as the running statistics."""
    args = named(op, (3, 4, 5, 6), dtype, layout)
    assert not refuses(op, {**args, **{k: v.clone() for k, v in args.items() if k in WRITTEN}})
    before = {k: v.clone() for k, v in args.items() if isinstance(v, Tensor)}
    for name, value in args.items():
        for bad in wrong(name, value):
            assert refuses(op, {**args, name: bad}), (name, bad)
    assert all(torch.equal(args[k], v) for k, v in before.items())


WRITTEN = {"running_mean", "running_var"}
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("forward", {"eps": 0.0}),
    ("forward", {"eps": -1e-5}),
    ("forward", {"eps": math.nan}),
    ("forward", {"eps": -1.0, "training": False}),
    ("inference", {"eps": math.inf}),
    ("backward", {"eps": 0.0}),
    ("forward", {"momentum": math.inf}),
    ("forward", {"running_mean": None, "running_var": None, "training": False}),
    ("backward", {"activation": 0}),  # then the gradient of the residual is dy
    *((op, {name: None}) for op in LAYER for name in ("scale_weight", "scale_bias")),
    *(("forward", {name: None}) for name in sorted(WRITTEN)),
    *(("forward", {name: torch.zeros(4, requires_grad=True)}) for name in sorted(WRITTEN)),
]


@compiled
@pytest.mark.parametrize(("op", "change"), REFUSED)
def test_options_that_the_kernels_refuse(op: str, change: dict[str, Any]) -> None:
    args = layer_arguments(op, (3, 4, 5, 6), torch.float32, "contiguous")
    before = {k: v.clone() for k, v in args.items() if isinstance(v, Tensor)}
    assert refuses(op, {**args, **change})
    assert all(torch.equal(args[k], v) for k, v in before.items())


@compiled
@pytest.mark.parametrize("other", ["x", "residual", "bias", "running_mean"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_statistics_in_the_memory_of_what_is_read(layout: str, other: str) -> None:
    args = layer_arguments("forward", (3, 4, 5, 6), torch.float32, layout)
    whole = args[other].as_strided((args[other].numel(),), (1,))
    args["running_var"] = whole[-4:]
    before = args["running_mean"].clone()
    assert refuses("forward", args)
    assert torch.equal(args["running_mean"], before)


@compiled
@pytest.mark.parametrize("op", LAYER)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (1, 3), (1, 3, 1, 1)])
def test_too_little_data(op: str, shape: tuple[int, ...]) -> None:
    args = layer_arguments(op, shape, torch.float32, "contiguous")
    if op == "inference":
        assert ON["c++"].inference(*args.values()).shape == shape
    else:
        assert refuses(op, args)
