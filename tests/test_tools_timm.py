"""timm's models and utilities with RBN layers; each test is a row of docs/tools.md."""

import copy
import functools
from typing import Any

import pytest
import timm
import torch
from models import norms
from timm.layers import BatchNormAct2d
from timm.models import FeatureGraphNet
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn

import rbnorm
from rbnorm import RepresentativeBatchNorm2d, RepresentativeBatchNormAct2d

Act2d = RepresentativeBatchNormAct2d


def assert_all_rbn(model: nn.Module, kind: type[nn.Module] = RepresentativeBatchNorm2d) -> None:
    layers = norms(model)
    assert len(layers) > 10
    assert all(isinstance(layer, kind) for layer in layers)


def x(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet10t", "resnest14d", "res2net50_14w_8s"])
def test_families_with_plain_norm_slots(name: str) -> None:
    # With gamma 0 in the last layer of each block, its default, the others get no gradient.
    model = timm.create_model(name, norm_layer=RepresentativeBatchNorm2d, zero_init_last=False)
    assert_all_rbn(model)
    model(x()).square().sum().backward()
    assert all(layer.scale_bias.grad.any() for layer in norms(model))


NORM_ACT = ["efficientnet_lite0", "regnetx_002", "densenet121", "resnetv2_50", "mobilevit_xxs"]


@pytest.mark.parametrize("name", NORM_ACT)
def test_norm_act_slots_refuse_what_they_do_not_know(name: str) -> None:
    """timm asks a table of its own for the norm-act layer, and says so."""
    for layer in (RepresentativeBatchNorm2d, Act2d):
        with pytest.raises(AssertionError, match="No equivalent norm_act layer for representative"):
            timm.create_model(name, norm_layer=layer)


@pytest.mark.parametrize("name", ["regnetx_002", "resnetv2_50"])
def test_norm_act_slots_take_a_function(name: str) -> None:
    """For families whose activation is ReLU; a function has to know the activation itself."""

    def make(*args: Any, **options: Any) -> nn.Module:
        return Act2d(*args, **options)

    torch.manual_seed(0)
    built = timm.create_model(name, norm_layer=make)
    torch.manual_seed(0)
    converted = rbnorm.convert_batchnorm(timm.create_model(name), preserve=False)
    assert_all_rbn(built, Act2d)
    assert torch.equal(built(x()), converted(x()))


@pytest.mark.parametrize("name", [*NORM_ACT, "mobilenetv3_small_050"])
def test_conversion_after_build(name: str) -> None:
    """Each norm-act layer becomes one of ours, with its activation; all learn."""
    model = timm.create_model(name)
    kinds = [type(layer) for layer in norms(model)]
    activations = [str(layer.act) for layer in norms(model) if isinstance(layer, BatchNormAct2d)]
    rbnorm.convert_batchnorm(model, preserve=False)
    wanted = {BatchNormAct2d: Act2d, nn.BatchNorm2d: RepresentativeBatchNorm2d}
    assert [type(layer) for layer in norms(model)] == [wanted[kind] for kind in kinds]
    ours = [str(layer.act) for layer in norms(model) if isinstance(layer, Act2d)]
    assert ours == activations
    model(x()).square().sum().backward()
    assert all(layer.scale_bias.grad is not None for layer in norms(model))


def test_norm_act_layer_keeps_activation_and_drop() -> None:
    drop = functools.partial(nn.Dropout2d, 0.5)
    theirs = BatchNormAct2d(4, act_layer=nn.SiLU, drop_layer=drop)
    ours = rbnorm.convert_batchnorm(copy.deepcopy(theirs))
    image = torch.randn(6, 4, 5, 5)
    results = []
    for layer in (ours, theirs):
        torch.manual_seed(0)
        results.append(layer(image))
    torch.testing.assert_close(*results)
    zeros = (results[0] == 0).flatten(2).all(2)
    assert zeros.any()
    assert not zeros.all()


def test_feature_models() -> None:
    model = timm.create_model("resnet10t", norm_layer=RepresentativeBatchNorm2d).eval()
    features = timm.create_model(
        "resnet10t", norm_layer=RepresentativeBatchNorm2d, features_only=True
    )
    features.load_state_dict(model.state_dict(), strict=False)
    last = features.eval()(x())[-1]
    assert torch.equal(last, model.forward_features(x()))
    assert torch.equal(FeatureGraphNet(model, [4]).eval()(x())[0], last)


def test_model_ema() -> None:
    """Calibration and statistics are averaged like everything else."""
    model = timm.create_model("resnet10t", norm_layer=RepresentativeBatchNorm2d)
    ema = ModelEmaV3(model, decay=0.75)
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model(x())
    ema.update(model)
    assert_all_rbn(ema.module)
    for name, value in model.state_dict().items():
        expected = start[name].lerp(value, 0.25) if value.is_floating_point() else value
        torch.testing.assert_close(ema.module.state_dict()[name], expected, rtol=1e-5, atol=1e-5)


def test_groups_without_decay() -> None:
    """timm's rule puts every parameter of ours, of one axis, among those without decay."""
    model = timm.create_model("resnet10t", norm_layer=RepresentativeBatchNorm2d)
    groups = param_groups_weight_decay(model, weight_decay=0.1)
    free = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    own = [p for layer in norms(model) for p in layer.parameters()]
    assert len(own) == 5 * len(norms(model))
    assert all(id(parameter) in free for parameter in own)
