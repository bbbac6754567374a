"""A layer is not lost without a word: tools that lose it are stopped, or found out afterwards."""

import copy
import re
from collections.abc import Callable

import pytest
import timm
import torch
from models import shake
from timm.layers import BatchNormAct2d
from torch import nn

import rbnorm


def converted() -> nn.Sequential:
    """Layers with and without parameters of their own, and a norm-act layer, at two depths."""
    inner = nn.Sequential(nn.BatchNorm2d(4, affine=False), BatchNormAct2d(4))
    return rbnorm.convert_batchnorm(shake(nn.Sequential(nn.Conv2d(2, 4, 1), *bn(), inner)))


def bn() -> list[nn.Module]:
    return [nn.BatchNorm2d(4), nn.ReLU()]


NAMES = ["1", "3.0", "3.1"]


def fuse_linear(model: nn.Module) -> nn.Module:
    norm = rbnorm.RepresentativeBatchNorm1d(2).eval()
    return nn.utils.fuse_linear_bn_eval(nn.Linear(2, 2).eval(), norm)


REFUSED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "torch sync": (
        nn.SyncBatchNorm.convert_sync_batchnorm,
        "convert_sync_batchnorm of torch knows BatchNorm alone and would lose the calibration of "
        "an RBN layer; use rbnorm.convert_sync(model)",
    ),
    "timm sync": (timm.layers.convert_sync_batchnorm, "use rbnorm.convert_sync(model)"),
    "timm freeze": (timm.layers.freeze_batch_norm_2d, "use rbnorm.freeze(model)"),
    "timm freeze all": (timm.utils.freeze, "use rbnorm.freeze(model)"),
    "timm split": (timm.layers.convert_splitbn_model, "leave the batch in one piece"),
    "torch fuse": (
        lambda model: nn.utils.fuse_conv_bn_eval(model[0].eval(), model[1].eval()),
        "rbnorm.revert_batchnorm(model, inputs) tells what the loss would be",
    ),
    "torch fuse linear": (fuse_linear, "fuse_linear_bn_eval of torch knows BatchNorm alone"),
}


@pytest.mark.parametrize("tool", REFUSED)
def test_tool_that_would_lose_the_calibration_is_refused(tool: str) -> None:
    """And nothing has changed."""
    model = converted()
    before = copy.deepcopy(model.state_dict())
    run, message = REFUSED[tool]
    with pytest.raises(ValueError, match=re.escape(message)):
        run(model)
    assert rbnorm.assert_intact(model, NAMES) == NAMES
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_reverted_model_is_everybodys() -> None:
    model = converted()
    x = torch.randn(3, 2, 5, 5)
    rbnorm.revert_batchnorm(model, x)
    expected = model.eval()(x)
    model = timm.layers.convert_sync_batchnorm(model)
    assert type(model[1]) is nn.SyncBatchNorm
    assert rbnorm.assert_intact(model) == []
    torch.testing.assert_close(model.eval()(x), expected)


def swap(module: nn.Module, kind: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A converter as many libraries have one."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return kind(module)
    for name, child in module.named_children():
        setattr(module, name, swap(child, kind))
    return module


def with_the_tensors(layer: nn.Module) -> nn.Module:
    new = nn.BatchNorm2d(layer.num_features, affine=layer.affine)
    if layer.affine:
        new.weight, new.bias = layer.weight, layer.bias
    new.running_mean, new.running_var = layer.running_mean, layer.running_var
    return new


def with_the_memory(layer: nn.Module) -> nn.Module:
    new = nn.SyncBatchNorm(layer.num_features)
    new.running_mean.data = layer.running_mean.data
    return new


def of_another_class(layer: nn.Module) -> nn.Module:
    assert layer.running_mean is not None
    layer.__class__ = nn.BatchNorm2d
    return layer


@pytest.mark.parametrize("kind", [with_the_tensors, with_the_memory, of_another_class])
def test_lost_layers_are_named(kind: Callable[[nn.Module], nn.Module]) -> None:
    model = swap(converted(), kind)
    lost = re.escape(
        f"replaced and their calibration is lost: '1' by {type(model[1]).__name__}, "
        f"'3.0' by {type(model[1]).__name__}, '3.1' by"
    )
    with pytest.raises(ValueError, match=lost):
        rbnorm.assert_intact(model)


def test_layers_without_a_trace_are_found_by_name() -> None:
    model = converted()
    names = rbnorm.assert_intact(model)
    model = swap(model, lambda layer: nn.BatchNorm2d(layer.num_features))
    assert rbnorm.assert_intact(model) == []
    with pytest.raises(ValueError, match=r"'1' by BatchNorm2d, '3.0' by"):
        rbnorm.assert_intact(model, names)
    del model[3]
    with pytest.raises(ValueError, match=r"'3\.1' by nothing"):
        rbnorm.assert_intact(model, names)


def test_fusion_inside_a_models_own_method_is_found_by_name() -> None:
    """timm's LeViT multiplies the BatchNorm into the convolution by itself."""
    model = rbnorm.convert_batchnorm(timm.create_model("levit_128s")).eval()
    names = rbnorm.assert_intact(model)
    fused = timm.utils.reparameterize_model(model)
    with pytest.raises(ValueError, match=r"'stem\.conv1\.bn' by nothing"):
        rbnorm.assert_intact(fused, names)


def test_intact_models_pass() -> None:
    """What others may do with our tensors: share, copy, hold, look at, convert and revert."""
    model = converted()
    assert len(repr([model[1].running_mean, model[1].weight])) > 0
    shared = nn.BatchNorm2d(4)
    shared.running_mean = model[1].running_mean
    both = nn.Sequential(model, shared, copy.deepcopy(model))
    assert len(rbnorm.assert_intact(both)) == 6
    assert rbnorm.assert_intact(rbnorm.convert_sync(model)) == NAMES
    assert rbnorm.assert_intact(nn.Conv2d(2, 4, 1)) == []
