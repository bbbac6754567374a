import pytest
import torch
from torch import nn

from rbnorm_lab.errors import UsageError
from rbnorm_lab.models import build_model, model_name, needs_rgb


def build(name, norm, seed=0, channels=3):
    return build_model(name, norm, classes=10, channels=channels, seed=seed)


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
        ("small:resnet18", "small:torchvision:resnet18"),
        ("small:regnetx_002", "small:timm:regnetx_002"),
        ("small:timm:resnet18", "small:timm:resnet18"),
    ],
)
def test_a_model_has_one_name(name, canonical):
    assert model_name(name) == canonical


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "unknown model 'resnet81': did you mean .*resnet18"),
        ("zzzzzz", "unknown model 'zzzzzz': see"),
        ("torchvision:resnet10t", "unknown model 'torchvision:resnet10t'"),
        ("small:resnet81", "unknown model 'small:resnet81': did you mean .*resnet18"),
        ("small:cifar-resnet8", "did you mean cifar-resnet8"),
        ("small:", "unknown model 'small:': see"),
        ("cifar-resnet9", "no whole number of blocks"),
        ("cifar-resnet2", "no whole number of blocks"),
    ],
)
def test_an_unknown_model_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        model_name(name)


def widths(model):
    """Widths of the features that the norms see, in an image of width 64."""
    found = []
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda *call: found.append(call[-1].shape[-1]))
    model.eval()(torch.zeros(1, 3, 64, 64))
    return found


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("torchvision:resnet18", (32, 8)),  # of the convolution and of the pooling
        ("torchvision:mobilenet_v3_small", (32, 16)),
        ("timm:regnetx_002", (32, 16)),
        ("timm:cs3darknet_s", (32, 16)),
        ("timm:resnet10t", (32, 8)),
    ],
)
def test_small_takes_the_strides_of_the_stem(name, strides):
    usual, small = (widths(build(f"{prefix}{name}", "bn")) for prefix in ("", "small:"))
    assert (max(usual), max(small)) == (32, 64)
    assert (min(usual), min(small)) == tuple(64 // stride for stride in strides)


def test_small_keeps_the_weights():
    small, usual = (build(f"{p}torchvision:resnet18", "bn").state_dict() for p in ("small:", ""))
    assert all(torch.equal(small[key], usual[key]) for key in usual)


@pytest.mark.parametrize(
    ("name", "rgb"),
    [
        ("torchvision:resnet18", True),
        ("small:torchvision:resnet18", True),
        ("small:timm:resnet18", False),
        ("cifar-resnet8", False),
    ],
)
def test_models_of_torchvision_need_three_channels(name, rgb):
    assert needs_rgb(name) == rgb
    build(name, "bn", channels=3 if rgb else 1)(torch.zeros(2, 3 if rgb else 1, 32, 32))


def test_a_model_without_a_strided_stem_has_no_small_form():
    with pytest.raises(UsageError, match="small:torchvision:vgg11_bn does not exist"):
        build("small:torchvision:vgg11_bn", "bn")


def test_a_model_without_batchnorm_is_refused():
    with pytest.raises(UsageError, match="torchvision:squeezenet1_0 has no BatchNorm"):
        build("torchvision:squeezenet1_0", "gn")
