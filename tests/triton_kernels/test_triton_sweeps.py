"""Every sweep kernel against its definition in float64."""

import pytest
import torch
from cases import DTYPES
from direct import PLAIN, SWEEPS, compare, inputs
from torch import Tensor

from rbnorm.kernels.triton import calls, phases, sweeps
from rbnorm.kernels.triton.plan import MAX_CHUNKS, plan

SHAPES = [
    (3, 2, 4, 5),
    (4, 3),  # L = 1
    (3, 1, 1),
    (1, 2, 7),
    (2, 2, 3, 1, 2),
    (2, 3, 70, 70),  # several chunks, the last one partial
    (3, 40, 5, 4),  # 8 divides the channels
    (2, 16, 8, 8),  # 16 divides everything
    (70, 65),  # rows beyond one tile
    (1, 1, 4097),
]


def average(t: Tensor) -> Tensor:
    return t.double().flatten(2).mean(-1)


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        *((dtype, "contiguous") for dtype in DTYPES),
        (torch.float32, "channels_last"),
        (torch.bfloat16, "channels_last"),
        (torch.float32, "transposed"),
    ],
)
def test_sweep_equals_its_definition(name, shape, dtype, layout):
    compare(phases, name, shape, dtype, layout)


@pytest.mark.parametrize("config", sweeps.CONFIGS, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 3, 70, 70), (3, 40, 5, 4)])
def test_every_configuration_computes_the_same(config, layout, shape, monkeypatch):
    monkeypatch.setattr(sweeps, "CONFIGS", (config,))
    monkeypatch.setattr(calls, "_calls", {})
    for name in ("moments", "affine", "grad_moments", "grad_affine"):
        compare(phases, name, shape, torch.float32, layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_output_keeps_the_layout(layout):
    x, dy, m, a, b, _, p = inputs((2, 3, 4, 5), torch.float32, layout)
    assert phases.affine(x, m, a, b, *PLAIN).stride() == x.stride()
    assert (
        phases.grad_affine(dy.contiguous(), x, m, a, None, p, b, *PLAIN, True, False)[0].stride()
        == x.stride()
    )


def test_scale_may_be_expanded():
    x, _, m, a, b, _, _ = inputs((4, 2, 3), torch.float64)
    same = a[:1].expand_as(a)
    assert torch.equal(
        phases.affine(x, m, same, b, *PLAIN), phases.affine(x, m, same.contiguous(), b, *PLAIN)
    )


@pytest.mark.parametrize("shape", [(0, 2, 4, 4), (0, 2), (2, 0, 3), (2, 3, 0)])
def test_empty_input(shape):
    x, dy, m, a, b, _, p = inputs(shape, torch.float32)
    assert [t.shape for t in phases.moments(x)] == [shape[:2]] * 2
    assert phases.mean(x).shape == shape[:2]
    assert phases.affine(x, m, a, b, *PLAIN).shape == shape
    assert [t.shape for t in phases.grad_moments(dy, x, m, None, None, *PLAIN)] == [shape[:2]] * 2
    assert phases.grad_affine(dy, x, m, a, None, p, b, *PLAIN, True, False)[0].shape == shape


def test_variance_with_a_large_mean():
    """A variance from E[x^2] - E[x]^2 would have no correct digit here."""
    torch.manual_seed(0)
    # Of several chunks the means, rounded to 1e-3 here, enter the variance.
    for shape, relative in (((4, 3, 16, 16), 1e-6), ((1, 2, 4096), 1e-6), ((1, 2, 9001), 1e-5)):
        x = torch.randn(shape) + 1e4
        m, v = phases.moments(x)
        assert torch.allclose(m.double(), average(x), rtol=1e-7, atol=0)
        exact = x.double().flatten(2).var(-1, correction=0)
        assert torch.allclose(v.double(), exact, rtol=relative, atol=0)


def test_constant_rows_have_no_variance():
    x = torch.tensor([1e3, 0.1, -7.0]).view(1, 3, 1).expand(2, 3, 5001).contiguous()
    m, v = phases.moments(x)
    assert torch.equal(m, x[..., 0])
    assert v.max() <= 1e-12


def test_nan_and_infinity_stay_in_their_row():
    x = torch.zeros(2, 3, 5)
    x[0, 1, 2], x[1, 2, 0] = torch.nan, torch.nan
    m, v = phases.moments(x)
    expected = x.isnan().any(-1)
    assert torch.equal(m.isnan(), expected)
    assert torch.equal(v.isnan(), expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("N", "C", "L"),
    [(1, 1, 1), (1, 1, 2**40), (2**20, 2**12, 1), (2**28, 3, 7), (256, 64, 12544), (32, 2048, 49)],
)
def test_plan_covers_every_shape(N, C, L, channels_last):
    p = plan(N, C, L, channels_last)
    assert 1 <= p.chunks <= MAX_CHUNKS
    chunk = p.sizes[3]
    assert (p.chunks - 1) * chunk < L <= p.chunks * chunk
    assert chunk % p.sweep.ALIGN == 0
    for config in sweeps.CONFIGS:
        assert 0 < p.programs(config) < 2**31
    assert p.table[2] >= p.chunks


def test_few_rows_still_make_many_programs():
    for shape in ((1, 3, 2**22, False), (2, 64, 112 * 112, False), (8, 64, 56 * 56, True)):
        assert plan(*shape).programs(sweeps.CONFIGS[0]) >= 128, shape
