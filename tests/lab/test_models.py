import pytest
import torch
from torch import nn

from rbnorm.lab.errors import UsageError
from rbnorm.lab.models import build_model, canonical_name


def build(name, norm, seed=0, channels=3):
    return build_model(name, norm, classes=10, channels=channels, seed=seed)


def test_seeds_differ():
    a, b = (build("cifar-resnet8", "bn", seed=seed).conv1.weight for seed in (0, 1))
    assert not torch.equal(a, b)


def test_depth_and_channels_of_the_small_resnet():
    model = build("cifar-resnet20", "bn", channels=1)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len([m for m in convolutions if m.kernel_size == (3, 3)]) == 19
    assert model.conv1.in_channels == 1
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("cifar-resnet8", "cifar-resnet8"),
        ("resnet18", "torchvision:resnet18"),
        ("timm:resnet18", "timm:resnet18"),
        ("resnet10t", "timm:resnet10t"),
    ],
)
def test_a_model_has_one_name(name, canonical):
    assert canonical_name(name) == canonical


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "unknown model 'resnet81': did you mean .*resnet18"),
        ("zzzzzz", "unknown model 'zzzzzz': see"),
        ("torchvision:resnet10t", "unknown model 'torchvision:resnet10t'"),
        ("cifar-resnet9", "no whole number of blocks"),
        ("cifar-resnet2", "no whole number of blocks"),
    ],
)
def test_an_unknown_model_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        canonical_name(name)


def test_a_model_without_batchnorm_is_refused():
    with pytest.raises(UsageError, match="torchvision:squeezenet1_0 has no BatchNorm"):
        build("torchvision:squeezenet1_0", "gn")
