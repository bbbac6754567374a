"""Checkpoints: the layer's own, plain BatchNorm's, and the official implementation's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


def test_partial_state_leaves_a_layer_without_keys_of_batchnorm_alone() -> None:
    layer = trained(rbnorm.RepresentativeBatchNorm2d(3, affine=False, track_running_stats=False))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.load_state_dict({}, strict=False)
    assert before
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
