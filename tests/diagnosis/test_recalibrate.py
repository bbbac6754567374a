"""Running statistics re-estimated, and accuracies without parts of the calibration."""

import math

import pytest
import torch
from models import calibrate, left_as_found, shake, small
from torch import nn
from torch.nn.utils import prune

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


def separable() -> tuple[nn.Module, list]:
    """A classifier that only works by what RBN's gate makes of each instance's own mean."""
    torch.manual_seed(0)
    labels = torch.arange(40) % 2
    x = torch.randn(40, 1, 6, 6) + 2.0 * labels.view(-1, 1, 1, 1)
    norm = rbnorm.RepresentativeBatchNorm2d(1, center_weight_init=-1.0, scale=False)
    other = rbnorm.RepresentativeBatchNorm2d(1, center_weight_init=0.5, scale_weight_init=1.0)
    head = nn.Linear(1, 2)
    head.weight.data, head.bias.data = torch.tensor([[-1.0], [1.0]]), torch.zeros(2)
    model = nn.Sequential(norm, other, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    batches = list(zip(x.split(8), labels.split(8), strict=True))
    return rbnorm.recalibrate(model, batches), batches


def test_counterfactual_accuracies_are_those_of_a_model_without_that_part() -> None:
    model, batches = separable()
    with left_as_found(model):
        found = rbnorm.diagnose(model, batches, recalibration=batches).counterfactuals
    by = {c.without: c.accuracy for c in found}
    assert list(by) == ["nothing", "centring", "scaling"]
    # centring by -1 removes the mean, which is all the classes differ in
    assert by["nothing"] < 0.7
    assert by["centring"] == 1
    for without, accuracy in by.items():
        twin, _ = separable()
        vectors = {"nothing": (), "centring": ("center_weight",), "scaling": ("scale_weight",)}
        for name, vector in twin.named_parameters():
            if name.endswith(vectors[without]):
                vector.data.zero_()
        rbnorm.recalibrate(twin, batches).eval()
        right = sum(int((twin(x).argmax(1) == y).sum()) for x, y in batches)
        assert accuracy == right / 40


def test_counterfactuals_of_a_pruned_layer_are_refused() -> None:
    model, batches = separable()
    prune.identity(model[1], "center_weight")
    with pytest.raises(ValueError, match="layer '1' has a pruned or parametrised center_weight"):
        rbnorm.diagnose(model, batches, recalibration=batches)


def test_counterfactuals_say_what_they_need_and_of_batchnorm_there_is_one() -> None:
    model, batches = small(), [(torch.randn(4, 2, 8, 8), torch.zeros(4, dtype=torch.long))]
    found = rbnorm.diagnose(model, batches, recalibration=batches).counterfactuals
    assert [c.without for c in found] == ["nothing"]
    rbnorm.convert_batchnorm(model)
    with pytest.raises(ValueError, match="recalibration must be something to iterate over many"):
        rbnorm.diagnose(model, batches, recalibration=iter(batches))
    with pytest.raises(ValueError, match="an accuracy needs batches of"):
        rbnorm.diagnose(model, [batches[0][0]], recalibration=batches)
    with pytest.raises(ValueError, match=r"gives .N, classes. scores"):
        rbnorm.diagnose(model[:3], batches, recalibration=batches)
