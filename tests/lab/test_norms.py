from functools import cache

import pytest
import timm.layers
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rbnorm import RepresentativeBatchNorm2d
from rbnorm.definition import RESTRICTIONS, STATISTICS
from rbnorm.layers.options import Calibration
from rbnorm_lab.errors import UsageError
from rbnorm_lab.models import build_model
from rbnorm_lab.names import NORMS
from rbnorm_lab.norms import SWAPS, canonical_norm, swap

EXPECTED = {
    "bn": nn.BatchNorm2d,
    "gn": nn.GroupNorm,
    "ln": nn.GroupNorm,
    "ln2d": timm.layers.LayerNorm2d,
    "in": nn.InstanceNorm2d,
    "rbn": RepresentativeBatchNorm2d,
    "rbn-center": RepresentativeBatchNorm2d,
    "rbn-scale": RepresentativeBatchNorm2d,
}
FAMILIES = {
    "cifar-resnet8": 9,
    "small:torchvision:mobilenet_v3_small": 34,
    "small:timm:regnetx_002": 44,
    "small:timm:cs3darknet_s": 32,
}
"""Norms of a network."""


def build(name, norm, seed=0, channels=3):
    return build_model(name, norm, classes=10, channels=channels, seed=seed)


def norms_of(model):
    kinds = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, *EXPECTED.values())
    return [module for module in model.modules() if isinstance(module, kinds)]


@cache
def weights(name):
    """Those that a family has with any norm, of the convolutions and linear layers."""
    model = build(name, "bn")
    return {
        f"{layer}.{own}": parameter
        for layer, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        for own, parameter in module.named_parameters()
    }


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("norm", SWAPS)
def test_every_family_trains_with_every_norm_in_place_of_every_batchnorm(name, norm):
    model = build(name, norm)
    layers = norms_of(model)
    assert len(layers) == FAMILIES[name]
    assert all(isinstance(layer, EXPECTED[norm]) for layer in layers)
    own = dict(model.named_parameters())
    assert len(weights(name)) > 8
    assert all(torch.equal(own[key], weight) for key, weight in weights(name).items())
    scores = model(torch.randn(2, 3, 28, 28))
    nn.functional.cross_entropy(scores, torch.tensor([1, 7])).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("norm", SWAPS)
def test_the_initial_affine_parameters_do_not_depend_on_the_norm(norm):
    # timm starts the last norm of every residual block at zero
    means = [
        sorted(layer.weight.mean().item() for layer in norms_of(build("timm:resnet10t", norm)))
        for norm in ("bn", norm)
    ]
    assert means[0] == means[1]
    assert 0.0 in means[0]


@pytest.mark.parametrize("norm", ["gn", "rbn"])
def test_a_seed_means_the_same_network(norm):
    a, b, c = (build("cifar-resnet8", norm, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


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


@pytest.mark.parametrize(
    ("channels", "groups"), [(16, 4), (48, 12), (64, 16), (256, 32), (34, 2), (7, 1), (3, 1)]
)
def test_group_norm_has_the_most_groups_of_four_channels_up_to_32(channels, groups):
    model = nn.Sequential(nn.BatchNorm2d(channels))
    assert swap(model, "gn")[0].num_groups == groups


@pytest.mark.parametrize(("norm", "axes"), [("ln", (1, 2, 3)), ("ln2d", 1)])
def test_layer_norm_is_over_the_whole_image_and_convnexts_over_a_pixel(norm, axes):
    x = torch.randn(4, 6, 5, 5) * 3 + 2
    y = swap(nn.Sequential(nn.BatchNorm2d(6)), norm)(x)
    var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    layer_eps = 1e-5
    torch.testing.assert_close(y, (x - mean) / (var + layer_eps).sqrt(), rtol=1e-5, atol=1e-5)


def test_the_activation_of_timms_norm_stays():
    layer = timm.layers.BatchNormAct2d(8, act_layer=nn.ReLU)
    swapped = swap(nn.Sequential(layer), "gn")
    x = torch.randn(2, 8, 4, 4)
    expected = nn.functional.group_norm(x, 2, eps=layer.eps).relu()
    torch.testing.assert_close(swapped(x), expected)


def test_a_shared_layer_stays_shared():
    layer = nn.BatchNorm2d(4)
    swapped = swap(nn.Sequential(layer, nn.ReLU(), layer), "gn")
    assert isinstance(swapped[0], nn.GroupNorm)
    assert swapped[0] is swapped[2]


def test_without_affine_parameters_there_are_none_afterwards():
    swapped = swap(nn.Sequential(nn.BatchNorm2d(4, affine=False, eps=0.5)), "in")
    assert list(swapped.parameters()) == []
    assert swapped[0].eps == 0.5


def test_every_name_has_its_norm():
    assert tuple(SWAPS) == NORMS


@pytest.mark.parametrize("norm", ["ln2d", "in"])
def test_norms_of_images_need_images(norm):
    with pytest.raises(UsageError, match="replaces BatchNorm2d"):
        swap(nn.Sequential(nn.BatchNorm1d(4)), norm)


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("bn", "bn"),
        ("rbn", "rbn"),
        ("rbn:statistic=max:restrict=tanh", "rbn:restrict=tanh:statistic=max"),
        ("rbn:restrict=sigmoid:statistic=std", "rbn:statistic=std"),
        ("rbn:scale_bias_init=2.0:scale_weight_init=-0.0", "rbn:scale_bias_init=2"),
        ("rbn:scale_weight_init=1e-1", "rbn:scale_weight_init=0.1"),
        ("rbn-scale:preserve=yes", "rbn-scale:preserve=yes"),
        ("rbn-center:center_weight_init=-.5", "rbn-center:center_weight_init=-0.5"),
        ("rbn:preserve=no", "rbn"),
        ("rbn:first_center_weight_init=-.90", "rbn:first_center_weight_init=-0.9"),
        ("rbn:first_center_weight_init=0", "rbn:first_center_weight_init=0"),
    ],
)
def test_a_norm_has_one_spelling(spec, canonical):
    assert canonical_norm(spec) == canonical
    assert canonical_norm(canonical) == canonical


