import pytest
import timm.layers
import torch
from torch import nn

from rbnorm import RepresentativeBatchNorm2d
from rbnorm.lab.config import NORMS
from rbnorm.lab.errors import UsageError
from rbnorm.lab.models import SWAPS, build_model, canonical_name

EXPECTED = {
    "bn": nn.BatchNorm2d,
    "gn": nn.GroupNorm,
    "ln": nn.GroupNorm,
    "in": nn.InstanceNorm2d,
    "rbn": RepresentativeBatchNorm2d,
    "rbn-center": RepresentativeBatchNorm2d,
    "rbn-scale": RepresentativeBatchNorm2d,
}


def build(name, norm, seed=0, channels=3):
    return build_model(name, norm, classes=10, channels=channels, seed=seed)


def norms_of(model):
    kinds = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
    return [module for module in model.modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("norm", SWAPS)
def test_every_norm_replaces_every_batchnorm(norm):
    layers = norms_of(build("cifar-resnet8", norm))
    assert [type(layer) for layer in layers] == [EXPECTED[norm]] * 9


@pytest.mark.parametrize("name", ["cifar-resnet8", "torchvision:resnet18", "timm:resnet10t"])
@pytest.mark.parametrize("norm", SWAPS)
def test_the_initial_weights_do_not_depend_on_the_norm(name, norm):
    def weights(model):
        kinds = (nn.Conv2d, nn.Linear)
        return [p for m in model.modules() if isinstance(m, kinds) for p in m.parameters()]

    expected, actual = weights(build(name, "bn", seed=3)), weights(build(name, norm, seed=3))
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("norm", SWAPS)
def test_the_initial_affine_parameters_do_not_depend_on_the_norm(norm):
    # timm starts the last norm of every residual block at zero
    expected = [layer.weight.mean().item() for layer in norms_of(build("timm:resnet10t", "bn"))]
    actual = [layer.weight.mean().item() for layer in norms_of(build("timm:resnet10t", norm))]
    assert actual == expected
    assert 0.0 in actual


def test_seeds_differ():
    a, b = (build("cifar-resnet8", "bn", seed=seed).conv1.weight for seed in (0, 1))
    assert not torch.equal(a, b)


def test_halves_of_rbn_have_the_parameters_of_their_half():
    names = {
        norm: {
            name.rsplit(".", 1)[-1] for name, _ in build("cifar-resnet8", norm).named_parameters()
        }
        for norm in ("rbn-center", "rbn-scale")
    }
    assert names["rbn-center"] >= {"center_weight"}
    assert names["rbn-scale"] >= {"scale_weight", "scale_bias"}
    assert names["rbn-center"].isdisjoint({"scale_weight", "scale_bias"})
    assert "center_weight" not in names["rbn-scale"]


@pytest.mark.parametrize(("channels", "groups"), [(16, 16), (48, 24), (64, 32), (34, 17), (7, 7)])
def test_group_norm_has_the_most_groups_up_to_32(channels, groups):
    model = nn.Sequential(nn.BatchNorm2d(channels))
    assert SWAPS["gn"](model)[0].num_groups == groups


def test_layer_norm_is_over_the_whole_image():
    x = torch.randn(4, 6, 5, 5) * 3 + 2
    y = SWAPS["ln"](nn.Sequential(nn.BatchNorm2d(6)))(x)
    torch.testing.assert_close(y, nn.functional.layer_norm(x, x.shape[1:]), rtol=1e-5, atol=1e-5)


def test_the_activation_of_timms_norm_stays():
    layer = timm.layers.BatchNormAct2d(8, act_layer=nn.ReLU)
    swapped = SWAPS["gn"](nn.Sequential(layer))
    x = torch.randn(2, 8, 4, 4)
    expected = nn.functional.group_norm(x, 8, eps=layer.eps).relu()
    torch.testing.assert_close(swapped(x), expected)


def test_a_shared_layer_stays_shared():
    layer = nn.BatchNorm2d(4)
    swapped = SWAPS["gn"](nn.Sequential(layer, nn.ReLU(), layer))
    assert isinstance(swapped[0], nn.GroupNorm)
    assert swapped[0] is swapped[2]


def test_without_affine_parameters_there_are_none_afterwards():
    swapped = SWAPS["in"](nn.Sequential(nn.BatchNorm2d(4, affine=False, eps=0.5)))
    assert list(swapped.parameters()) == []
    assert swapped[0].eps == 0.5


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


def test_instance_norm_needs_images():
    with pytest.raises(UsageError, match="replaces BatchNorm2d"):
        SWAPS["in"](nn.Sequential(nn.BatchNorm1d(4)))


def test_every_norm_has_its_swap() -> None:
    assert tuple(SWAPS) == NORMS
