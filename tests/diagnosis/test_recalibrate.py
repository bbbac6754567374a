"""Running statistics re-estimated."""

import math

import pytest
import torch
from models import calibrate, shake
from torch import nn

import rbnorm
from rbnorm.definition import STATISTICS


@pytest.mark.parametrize("statistic", ["mean", "max"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_running_statistics_are_those_of_all_values(statistic: str, dtype) -> None:
    torch.manual_seed(0)
    layer = shake(rbnorm.RepresentativeBatchNorm2d(3, statistic=statistic, dtype=dtype)).eval()
    calibrate(layer)
    x = torch.randn(14, 3, 4, 5, dtype=dtype) * 2 + torch.randn(14, 3, 1, 1, dtype=dtype) + 10
    result = rbnorm.recalibrate(layer, [(part, None) for part in x.split([5, 2, 1, 6])])
    x = x.double()
    z = x + layer.center_weight.detach().double().view(3, 1, 1) * STATISTICS[statistic](x)
    assert result is layer
    assert not layer.training
    assert layer.num_batches_tracked == 4
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3))
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(layer.running_var.double(), var, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("make", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_one_batch_gives_what_a_cumulative_momentum_gives_in_every_layer(make) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), make(4), nn.ReLU(), nn.Conv2d(4, 3, 3), make(3))
    x = torch.randn(8, 2, 9, 9)
    torch.optim.swa_utils.update_bn([x], shake(model))
    expected = {name: buffer.clone() for name, buffer in model.named_buffers()}
    rbnorm.recalibrate(shake(model), [x])
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, expected[name], rtol=1e-5, atol=1e-6)


def test_means_of_equal_batches_are_what_a_cumulative_momentum_gives() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    batches = torch.randn(12, 2, 9, 9).split(4)
    torch.optim.swa_utils.update_bn(batches, shake(model))
    expected = [model[i].running_mean.clone() for i in (1, 3)]
    rbnorm.recalibrate(shake(model), batches)
    for i, mean in zip((1, 3), expected, strict=True):
        torch.testing.assert_close(model[i].running_mean, mean, rtol=1e-5, atol=1e-6)


def test_dropout_does_not_take_part() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(1)).train()
    rbnorm.recalibrate(model, [torch.ones(4, 1, 2, 2) * 3])
    assert model[1].running_mean.item() == 3
    assert all(m.training for m in model.modules())
    assert model[1].momentum == 0.1


def test_broken_running_statistics_are_mended() -> None:
    layer = nn.BatchNorm2d(1)
    layer.running_mean.fill_(math.nan)
    rbnorm.recalibrate(layer, [torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)])
    assert (layer.running_mean.item(), layer.running_var.item()) == (2, 2)


def test_a_layer_without_running_statistics_stays_as_it_is() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm2d(2))
    rbnorm.recalibrate(model, [torch.randn(3, 2, 4, 4)])
    assert model[0].running_mean is None
    assert model[0].momentum == 0.1
    assert model[1].num_batches_tracked == 1
    with pytest.raises(ValueError, match="must have running statistics to re-estimate, got none"):
        rbnorm.recalibrate(model[0], [torch.randn(3, 2, 4, 4)])


def test_what_is_not_finite_is_refused_and_nothing_changes() -> None:
    layer = shake(nn.BatchNorm2d(2))
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    with pytest.raises(ValueError, match="activations that are not finite"):
        rbnorm.recalibrate(layer, [torch.full((2, 2, 3, 3), math.nan)])
    with pytest.raises(RuntimeError, match=r"failed on batch 1, .* more than 1 value per channel"):
        rbnorm.recalibrate(layer, [torch.ones(1, 2, 1, 1)])
    with pytest.raises(ValueError, match="reach a normaliser with running statistics"):
        rbnorm.recalibrate(layer, [torch.ones(1)], forward=lambda model, x: x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())
