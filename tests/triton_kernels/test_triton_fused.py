"""Both fused ops against the literal definition in float64 and its autograd."""

from dataclasses import replace

import fused
import pytest
import torch
from cases import Case
from fused import ACTIVATIONS, RESTRICTIONS
from test_fused import (  # noqa: F401 - the same tests, of the kernels here
    test_equals_definition,
    test_wanted_gradients_do_not_depend_on_each_other,
)
from torch import Tensor
from torch.nn import functional as F

from rbnorm.kernels.phases import Unfit
from rbnorm.kernels.triton import layer
from rbnorm.kernels.triton.plan import plan

BASE = Case((5, 3, 4, 5), torch.float64, "contiguous", True, {"eps": 1e-3}, 0)


@pytest.fixture(scope="module")
def ops():
    return layer


def compare(*args) -> None:
    fused.compare(layer, *args)


@pytest.mark.parametrize("restrict", RESTRICTIONS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_restriction_and_activation(restrict, training, activation):
    options = {**BASE.options, "restrict": restrict}
    compare(replace(BASE, options=options, training=training), activation, True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 70, 70), (40, 20, 3, 3), (300, 9), (1, 2, 70, 70)],
    ids=["chunks", "several channel blocks", "several instance tiles", "one instance"],
)
def test_shapes_beyond_one_tile(layout, training, shape):
    compare(replace(BASE, shape=shape, layout=layout, training=training), "silu", True)


