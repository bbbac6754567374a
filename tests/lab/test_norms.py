import pytest
import timm.layers
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rbnorm import RepresentativeBatchNorm2d
from rbnorm.calibration import Calibration
from rbnorm.lab.config import NORMS
from rbnorm.lab.errors import UsageError
from rbnorm.lab.models import build_model
from rbnorm.lab.norms import SWAPS, canonical_norm, swap
from rbnorm.reference import RESTRICTIONS, STATISTICS

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
    assert swap(model, "gn")[0].num_groups == groups


def test_layer_norm_is_over_the_whole_image():
    x = torch.randn(4, 6, 5, 5) * 3 + 2
    y = swap(nn.Sequential(nn.BatchNorm2d(6)), "ln")(x)
    torch.testing.assert_close(y, nn.functional.layer_norm(x, x.shape[1:]), rtol=1e-5, atol=1e-5)


def test_the_activation_of_timms_norm_stays():
    layer = timm.layers.BatchNormAct2d(8, act_layer=nn.ReLU)
    swapped = swap(nn.Sequential(layer), "gn")
    x = torch.randn(2, 8, 4, 4)
    expected = nn.functional.group_norm(x, 8, eps=layer.eps).relu()
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


def test_instance_norm_needs_images():
    with pytest.raises(UsageError, match="replaces BatchNorm2d"):
        swap(nn.Sequential(nn.BatchNorm1d(4)), "in")


def test_every_norm_has_its_swap() -> None:
    assert tuple(SWAPS) == NORMS


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
    ],
)
def test_a_norm_has_one_spelling(spec, canonical):
    assert canonical_norm(spec) == canonical
    assert canonical_norm(canonical) == canonical


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
