"""Pruned and parametrised layers in every operation on models."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import rbnorm


class Doubled(nn.Module):
    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        return 2 * vector


def pruned(layer: nn.Module, name: str) -> None:
    prune.l1_unstructured(layer, name, amount=0.5)


def parametrised(layer: nn.Module, name: str) -> None:
    parametrize.register_parametrization(layer, name, Doubled())


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    return rbnorm.convert_batchnorm(nn.Sequential(*layers))


CHANGES = pytest.mark.parametrize("change", [pruned, parametrised])
VECTORS = ["weight", "bias", "center_weight", "scale_weight", "scale_bias"]
Change = Callable[[nn.Module, str], None]


@CHANGES
@pytest.mark.parametrize("vector", VECTORS)
def test_revert_refuses_before_anything_changes(change: Change, vector: str) -> None:
    """And after the command that it names, it works."""
    net, x = model(), torch.randn(2, 2, 6, 6)
    change(net[2], vector)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        ValueError, match=f"layer '2' has a pruned or parametrised {vector}"
    ) as said:
        rbnorm.revert_batchnorm(net, x)
    assert isinstance(net[1], rbnorm.RepresentativeBatchNorm2d)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    exec(str(said.value).partition(", by ")[2], {"torch": torch, "layer": net[2]})
    assert rbnorm.revert_batchnorm(net, x).output is not None
    assert type(net[2]) is nn.BatchNorm2d


def test_revert_refuses_what_only_its_own_function_removes() -> None:
    net = model()
    nn.utils.spectral_norm(net[2])
    with pytest.raises(ValueError, match=r"parametrised weight; .* the function that"):
        rbnorm.revert_batchnorm(net)
    assert isinstance(net[1], rbnorm.RepresentativeBatchNorm2d)


@CHANGES
@pytest.mark.parametrize("vector", VECTORS)
def test_freeze_reaches_what_the_vector_is_made_of(change: Change, vector: str) -> None:
    net = model()
    change(net[2], vector)
    rbnorm.freeze(net, affine=True, calibration=True)
    assert not any(p.requires_grad for layer in net[1:] for p in layer.parameters())
    assert all(p.requires_grad for p in net[0].parameters())
    rbnorm.unfreeze(net, affine=True, calibration=True)
    assert all(p.requires_grad for p in net.parameters())


@CHANGES
@pytest.mark.parametrize("vector", VECTORS)
def test_groups_have_what_the_vector_is_made_of(change: Change, vector: str) -> None:
    net = model()
    change(net[2], vector)
    rates = {"affine": {"lr": 0.5}, "calibration": {"lr": 0.25}}
    groups = {g["name"]: g for g in rbnorm.parameter_groups(net, 0.1, **rates)}
    assert [len(groups[name]["params"]) for name in ("affine", "calibration")] == [4, 6]
    assert (groups["affine"]["lr"], groups["calibration"]["lr"]) == (0.5, 0.25)
    assert sum(len(group["params"]) for group in groups.values()) == len(list(net.parameters()))


@CHANGES
def test_synchronising_keeps_what_the_layer_computes(change: Change) -> None:
    net, x = model().eval(), torch.randn(2, 2, 6, 6)
    change(net[1], "scale_bias")
    expected = net(x)
    try:
        rbnorm.convert_sync(net)
    except ValueError as error:
        assert "Parametrized" in str(error)  # noqa: PT017
    torch.testing.assert_close(net(x), expected)
