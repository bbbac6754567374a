"""The sweeps as torch ops: schema, fake, portable implementation, and what compilers see."""

from typing import Any

import pytest
import torch
from cases import LAYOUTS, arrange
from tolerances import assert_close
from torch import Tensor

from rbnorm.ops import SCHEMAS

SWEEPS = sorted(SCHEMAS.keys() - {"forward", "inference", "backward"})
SHAPES = [(3, 2, 4, 5), (4, 3), (1, 2, 7), (2, 2, 3, 1, 2), (0, 2, 4, 4), (3, 1, 1)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous") -> Any:
    """x, dy, four (N, C) tables and a (C,) vector."""
    torch.manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, dy = (arrange(torch.randn(shape).to(dtype), layout) for _ in range(2))
    return x, dy, *torch.randn(4, *shape[:2], dtype=wide).unbind(), torch.randn(shape[1]).to(wide)


def arguments(name: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Any:
    x, dy, m, a, u, b, p = inputs(shape, dtype, layout)
    return {
        "mean": (x,),
        "moments": (x,),
        "affine": (x, m, a, b),
        "grad_moments": (dy, x, m),
        "grad_affine": (dy, x, m, a, p, u),
    }[name]


def expected(name: str, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The definition in float64, with every table spread over the positions."""
    x = args[1] if name.startswith("grad") else args[0]
    flat = [t.double() for t in args]
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


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_op_equals_its_definition(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str
) -> None:
    args = arguments(name, shape, dtype, layout)
    result = getattr(torch.ops.rbnorm, name)(*args)
    found = result if isinstance(result, tuple) else (result,)
    for actual, wanted in zip(found, expected(name, args), strict=True):
        assert_close(actual, wanted, actual.dtype, scale=8.0)


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(name: str, dtype: torch.dtype, layout: str) -> None:
    for shape in SHAPES[:4]:
        args = arguments(name, shape, dtype, layout)
        torch.library.opcheck(getattr(torch.ops.rbnorm, name).default, args)


def test_affine_without_a_center() -> None:
    x, _, _, a, b, _, _ = inputs((3, 2, 4, 5), torch.float64)
    y = torch.ops.rbnorm.affine(x, None, a, b)
    assert torch.allclose(y, a[..., None, None] * x + b[..., None, None], rtol=0, atol=1e-14)
    torch.library.opcheck(torch.ops.rbnorm.affine.default, (x, None, a, b))
