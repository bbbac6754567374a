import math

import pytest
import torch
from torch import nn

from rbnorm import RepresentativeBatchNorm2d
from rbnorm_lab.layers import calibration_summary, channel_mean_std


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(6), nn.GroupNorm(3, 6), RepresentativeBatchNorm2d(6)]
)
def test_channel_mean_std_is_what_a_direct_computation_gives(norm):
    torch.manual_seed(0)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    if isinstance(norm, nn.BatchNorm2d):
        norm.running_mean.normal_()
    model = nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU(inplace=True))
    images = torch.randn(10, 3, 7, 7)
    output = norm.eval()(model[0](images)).double()
    expected = output.mean((0, 2, 3)).std(correction=0).item()
    actual = channel_mean_std(model.train(), images.split(4), lambda x: x)  # a smaller last batch
    assert actual == {"1": pytest.approx(expected, rel=1e-6)}


def test_measuring_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm2d(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    channel_mean_std(model, [torch.randn(4, 3, 2, 2)], lambda x: x)
    assert model.training
    assert not model[0]._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_output_that_is_not_finite_has_no_spread():
    model = nn.Sequential(nn.BatchNorm2d(2))
    assert channel_mean_std(model, [torch.full((1, 2, 2, 2), math.inf)], lambda x: x) == {"0": None}


def test_calibration_summary_is_the_distribution_over_channels():
    layer = RepresentativeBatchNorm2d(5)
    with torch.no_grad():
        layer.center_weight.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))
    summary = calibration_summary(nn.Sequential(nn.BatchNorm2d(5), layer))
    assert list(summary) == ["1"]
    assert summary["1"]["center_weight"] == pytest.approx(
        {
            "mean": 2.0,
            "std": math.sqrt(2),
            "q0.05": 0.2,
            "q0.25": 1,
            "q0.50": 2,
            "q0.75": 3,
            "q0.95": 3.8,
            "inert": 0.2,
        }
    )
    assert summary["1"]["scale_bias"]["mean"] == 1.0
