"""Checkpoints: the layer's own, plain BatchNorm's, and the official implementation's."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import rbnorm


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


def test_own_checkpoint() -> None:
    source = trained(rbnorm.RepresentativeBatchNorm2d(3))
    target = rbnorm.RepresentativeBatchNorm2d(3)
    target.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(target.eval()(x), source.eval()(x))


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


def test_official_checkpoint() -> None:
    source = trained(rbnorm.RepresentativeBatchNorm2d(3))
    state = official(source)
    target = rbnorm.RepresentativeBatchNorm2d(3)
    target.load_state_dict(state)
    for name, value in source.state_dict().items():
        assert torch.equal(getattr(target, name), value)
        assert getattr(target, name).shape == value.shape
    assert state["weight"].shape == (1, 3, 1, 1)


@pytest.mark.parametrize("missing", ["center_weight", "scale_bias"])
def test_partly_missing_calibration_is_reported(missing: str) -> None:
    state = trained(rbnorm.RepresentativeBatchNorm2d(3)).state_dict()
    del state[missing]
    with pytest.raises(RuntimeError, match=f'Missing key.*"{missing}"'):
        rbnorm.RepresentativeBatchNorm2d(3).load_state_dict(state)


def test_wholly_missing_layer_is_reported() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), rbnorm.RepresentativeBatchNorm2d(3))
    state = {k: v for k, v in model.state_dict().items() if k.startswith("0.")}
    with pytest.raises(RuntimeError, match=r'"1\.weight".*"1\.center_weight"'):
        model.load_state_dict(state)


def test_calibration_of_a_smaller_layer_is_unexpected() -> None:
    state = trained(rbnorm.RepresentativeBatchNorm2d(3)).state_dict()
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"center_weight"'):
        rbnorm.RepresentativeBatchNorm2d(3, center=False).load_state_dict(state)


def test_wrong_channel_count_is_reported() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for center_weight"):
        rbnorm.RepresentativeBatchNorm2d(4).load_state_dict(
            rbnorm.RepresentativeBatchNorm2d(3).state_dict()
        )


def test_single_entry_does_not_reset_the_calibration() -> None:
    layer = trained(rbnorm.RepresentativeBatchNorm2d(3))
    before = layer.center_weight.clone()
    layer.load_state_dict({"weight": torch.ones(3)}, strict=False)
    assert torch.equal(layer.center_weight, before)
    assert layer.weight.tolist() == [1, 1, 1]


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


def test_partial_state_leaves_a_layer_without_keys_of_batchnorm_alone() -> None:
    layer = trained(rbnorm.RepresentativeBatchNorm2d(3, affine=False, track_running_stats=False))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.load_state_dict({}, strict=False)
    assert before
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
