"""Layers made without memory: whoever gives them some, the calibration gets its initial values."""

import copy
import pickle

import pytest
import torch
from torch import nn

import rbnorm

INITIAL = {"center_weight_init": 0.25, "scale_weight_init": -0.5, "scale_bias_init": 2.0}


def built() -> nn.Module:
    with torch.device("meta"):
        return rbnorm.RepresentativeBatchNorm2d(4, **INITIAL)


def converted() -> nn.Module:
    with torch.device("meta"):
        return rbnorm.convert_batchnorm(nn.BatchNorm2d(4), False, **INITIAL)


def reloaded() -> nn.Module:
    return pickle.loads(pickle.dumps(built()))


def moved(layer: nn.Module) -> None:
    layer.to_empty(device="cpu")


def missing_keys(layer: nn.Module) -> None:
    """As libraries do that load tensor by tensor."""
    for name, parameter in list(layer._parameters.items()):
        value = torch.empty_like(parameter, device="cpu")
        setattr(layer, name, nn.Parameter(value, requires_grad=parameter.requires_grad))


def of_its_type(layer: nn.Module) -> None:
    for name, parameter in list(layer._parameters.items()):
        value = torch.empty_like(parameter, device="cpu").detach()
        layer._parameters[name] = type(parameter)(value, requires_grad=True)


@pytest.mark.parametrize("fill", [moved, missing_keys, of_its_type])
@pytest.mark.parametrize("make", [built, converted, reloaded, lambda: copy.deepcopy(built())])
def test_memory_has_the_initial_values(make, fill) -> None:
    layer = make()
    assert layer.scale_bias.is_meta
    fill(layer)
    for name in ("center_weight", "scale_weight", "scale_bias"):
        value = getattr(layer, name)
        assert type(value) is nn.Parameter
        assert value.requires_grad
        assert (value == INITIAL[f"{name}_init"]).all()


@torch.no_grad()
def test_calibration_gets_memory_with_its_layer() -> None:
    """A checkpoint without calibration that somebody assigned tensor by tensor, then moved."""
    layer = built()
    for name, value in nn.BatchNorm2d(4).state_dict().items():
        if name in layer._parameters:
            layer._parameters[name] = nn.Parameter(value)
        else:
            layer._buffers[name] = value
    layer.to(torch.float64)
    for name, value in INITIAL.items():
        vector = getattr(layer, name.removesuffix("_init"))
        assert vector.dtype == torch.float64
        assert (vector == value).all()


@torch.no_grad()
@pytest.mark.parametrize("way", ["moved", "assigned", "both"])
def test_constant_of_a_layer_without_gamma_has_its_value(way: str) -> None:
    with torch.device("meta"):
        layer = rbnorm.convert_batchnorm(nn.BatchNorm2d(4, affine=False))
    source = nn.BatchNorm2d(4, affine=False)
    source.running_mean.fill_(1)
    if way != "assigned":
        layer.to_empty(device="cpu")
    if way != "moved":
        layer.load_state_dict(source.state_dict(), assign=way == "assigned")
        x = torch.randn(2, 4, 3, 3)
        torch.testing.assert_close(layer.eval()(x), source.eval()(x))
    assert layer.weight.tolist() == pytest.approx([1 / 0.7310585786300049] * 4)


def test_loading_replaces_them() -> None:
    layer, other = built(), rbnorm.RepresentativeBatchNorm2d(4)
    layer.load_state_dict(other.state_dict(), assign=True)
    assert all(type(p) is nn.Parameter for p in layer.parameters())
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(layer(x), other(x))
