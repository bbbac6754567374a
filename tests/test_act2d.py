"""Activation and residual inside the op against the same modules one after the other."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from tolerances import assert_close
from torch import Tensor, nn
from torch.nn import functional as F

import rbnorm
from rbnorm import elementwise

ACTIVATIONS = {
    name: partial(f.module, **f.options, **({"negative_slope": 0.3} if f.sloped else {}))
    for name, f in elementwise.ACTIVATIONS.items()
}
Act2d = rbnorm.RepresentativeBatchNormAct2d
COUNT = 5


@pytest.fixture(autouse=True, params=["c++", "portable"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    found = rbnorm.backends()["cpu"]
    if request.param not in {"portable", found.name}:
        pytest.skip(found.why)
    with rbnorm.use_backend(request.param):
        yield


def make(act: str, dtype: torch.dtype, training: bool = True) -> Act2d:
    """A layer with random parameters, the same for every dtype."""
    layer = Act2d(COUNT, act_layer=ACTIVATIONS[act], inplace=False, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(COUNT, generator=generator))
    layer.running_mean.copy_(torch.randn(COUNT, generator=generator))
    return layer.train(training)


def data(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, residual and dy; odd sizes, channels_last."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(3, 4, COUNT, 7, 9, generator=generator).to(dtype)
    return tuple(v.contiguous(memory_format=torch.channels_last) for v in values.unbind())


def run(layer: Act2d, x: Tensor, residual: Tensor | None, dy: Tensor) -> list[Tensor]:
    """Output, gradients, running statistics."""
    leaves = [None if t is None else t.clone().requires_grad_() for t in (x, residual)]
    y = layer(leaves[0], leaves[1])
    y.backward(dy)
    grads = [t.grad for t in (*leaves, *layer.parameters()) if t is not None]
    return [y.detach(), *grads, layer.running_mean, layer.running_var]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_fused_equals_one_after_the_other(
    act: str, with_residual: bool, training: bool, dtype: torch.dtype
) -> None:
    x, residual, dy = data(dtype)
    fused, apart = (make(act, dtype, training) for _ in range(2))
    called = []
    apart.act.register_forward_hook(lambda *_: called.append(True))  # then it is a call of its own
    pairs = (run(layer, x, residual if with_residual else None, dy) for layer in (fused, apart))
    for ours, expected in zip(*pairs, strict=True):
        assert_close(ours, expected, dtype, scale=10.0)
    assert called == [True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_half_result_is_one_rounding_of_the_exact_one(
    act: str, training: bool, dtype: torch.dtype
) -> None:
    x, residual, _ = data(dtype)
    y = make(act, torch.float32, training)(x, residual)
    exact = make(act, torch.float64, training)(x.double(), residual.double())
    assert y.dtype == dtype
    spacing = torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)
    assert ((y.double() - exact).abs() <= 0.51 * spacing + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_half_gradients(act: str, dtype: torch.dtype) -> None:
    x, residual, dy = data(dtype)
    found = run(make(act, torch.float32), x, residual, dy)
    exact = run(make(act, torch.float64), x.double(), residual.double(), dy.double())
    for ours, expected in zip(found, exact, strict=True):
        assert_close(ours, expected, ours.dtype, scale=10.0)


def test_drop_layer_acts_before_residual_and_activation() -> None:
    torch.manual_seed(0)
    x, residual, _ = data(torch.float32)
    layer = Act2d(COUNT, drop_layer=lambda: nn.Dropout(p=1.0))
    assert torch.equal(layer(x, residual), F.relu(residual))
