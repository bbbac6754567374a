import math

import pytest
import torch
from torch import nn

from rbnorm import RepresentativeBatchNorm2d
from rbnorm_lab.layers import calibration_summary


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
