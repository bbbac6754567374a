"""Checkpoints: the layer's own, plain BatchNorm's, and the official implementation's."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import rbnorm

CALIBRATION = ["center_weight", "scale_weight", "scale_bias"]


def trained(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer.train()(torch.randn(8, 3, 4, 4) + 1)
    return layer


def official(layer: nn.Module) -> dict[str, Tensor]:
    """The state of the official layer: parameters (1, C, 1, 1), buffers as BatchNorm's."""
    return {
        name: value.view(1, -1, 1, 1) if isinstance(value, nn.Parameter) else value
        for name, value in layer.state_dict(keep_vars=True).items()
    }


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"track_running_stats": False}, {"scale": False}]
)
def test_batchnorm_checkpoint_takes_initial_calibration(
    assign: bool, options: dict[str, Any]
) -> None:
    common = {k: v for k, v in options.items() if k != "scale"}
    source = trained(nn.BatchNorm2d(3, **common))
    model = nn.Sequential(trained(rbnorm.RepresentativeBatchNorm2d(3, **options)))
    state = {f"0.{name}": value for name, value in source.state_dict().items()}
    assert model.load_state_dict(state, strict=True, assign=assign) == ([], [])
    for name, value in source.state_dict().items():
        assert torch.equal(getattr(model[0], name), value)
    assert model[0].center_weight.tolist() == [0, 0, 0]
    if model[0].calibration.scale:
        assert model[0].scale_weight.tolist() == [0, 0, 0]
        assert model[0].scale_bias.tolist() == [1, 1, 1]
    assert sorted(state) == sorted(f"0.{name}" for name in source.state_dict())


def test_batchnorm_checkpoint_into_a_meta_model() -> None:
    source = trained(nn.BatchNorm2d(3))
    target = rbnorm.RepresentativeBatchNorm2d(3, device="meta")
    target.load_state_dict(source.state_dict(), assign=True)
    assert not any(tensor.is_meta for tensor in target.state_dict().values())
    assert torch.equal(target.running_var, source.running_var)


def test_batchnorm_checkpoint_without_a_counter() -> None:
    state = trained(nn.BatchNorm2d(3)).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    target = rbnorm.RepresentativeBatchNorm2d(3)
    target.load_state_dict(state)
    assert target.num_batches_tracked == 0


@pytest.mark.parametrize("form", [official, nn.Module.state_dict])
def test_checkpoint_of_an_rbn_layer(form) -> None:
    source = trained(rbnorm.RepresentativeBatchNorm2d(3))
    state, target = form(source), rbnorm.RepresentativeBatchNorm2d(3)
    shapes = {name: value.shape for name, value in state.items()}
    target.load_state_dict(state)
    for name, value in source.state_dict().items():
        assert torch.equal(getattr(target, name), value)
        assert getattr(target, name).shape == value.shape
    assert {name: value.shape for name, value in state.items()} == shapes


@pytest.mark.parametrize(
    ("missing", "options", "message"),
    [
        (["center_weight"], {}, 'Missing key.*"center_weight"'),
        (["scale_bias"], {}, 'Missing key.*"scale_bias"'),
        (["weight", "bias", *CALIBRATION], {}, r'"weight".*"center_weight"'),
        ([], {"center": False}, 'Unexpected key.*"center_weight"'),
        ([], {"num_features": 4}, "size mismatch for center_weight"),
    ],
)
def test_checkpoint_that_does_not_fit_is_reported(missing, options, message) -> None:
    state = trained(rbnorm.RepresentativeBatchNorm2d(3)).state_dict()
    for name in missing:
        del state[name]
    with pytest.raises(RuntimeError, match=message):
        rbnorm.RepresentativeBatchNorm2d(**{"num_features": 3, **options}).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "entry"),
    [({}, {"weight": torch.ones(3)}), ({"affine": False, "track_running_stats": False}, {})],
)
def test_partial_state_does_not_reset_the_calibration(options, entry) -> None:
    layer = trained(rbnorm.RepresentativeBatchNorm2d(3, **options))
    expected = {name: value.clone() for name, value in layer.state_dict().items()} | entry
    layer.load_state_dict(entry, strict=False)
    assert layer.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}])
def test_batchnorm_checkpoint_keeps_its_function_in_a_model_that_preserves_it(
    assign: bool, options: dict[str, Any]
) -> None:
    """Built, converted, then loaded: gamma is divided as conversion would have done."""
    source = trained(nn.BatchNorm2d(3, **options)).double().eval()
    state = copy.deepcopy(source.state_dict())
    model = rbnorm.convert_batchnorm(nn.BatchNorm2d(3, **options).double()).eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for _ in range(2):
        given = copy.deepcopy(state)
        assert model.load_state_dict(given, assign=assign) == ([], [])
        assert all(torch.equal(value, state[name]) for name, value in given.items())
        torch.testing.assert_close(model(x), source(x), rtol=0, atol=1e-12)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
    own = copy.deepcopy(model.state_dict())
    model.load_state_dict(own)
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_batchnorm_checkpoint_put_into_the_models_state_is_warned_of() -> None:
    """Nothing tells it from training state: the calibration is given, and is the layer's own."""
    model = rbnorm.convert_batchnorm(nn.Sequential(nn.BatchNorm2d(3)))
    state = model.state_dict()
    model.load_state_dict(state)
    state.update(nn.Sequential(nn.BatchNorm2d(3)).state_dict())
    with pytest.warns(UserWarning, match=r"'0' has the layer's own.* by itself, by model\.load_st"):
        model.load_state_dict(state)
    model.load_state_dict({**state, "0.center_weight": torch.ones(3)})


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (lambda layer: prune.l1_unstructured(layer, "scale_weight", 1), ["_orig", "_mask"]),
        (lambda layer: parametrize.register_parametrization(layer, "scale_weight", nn.Tanh()), []),
    ],
)
def test_no_key_that_nobody_gave_is_named(change, missing: list[str]) -> None:
    """Of a BatchNorm's checkpoint, into a layer whose calibration is not its own parameter."""
    layer = rbnorm.RepresentativeBatchNorm2d(3)
    change(layer)
    found = layer.load_state_dict(nn.BatchNorm2d(3).state_dict(), strict=False)
    assert found.unexpected_keys == []
    keys = [f"scale_weight{end}" for end in missing]
    assert found.missing_keys == (keys or ["parametrizations.scale_weight.original"])
