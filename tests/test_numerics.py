"""Accuracy in float32 and half types where statistics are hard, against BatchNorm's own."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from cases import VECTORS
from tolerances import TOLERANCE
from torch import Tensor
from torch.nn import functional as F

from rbnorm import use_backend
from rbnorm.elementwise import ACTIVATIONS
from rbnorm.functional import representative_batch_norm
from rbnorm.kernels import active


@pytest.fixture(autouse=True, params=["chosen", "portable"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """What runs on this CPU, and the tables and phases of plain PyTorch."""
    with use_backend("portable") if request.param == "portable" else nullcontext():
        yield


SHAPES = [(8, 4, 16, 16), (4, 3, 7, 7), (64, 16, 8, 8), (32, 2, 28, 28), (16, 5)]


def errors(x: Tensor, dy: Tensor) -> tuple[list[float], list[float]]:
    """Worst error of (output, input gradient) for our layer and for torch's BatchNorm."""
    xd = x.double().requires_grad_()
    expected = F.batch_norm(xd, None, None, training=True)
    expected.backward(dy.double())
    found = []
    for norm in (representative_batch_norm, F.batch_norm):
        leaf = x.clone().requires_grad_()
        y = norm(leaf, None, None, training=True)
        y.backward(dy)
        pairs = ((y, expected), (leaf.grad, xd.grad))
        found.append([(a.double() - b).abs().max().item() for a, b in pairs])
    return found[0], found[1]


CASES = [(shape, False) for shape in SHAPES] + [(s, True) for s in SHAPES if len(s) == 4]


@pytest.mark.parametrize(("shape", "channels_last"), CASES)
@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_no_worse_than_batchnorm(shape: tuple[int, ...], channels_last: bool, mean: float) -> None:
    """Mean over ten draws of the worst error, for data with mean / std of 0 and of 1000."""
    torch.manual_seed(0)
    ours, theirs = torch.zeros(2), torch.zeros(2)
    for _ in range(10):
        x, dy = torch.randn(shape) + mean, torch.randn(shape)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        a, b = errors(x, dy)
        ours, theirs = ours + torch.tensor(a) / 10, theirs + torch.tensor(b) / 10
    # Both are a few roundings of values of size 1 to 4 when the mean is 0: allow one more.
    assert (ours <= 1.1 * theirs + 2.4e-7).all(), (ours, theirs)


def test_center_gradient_survives_a_large_common_mean() -> None:
    """dw_m sums m Z with sum Z = 0: taken naively, float32 loses it when the mean is large."""
    torch.manual_seed(0)
    x = torch.randn(64, 2, 16, 16) + 1e4
    dy = torch.randn(64, 2, 16, 16)
    grads = []
    for dtype in (torch.float32, torch.float64):
        w_m = torch.full((2,), 0.3, dtype=dtype, requires_grad=True)
        y = representative_batch_norm(x.to(dtype), None, None, training=True, center_weight=w_m)
        y.backward(dy.to(dtype))
        grads.append(w_m.grad.double())
    assert torch.allclose(*grads, rtol=2e-3)  # the naive sum is off by 1e-2


def test_instance_variance_with_a_large_mean() -> None:
    """The rounding of the first pass's mean, 1e-3 here, must not enter the variance squared."""
    torch.manual_seed(0)
    x = torch.randn(64, 3, 16, 16) + 1e4
    _, v = active("cpu").phases.moments(x)
    expected = x.double().var((2, 3), correction=0)
    assert torch.allclose(v.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1), (4, 3, 1, 1)])
def test_the_mean_of_one_position_is_memory_of_its_own(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    m = active("cpu").phases.mean(x)
    before = x.clone()
    m.add_(1)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_statistics_are_taken_in_float32(dtype: torch.dtype) -> None:
    """4096 ones summed in half precision would stop growing at 256 or 2048."""
    x = torch.ones(2, 1, 64, 64, dtype=dtype)
    x[0] += 1
    mean, var = torch.zeros(1), torch.ones(1)
    y = representative_batch_norm(x, mean, var, training=True, momentum=1.0)
    assert y.dtype == dtype
    assert mean.item() == pytest.approx(1.5, rel=1e-6)
    assert var.item() == pytest.approx(0.25, rel=1e-3)
    assert y.double().abs().mean().item() == pytest.approx(1.0, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_half_output_is_one_rounding_of_the_exact_one(
    activation: str, training: bool, dtype: torch.dtype
) -> None:
    """After residual and activation, not before each."""
    torch.manual_seed(0)
    x, residual = torch.randn(2, 3, 5, 7, 9).to(dtype).unbind()
    x = x.contiguous(memory_format=torch.channels_last)
    vectors = dict(zip(VECTORS, torch.randn(5, 5), strict=True))

    def call(x: Tensor, residual: Tensor) -> Tensor:
        running, options = (torch.zeros(5), torch.ones(5)), {"activation": activation}
        return representative_batch_norm(
            x, *running, training=training, residual=residual, **options, **vectors
        )

    y, exact = call(x, residual), call(x.double(), residual.double())
    assert y.dtype == dtype
    spacing = torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)
    assert ((y.double() - exact).abs() <= 0.51 * spacing + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_general_path_takes_half_statistics_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(8, 3, 33, 33) + 4).to(dtype)
    mean, var = torch.zeros(3), torch.ones(3)
    representative_batch_norm(x, mean, var, training=True, momentum=1.0, restrict=torch.cos)
    assert torch.allclose(mean, x.double().mean((0, 2, 3)).float(), rtol=1e-6, atol=0)
    assert torch.allclose(var, x.double().var((0, 2, 3)).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_changes_nothing(enabled: bool) -> None:
    """BatchNorm's rule: the input's dtype decides, whatever autocast is set to."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5)
    for dtype in (torch.float32, torch.bfloat16):
        vectors = {n: torch.randn(3) for n in ("center_weight", "scale_weight", "scale_bias")}
        expected = representative_batch_norm(x.to(dtype), None, None, training=True, **vectors)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = representative_batch_norm(x.to(dtype), None, None, training=True, **vectors)
            other = representative_batch_norm(
                x.to(dtype), None, None, training=True, statistic="max", **vectors
            )
        assert y.dtype == dtype
        assert torch.equal(y, expected)
        assert other.dtype == dtype
