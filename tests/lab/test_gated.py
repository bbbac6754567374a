"""The gated BatchNorm against its formula in float64."""

import copy

import pytest
import torch
from cases import LAYOUTS, arrange
from tolerances import assert_close
from torch import nn

from rbnorm_lab.gated import InstanceEnhancementBatchNorm2d

SHAPES = [(4, 3, 5, 7), (1, 8, 3, 3), (5, 2, 1, 1), (2, 17, 1, 9)]


def perturbed(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


def batchnorm(x, layer):
    """Normalised features without gamma and beta, in the mode of the layer."""
    axes = (0, 2, 3)
    mean, var = layer.running_mean, layer.running_var
    if layer.training:
        mean, var = x.mean(axes), x.var(axes, correction=0)
    column = (1, -1, 1, 1)
    return (x - mean.reshape(column)) / (var.reshape(column) + layer.eps).sqrt()


def iebn(x, layer):
    gate = torch.sigmoid(layer.gate_weight * x.mean((2, 3)) + layer.gate_bias)
    y = layer.weight[:, None, None] * gate[..., None, None] * batchnorm(x, layer)
    return y + layer.bias[:, None, None]


@pytest.mark.parametrize(
    ("shape", "training"),
    [((0, 4, 3, 3), False), *((shape, mode) for shape in SHAPES for mode in (True, False))],
)
def test_outputs_and_gradients_are_those_of_the_formula(shape, training):
    torch.manual_seed(0)
    layer = perturbed(InstanceEnhancementBatchNorm2d(shape[1]).double()).train(training)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(x)
    wanted = [x, *layer.parameters()]
    expected = iebn(x, layer)
    expected_gradients = torch.autograd.grad(expected, wanted, dy)
    y = layer(x)
    assert_close(y, expected, torch.float64)
    for a, b in zip(torch.autograd.grad(y, wanted, dy), expected_gradients, strict=True):
        assert_close(a, b, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_in_other_types_and_layouts(dtype, layout):
    torch.manual_seed(0)
    layer = perturbed(InstanceEnhancementBatchNorm2d(6))
    x = arrange(torch.randn(4, 6, 5, 3).to(dtype), layout)
    expected = iebn(x.double(), copy.deepcopy(layer).double())
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        actual = layer(x)
    assert actual.dtype == dtype
    assert_close(actual, expected, dtype)


def test_iebn_starts_as_batchnorm_of_a_gate_of_its_own():
    x = torch.randn(3, 4, 5, 5)
    gate = torch.sigmoid(torch.tensor(-1.0))
    torch.testing.assert_close(InstanceEnhancementBatchNorm2d(4)(x), gate * nn.BatchNorm2d(4)(x))


def test_iebn_without_affine_parameters():
    layer = InstanceEnhancementBatchNorm2d(4, affine=False)
    x = torch.randn(3, 4, 5, 5)
    assert {name for name, _ in layer.named_parameters()} == {"gate_weight", "gate_bias"}
    torch.testing.assert_close(layer(x), torch.sigmoid(layer.gate_bias[0]) * nn.BatchNorm2d(4)(x))
