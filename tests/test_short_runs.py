"""The C++ kernels where runs or rows are shorter than a vector, and where numbers end."""

import math
import os
from contextlib import nullcontext
from dataclasses import replace

import fused
import pytest
import torch
from cases import DTYPES, Case, arrange
from direct import ON
from processes import python
from torch import Tensor
from torch.nn import functional as F

import rbnorm
from rbnorm.functional import representative_batch_norm

FOUND = rbnorm.backends()["cpu"]
pytestmark = pytest.mark.skipif(FOUND.name != "c++", reason=FOUND.why)
OPS = ON.get("c++")
BASE = Case((5, 3, 4, 5), torch.float32, "contiguous", True, {"eps": 1e-3}, 0)
WIDTHS = [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_few_positions_and_few_channels(layout: str, training: bool, dtype: torch.dtype) -> None:
    for C in WIDTHS:
        for L in WIDTHS:
            case = Case((3, C, L, 1), dtype, layout, training, {"eps": 1e-3}, C)
            fused.compare(OPS, case, "silu" if L % 2 else "none", L % 2 == 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(700, 3), (33, 20), (19, 1), (3, 2000), (37, 5, 2), (50, 3, 7)])
def test_many_instances_of_few_numbers(shape: tuple[int, ...], training: bool) -> None:
    for activation, residual in (("none", False), ("hardswish", True)):
        case = replace(BASE, shape=shape, training=training)
        fused.compare(OPS, case, activation, residual)


@pytest.mark.parametrize("shape", [(20, 3), (6, 5, 3), (4, 20, 9), (2, 70, 49)])
def test_memory_that_starts_anywhere(shape: tuple[int, ...]) -> None:
    """An input that lies at an odd address, after numbers that must not matter."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    expected = representative_batch_norm(x, None, None, training=True)
    for offset in (1, 3, 7):
        memory = torch.full((x.numel() + offset + 20,), math.nan)
        moved = memory[offset : offset + x.numel()].view(shape).copy_(x)
        assert torch.equal(representative_batch_norm(moved, None, None, training=True), expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(5, 3, 1, 1), (5, 3, 2, 2), (4, 20, 3, 3), (3, 17, 7, 7)])
def test_what_is_not_finite_stays_in_its_instance(
    shape: tuple[int, ...], layout: torch.memory_format, value: float
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).contiguous(memory_format=layout)
    mean, var = torch.zeros(shape[1]), torch.ones(shape[1])
    clean = representative_batch_norm(x, mean, var)
    x[1, 2, -1, -1] = value
    y = representative_batch_norm(x, mean, var, center_weight=torch.ones(shape[1]))
    assert not y[1, 2].isfinite().any()
    y = representative_batch_norm(x, mean, var)
    y[1, 2] = clean[1, 2]
    assert torch.allclose(y, clean, rtol=1e-6, atol=1e-6)


def layer(x: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    y = representative_batch_norm(x, mean, var, training=training)
    return y, mean, var


@pytest.mark.parametrize("shape", [(900, 3), (64, 5, 3), (8, 4, 30, 30), (2, 40, 7, 7)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("portable", "size"),
    [
        *((False, size) for size in (1e17, 1e18, 1e25, 1e36)),
        *((True, size) for size in (1e17, 1e25, 1e33)),  # its sums are not scaled
    ],
)
def test_large_numbers_are_finite_where_batch_norm_is(
    portable: bool, layout: str, shape: tuple[int, ...], size: float
) -> None:
    torch.manual_seed(0)
    x = arrange(torch.randn(shape) * size, layout)
    with rbnorm.use_backend("portable") if portable else nullcontext():
        y = layer(x, training=False)[0]
        exact = layer(x.double(), training=False)[0]
        assert torch.allclose(y.double(), exact, rtol=0, atol=1e-5 * size)
        y, mean, var = layer(x, training=True)
        assert y.isfinite().all()
        for following in (x, torch.randn(shape)):
            y = representative_batch_norm(following, mean, var, training=True)
            assert y.isfinite().all()
            assert not var.isnan().any()


@pytest.mark.parametrize("shape", [(64, 3, 16, 16), (256, 4, 9), (512, 4, 3), (4096, 3)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_variance_survives_a_mean_of_10000_spreads(layout: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = arrange(torch.randn(shape) + 1e4, layout)
    mean, var = torch.zeros(shape[1]), torch.ones(shape[1])
    representative_batch_norm(x, mean, var, training=True, momentum=1.0)
    axes = (0, *range(2, len(shape)))
    assert torch.allclose(var.double(), x.double().var(axes), rtol=5e-6, atol=0)


def restricted(s: Tensor, restrict: int) -> Tensor:
    """R(s) by the op: scale 1, t = 1, and s as the gate's bias."""
    one = torch.ones_like(s)
    return OPS.inference(
        one[None], None, None, None, None, 0 * one, s, 0 * one, one, 0.0, restrict, 0, 0.0
    )[0]


def ulps(found: Tensor, exact: Tensor) -> float:
    """The largest error in units of the last place; the least normal number is one at least."""
    info = torch.finfo(found.dtype)
    unit = torch.clamp(exact.abs() * info.eps, min=info.tiny)
    return float(((found.double() - exact).abs() / unit).max())


# Every power of two and points between, where float32's functions turn.
GRID = torch.cat(
    [torch.linspace(-110, 110, 20011), *(s * torch.logspace(-38, 38, 3001) for s in (-1, 1))]
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "code"), [("sigmoid", 0), ("tanh", 1)])
def test_restrictions_over_the_whole_range(name: str, code: int, dtype: torch.dtype) -> None:
    s = torch.cat([GRID.to(dtype), torch.tensor([-math.inf, math.inf, 0.0, -0.0], dtype=dtype)])
    exact = getattr(torch, name)(s.double())
    assert ulps(restricted(s, code), exact) <= 4
    assert restricted(torch.tensor([math.nan], dtype=dtype), code).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_silu_over_the_whole_range(dtype: torch.dtype) -> None:
    z = GRID.to(dtype)[:, None]
    zero, one = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    y = OPS.inference(z, None, None, None, None, None, None, zero, one, 0.0, 0, 3, 0.0)
    near = z > -88  # below, exp overflows in float32
    assert ulps(y[near], F.silu(z[near].double())) <= 5
    assert torch.allclose(y, F.silu(z), rtol=1e-5, atol=1e-36)
    far = z < -1000
    assert torch.equal(y[far], torch.zeros_like(y[far]))
    assert y[far].signbit().all()


@pytest.mark.parametrize("instructions", ["plain", "avx2"])
def test_narrower_instructions(instructions: str) -> None:
    """The same tests, by the kernels of a processor without this one's."""
    if os.environ.get("RBNORM_CPU"):
        return
    options = ("-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--no-header")
    python("-m", "pytest", *options, __file__, RBNORM_CPU=instructions)