def _centring(spec):
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(3)), nn.BatchNorm2d(1))
    return [m for m in swap(model, spec).modules() if hasattr(m, "center_weight")]


def test_centring_can_begin_elsewhere_in_the_first_layers():
    spec = "rbn:center_weight_init=0.25:first_center_weight_init=-0.5:statistic=std"
    layers = _centring(spec)
    assert [layer.center_weight.unique().tolist() for layer in layers] == [[-0.5], [0.25], [0.25]]
    assert {layer.calibration.statistic for layer in layers} == {"std"}
    layers = _centring(f"{spec}:first_layers=2")
    assert [layer.center_weight.unique().tolist() for layer in layers] == [[-0.5], [-0.5], [0.25]]


@pytest.mark.parametrize("count", ["0", "1.5", "-1", "inf", "nan"])
def test_first_layers_are_a_whole_number_of_them(count):
    with pytest.raises(UsageError, match="first_layers must be a whole number from 1 on, not"):
        canonical_norm(f"rbn:first_center_weight_init=-0.5:first_layers={count}")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "statistic": st.sampled_from(sorted(STATISTICS)),
            "restrict": st.sampled_from(sorted(RESTRICTIONS)),
            **dict.fromkeys(
                ("center_weight_init", "scale_weight_init", "scale_bias_init"),
                st.floats(-4, 4, width=32),
            ),
        },
    ),
    st.randoms(),
)
def test_equal_specs_and_only_they_are_spelt_equally(options, random):
    items = [f"{option}={value}" for option, value in options.items()]
    canonical = canonical_norm(":".join(["rbn", *items]))
    random.shuffle(items)
    assert canonical_norm(":".join(["rbn", *items])) == canonical
    layer = swap(nn.BatchNorm2d(1), canonical)
    assert layer.calibration == Calibration.of(**options)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rbm", "unknown norm 'rbm': did you mean rbn"),
        ("", "unknown norm '': choose from bn, gn"),
        ("bn:eps=1", "unknown option 'eps' of norm bn: it has none"),
        ("rbn:scale=no", "unknown option 'scale' of norm rbn: choose from center_weight_init"),
        ("rbn-center:restrict=tanh", "unknown option 'restrict' of norm rbn-center"),
        ("rbn:", "unknown option '' of norm rbn"),
        ("rbn:restrict", "restrict must be one of sigmoid, tanh, .* not ''"),
        ("rbn:statistic=median", "statistic must be one of mean, .* not 'median'"),
        ("rbn:scale_bias_init=big", "scale_bias_init must be a number, not 'big'"),
        ("rbn:scale_bias_init=inf", "scale_bias_init must be a finite number, got inf"),
        ("rbn:preserve=1", "preserve must be yes or no, not '1'"),
        ("rbn:restrict=tanh:restrict=tanh", "has restrict twice"),
        ("rbn:preserve=yes:scale_weight_init=1", "scale_weight_init must be 0 to preserve"),
        ("rbn:preserve=yes:restrict=tanh:scale_bias_init=0", "must be finite and not 0"),
    ],
)
def test_a_wrong_spec_is_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        canonical_norm(spec)


def test_a_preserving_spec_starts_as_batchnorm():
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    layer = nn.BatchNorm2d(4).double()
    expected = layer(x)
    actual = swap(layer, "rbn:preserve=yes:scale_bias_init=2")(x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