@pytest.mark.parametrize("shape", [(9, 3, 70, 70), (3, 1, 300, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_instance_tiles_of_chunks(shape, dtype):
    compare(replace(BASE, shape=shape, dtype=dtype), "none", False)


def call_forward(x: Tensor, training: bool = True) -> tuple[Tensor, ...]:
    running = [None, None] if training else [torch.zeros(x.shape[1]), torch.ones(x.shape[1])]
    return layer.forward(x, *[None] * 6, *running, training, 0.1, 1e-5, 0, 0, 0.0)


def test_large_mean_is_as_accurate_as_batch_norm():
    torch.manual_seed(0)
    x = torch.randn(16, 4, 9, 9) + 1e3
    exact = F.batch_norm(x.double(), None, None, training=True)
    ours = (call_forward(x)[0] - exact).abs().max()
    theirs = (F.batch_norm(x, None, None, training=True) - exact).abs().max()
    assert ours <= 1.1 * theirs + 2.4e-7


def test_center_gradient_survives_a_large_common_mean():
    """dw_m sums m Z with sum Z = 0: taken naively, float32 loses it when the mean is large."""
    torch.manual_seed(0)
    x, dy = torch.randn(64, 2, 16, 16) + 1e4, torch.randn(64, 2, 16, 16)
    grads = []
    for dtype in (torch.float32, torch.float64):
        w_m = torch.full((2,), 0.3, dtype=dtype)
        vectors, tail = (None, None, w_m, None, None), (1e-5, 0, 0, 0.0)
        _, m, E, V = layer.forward(x.to(dtype), None, *vectors, None, None, True, 0.1, *tail)
        found = layer.backward(
            dy.to(dtype), x.to(dtype), None, m, E, V, *vectors, True, *tail, False, False
        )
        assert found[0] is None
        grads.append(found[4].double())
    assert torch.allclose(*grads, rtol=2e-3)  # the naive sum is off by 1e-2


@pytest.mark.parametrize("shape", [(6, 4, 5, 5), (900, 3), (2, 3, 70, 70)])
@pytest.mark.parametrize("size", [1e17, 1e18, 1e25, 1e36])
def test_large_numbers_are_finite_where_batch_norm_is(shape, size):
    torch.manual_seed(0)
    mean, var = torch.zeros(shape[1]), torch.ones(shape[1])
    for x in (torch.randn(shape) * size, torch.randn(shape) * size, torch.randn(shape)):
        y = layer.forward(x, *[None] * 6, mean, var, True, 0.1, 1e-5, 0, 0, 0.0)[0]
        assert y.isfinite().all()
        assert not var.isnan().any()


def test_evaluation_copies_the_running_statistics():
    x = torch.randn(4, 3, 5)
    mean, var = torch.zeros(3), torch.ones(3)
    _, _, E, V = layer.forward(x, *[None] * 6, mean, var, False, 0.1, 1e-5, 0, 0, 0.0)
    mean.add_(1)
    var.add_(1)
    assert torch.equal(E, torch.zeros(3))
    assert torch.equal(V, torch.ones(3))


def test_nan_passes_through_every_activation():
    for activation in range(len(ACTIVATIONS)):
        x = torch.randn(2, 2, 3)
        x[0, 0, 0] = torch.nan
        zeros, ones = torch.zeros(2), torch.ones(2)
        tail = (False, 0.1, 1e-5, 0, activation, 0.1)
        y = layer.forward(x, None, *[None] * 5, zeros, ones, *tail)[0]
        assert y[0, 0].isnan().all()
        assert y.isnan().sum() == 3


def test_same_input_same_bits():
    x = torch.randn(3, 4, 70, 70)
    for a, b in zip(call_forward(x), call_forward(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(0, 2, 4), (2, 3, 0), (2, 0, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_empty_input(shape, training):
    x = torch.randn(shape)
    y, m, E, V = call_forward(x, training)
    assert y.shape == shape
    assert m.shape == shape[:2]
    weight = torch.ones(shape[1])
    vectors = (weight, None, None, None, None)
    found = layer.backward(x, x, None, m, E, V, *vectors, training, 1e-5, 0, 0, 0.0, True, False)
    assert found[0].shape == shape
    assert torch.equal(found[2], torch.zeros(shape[1]))


@pytest.mark.parametrize(("restrict", "activation"), [(99, 0), (-1, 0), (0, 99), (0, -1)])
@pytest.mark.parametrize("training", [True, False])
def test_an_unknown_code_is_refused(restrict, activation, training):
    x, vectors = torch.randn(3, 4, 5), torch.randn(5, 4).unbind()
    running = torch.zeros(4), torch.ones(4)
    with pytest.raises(Exception, match=r"no such (restriction|activation)"):
        layer.forward(x, None, *vectors, *running, training, 0.1, 1e-5, restrict, activation, 0.0)


def split(memory: Tensor) -> tuple[Tensor, Tensor]:
    return memory[:60].view(3, 4, 5), memory[58:]


WRONG = {
    "too short": {"weight": torch.ones(3)},
    "another dtype": {"bias": torch.ones(4, dtype=torch.float64)},
    "strided": {"center_weight": torch.ones(8)[::2]},
    "no pair": {"scale_bias": None},
    "residual": {"residual": torch.ones(3, 4, 6)},
    "no eps": {"eps": 0.0},
    "a single value": {"x": torch.ones(1, 4, 1), "residual": None},
    "integers": {"x": torch.ones(3, 4, 5, dtype=torch.int32)},
    "overlapping": dict(zip(("x", "running_var"), split(torch.ones(62)), strict=True)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_kernel_must_not_read_is_refused(name):
    """Without a word a kernel would read beyond a tensor, or take its bytes for other numbers."""
    names = ("weight", "bias", "center_weight", "scale_weight", "scale_bias", "running_mean")
    given = {"x": torch.randn(3, 4, 5), "residual": torch.randn(3, 4, 5)}
    given |= {name: torch.zeros(4) for name in names} | {"running_var": torch.ones(4)}
    given |= {"training": True, "momentum": 0.1, "eps": 1e-5}
    layer.forward(*given.values(), 0, 0, 0.0)
    changed = {**given, **WRONG[name]}
    running = given["running_mean"].clone()
    with pytest.raises(Unfit):
        layer.forward(*changed.values(), 0, 0, 0.0)
    assert torch.equal(given["running_mean"], running)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (3, 5, 17, 9),  # one tile holds a row
        (2, 40, 9, 7),
        (1, 2, 130, 130),  # positions beyond a tile: x is read twice
        (600, 6, 1, 1),
    ],
)
def test_evaluation_in_one_launch(shape, channels_last):
    layout = "channels_last" if channels_last else "contiguous"
    case = replace(BASE, shape=shape, layout=layout, training=False, dtype=torch.float32)
    assert plan(*shape[:2], shape[2] * shape[3], channels_last).whole is not None
    compare(case, "hardswish", True)


def test_evaluation_of_few_rows_is_split():
    assert plan(1, 2, 400 * 400, False).whole is None
    compare(
        replace(BASE, shape=(1, 2, 400, 400), dtype=torch.float32, training=False), "none", False
    )
